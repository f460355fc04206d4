"""All facts of a report in one place: books, rows, pictures, runs, versions. No words, no markup."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from jobs.report import ReportConfig
from jobs.reporting.books import StageFacts, named, read_stage
from jobs.reporting.judge import Judge, counted_reason, rule_text
from jobs.reporting.pictures import Pictures, thumbnails
from jobs.reporting.rows import KEPT, Tally
from jobs.reporting.runs import RunFacts, read_run
from jobs.reporting.survey import BYTES_A_CODE, Survey, survey
from jobs.reporting.text import plural
from jobs.reporting.truth import ranking_auc, read_truth
from pipeline import storage
from pipeline.stages.pack.rule import GLOBAL_REASONS

PACKAGES = (
    "pairmill", "torch", "deepspeed", "accelerate", "ray", "webdataset", "img2dataset", "open-clip-torch",
    "transformers", "pyarrow", "duckdb",
)  # fmt: skip
TAKEN_DOWN = "taken_down"
#: what a page needs beside its pictures and its rows, at most
OTHER_BYTES = 1_000_000
#: what rows of an img2dataset folder without a picture are called (pipeline.columns)
FOREIGN_REASONS = {"failed_to_download", "failed_to_resize", "unknown"}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the page tells.

    Attributes:
        config: what was asked for.
        stages: the books of every given folder, in the order of the chain.
        rows: what was counted over the sidecars; None without pictures.
        survey: the same and all else that was found in them.
        shards_in_all: image shards that stand, of which `rows.shards` were read.
        thresholds: where the score is cut.
        rule: pack's rule in words; empty where nothing was packed.
        pictures: the thumbnails.
        auc: how well the score tells right from wrong; None without a truth.
        runs: training runs.
        versions: (package, version) of the installation that wrote the report.
        notes: what could not be told, one sentence each.
    """

    config: ReportConfig
    stages: tuple[StageFacts, ...]
    survey: Survey | None = None
    thresholds: tuple[float, ...] = ()
    rule: str = ""
    pictures: Pictures = field(default_factory=Pictures)
    auc: float | None = None
    runs: tuple[RunFacts, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> Tally | None:
        return self.survey.rows if self.survey else None

    @property
    def shards_in_all(self) -> int:
        return len(self.survey.source.every) if self.survey else 0

    @property
    def complete(self) -> bool:
        """Whether every image shard was read, so that counts over rows are counts of everything."""
        return self.rows is not None and self.rows.shards == self.shards_in_all

    @property
    def pictures_stage(self) -> StageFacts | None:
        return named(self.stages, "crawl")

    @property
    def pack_stage(self) -> StageFacts | None:
        pack = named(self.stages, "pack")
        return self.shown(pack) if pack else None

    @property
    def latest(self) -> str:
        """When the last unit of any stage was committed."""
        return max((s.finished for s in self.stages), default="")

    def shown(self, stage: StageFacts) -> StageFacts:
        """A stage as the funnel shows it.

        Pack sees every row of the crawl, and counts those without a picture under the crawl's reasons: they
        are told once, at the crawl. Its predicate's drops are told part by part.
        """
        if stage.role != "pack":
            return stage
        crawl = self.pictures_stage
        before = {reason for reason, _ in crawl.dropped} | FOREIGN_REASONS if crawl else set()
        own = Counter({reason: n for reason, n in stage.dropped if reason not in before})
        if self.complete and self.rows:
            own = _by_part(own, self.rows.verdicts)
        dropped = tuple(sorted(own.items(), key=lambda item: (-item[1], item[0])))
        return replace(stage, taken=stage.kept + sum(own.values()), dropped=dropped)


def _by_part(counted: Counter[str], verdicts: Counter[str]) -> Counter[str]:
    """Splits a reason of the manifests as the rows do, where both come to the same number."""
    found = Counter(counted)
    for reason, number in counted.items():
        parts = {v: n for v, n in verdicts.items() if v != reason and counted_reason(v) == reason}
        if sum(parts.values()) == number:
            del found[reason]
            found.update(parts)
    return found


def gather(config: ReportConfig) -> Facts:
    """Reads everything that stands.

    Raises:
        ConfigError: the truth table cannot be read.
    """
    truth = read_truth(config.truth) if config.truth else None
    stages = _stages(config)
    pack, crawl = named(stages, "pack"), named(stages, "crawl")
    judge = Judge(settings=pack.settings, resolved=pack.resolved) if pack else None
    rule = rule_text(pack.settings) if pack else ""
    found = None
    if crawl:
        folders = [s.folder for s in stages if s.role == "column" and s.state != "absent"]
        found = survey(config, folders, judge=judge, truth=truth, shards=pack.folder if pack else None)
    rows = found.rows if found else None
    thresholds = (config.threshold,) if config.threshold is not None else thresholds_in(rule, config.score)
    if found and not thresholds:
        cuts = found.what_if.rule.cuts
        starts = {c.start for c in cuts if c.start is not None and c.value.lower() == config.score.lower()}
        thresholds = tuple(sorted(starts))
    return Facts(
        config=config,
        stages=stages,
        survey=found,
        thresholds=thresholds,
        rule=rule,
        pictures=thumbnails(found.large, found.small, budget=_picture_bytes(config, found))
        if found
        else Pictures(),
        auc=_auc(rows) if rows and truth else None,
        runs=tuple(read_run(folder) for folder in config.runs),
        versions=versions(),
        notes=_notes(found, judge, stages),
    )


def _picture_bytes(config: ReportConfig, found: Survey) -> int:
    """What pictures may take of a page, as text: all but what the rest of it may need."""
    rows = found.what_if.codes.size * BYTES_A_CODE
    return int(config.page_mb * 1e6 - OTHER_BYTES - rows)


def _stages(config: ReportConfig) -> tuple[StageFacts, ...]:
    asked = [(config.candidates, "discover"), (config.images, "crawl")]
    asked += [(folder, "column") for folder in config.columns]
    asked.append((config.shards, "pack"))
    return tuple(read_stage(folder, role) for folder, role in asked if folder)


def thresholds_in(rule: str, score: str) -> tuple[float, ...]:
    """The numbers that a rule compares the score with: `clip_score >= 0.28` gives 0.28."""
    name = re.escape(score)
    number = r"(-?\d*\.?\d+(?:[eE][-+]?\d+)?)"
    after = re.findall(rf"\b{name}\b\"?\s*(?:>=|>|<=|<|=)\s*{number}", rule, re.IGNORECASE)
    before = re.findall(rf"(?<![\w.]){number}\s*(?:>=|>|<=|<|=)\s*\"?{name}\b", rule, re.IGNORECASE)
    return tuple(sorted({float(n) for n in after + before}))


def _auc(rows: Tally) -> float | None:
    right, wrong = (np.concatenate([*rows.truth_scores[name], np.zeros(0)]) for name in ("right", "wrong"))
    return ranking_auc(right, wrong)


def versions() -> tuple[tuple[str, str], ...]:
    """Python and the packages that the figures depend on, as they are installed here."""
    found = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            found.append((package, "not installed"))
    return tuple(found)


def _notes(found: Survey | None, judge: Judge | None, stages: tuple[StageFacts, ...]) -> tuple[str, ...]:
    rows = found.rows if found else None
    notes = [
        f"{storage.basename(s.folder)}: units made with different settings stand side by side"
        for s in stages
        if s.mixed
    ]
    if rows and rows.problems:
        shown = "; ".join(rows.problems[:3])
        more = f"; and {len(rows.problems) - 3} more" if len(rows.problems) > 3 else ""
        broken = plural(len(rows.problems), "image shard")
        notes.append(f"{broken} could not be judged; scores and pictures lack them: {shown}{more}")
    if found and judge and rows and found.rows.shards == len(found.source.every):
        notes += _changed(rows, judge, stages)
    return tuple(notes)


def _changed(rows: Tally, judge: Judge, stages: tuple[StageFacts, ...]) -> list[str]:
    """Whether the rule says of the columns as they are now what it said when they were packed."""
    pack, crawl = named(stages, "pack"), named(stages, "crawl")
    if pack is None or pack.state != "done" or crawl is None:
        return []
    before = {reason for reason, _ in crawl.dropped} | FOREIGN_REASONS | judge.reasons
    # what pack dropped for other reasons (no picture, no text, beyond a limit) had passed its rule
    passed = pack.kept + sum(n for reason, n in pack.dropped if reason not in before)
    # a tombstone is asked before the rule: what the rule would have said is not known
    unknown = dict(pack.dropped).get(TAKEN_DOWN, 0)
    now = rows.verdicts[KEPT] + sum(rows.verdicts[reason] for reason in GLOBAL_REASONS)
    if passed - unknown <= now <= passed:
        return []
    return [
        f"The images or columns have changed since they were packed: the rule would now keep {now:,} "
        f"pictures, packed were {passed:,}"
    ]
