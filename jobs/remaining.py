"""What is left to do of a step, from what lies in its output: read only, without Ray and without torch.

A verb of stages is done when the plan of each of its stages is empty; units in quarantine count as done where
`allow_failed` covers them. A training run is known by its digest, an evaluation by its mark, a report by its
file.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs import evaluate, train
from jobs.chain import Step
from models.training import config as train_config
from pipeline import commit, manifest, storage
from pipeline.errors import ConfigError
from pipeline.planning import make_plan
from pipeline.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Remaining:
    """What is left of a step.

    Attributes:
        done: nothing is.
        units: how many units there are, of all its stages that can be planned; 0 where it has none.
        left: how many of them are to be done.
        quarantined: units that failed and count as done, since so many may fail.
        allowed: how many may fail.
    """

    done: bool
    units: int = 0
    left: int = 0
    quarantined: int = 0
    allowed: int = 0

    @property
    def why(self) -> str:
        """In words."""
        if not self.done:
            return f"{self.left:,} of {_count(self.units)} to do" if self.left else "to do"
        if self.quarantined:
            return f"done: {_count(self.units)}, {self.quarantined} quarantined, {self.allowed} allowed"
        return f"done: {_count(self.units)}" if self.units else "done"


def _count(units: int) -> str:
    return f"{units:,} unit" + ("" if units == 1 else "s")


def look(step: Step) -> Remaining:
    """What is left of a step whose inputs stand.

    Raises:
        ConfigError: an input is missing, an option is impossible, or what stands was made differently and
            may not be overwritten; names the step.
    """
    try:
        return _look(step)
    except (ValueError, OSError, ImportError) as error:  # the latter two: storage that is not to be reached
        raise ConfigError(f"step {step.name}: {error}") from error


def check(step: Step) -> None:
    """What can be said against a step before its inputs stand.

    Raises:
        ConfigError: an impossible option; names the step.
    """
    try:
        if step.job == "train":
            train_config.check(step.config)
        stages_of(step)
    except (ValueError, OSError, ImportError) as error:
        raise ConfigError(f"step {step.name}: {error}") from error


def stages_of(step: Step) -> list[tuple[Stage, str]]:
    """The stages of a step with their folders; none where the step is no verb of stages, or only looks."""
    if step.verb.stages is None or not step.request.output:
        return []
    return [(stage, storage.absolute(folder)) for stage, folder in step.verb.stages(step.config, step.output)]


def _look(step: Step) -> Remaining:
    overwrite = step.request.options.overwrite
    if step.verb.stage:
        return _look_at_stages(step)
    if step.job == "train":
        return Remaining(done=train.is_done(step.config, overwrite=overwrite))
    if step.job == "evaluate":
        return Remaining(done=evaluate.is_done(step.config) and not overwrite)
    return Remaining(done=bool(step.output) and storage.exists(step.output) and not overwrite)


def _look_at_stages(step: Step) -> Remaining:
    options = step.request.options
    stages = [] if getattr(step.config, "dry_run", False) else stages_of(step)
    units = left = quarantined = 0
    begun = bool(stages)
    for number, (stage, folder) in enumerate(stages):
        # what comes before the last stage is needed whole, however few units are wanted for a taste
        limit = options.limit if number == len(stages) - 1 else None
        try:
            plan = make_plan(
                stage, folder, overwrite=options.overwrite, limit=limit, task=options.parsed_task(), look=True
            )
        except ConfigError:
            if left:  # it lacks what a stage before it has yet to write
                return Remaining(done=False, units=units, left=left)
            raise
        units += len(plan.units)
        begun = begun and (bool(plan.units) or storage.exists(manifest.config_url(folder)))
        todo = {unit.number for unit in plan.todo}
        failed = todo & manifest.list_quarantined(folder)
        if todo == failed and len(failed) <= options.allow_failed:
            quarantined += len(failed)
            todo = set()
        left += len(todo | _interrupted(folder))
    done = begun and not left
    return Remaining(done=done, units=units, left=left, quarantined=quarantined, allowed=options.allow_failed)


def _interrupted(folder: str) -> set[int]:
    """Units whose replacement a crash has cut off; the next run ends it."""
    pending = storage.list_folders(commit.pending_folder(folder))
    whole = [url for url in pending if storage.exists(storage.join(url, commit.INTENT))]
    return {int(storage.basename(url).partition("-")[0]) for url in whole}
