"""Writes training shards: `pairmill pack`, or `python -m jobs.pack`; or tells what a rule would keep:

    pairmill pack --dry_run true --input images --columns columns/clip --preset laion400m \\
                  --against.where "clip_score >= 0.28"
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass

from jobs.pack_dry_run import dry_run
from jobs.pack_funnel import as_json, render
from jobs.stages import run_stages
from jobs.verb import Request, Verb
from pipeline import manifest, session, storage
from pipeline.errors import ConfigError
from pipeline.settings import differences, operational, semantic_config
from pipeline.stage import Stage
from pipeline.stages.pack import PackConfig, pack_stages
from pipeline.stages.pack.rule import RuleOptions
from pipeline.summary import EXIT_DONE
from pipeline.tombstones import with_book


@dataclass(frozen=True, kw_only=True)
class PackOptions(PackConfig):
    """What is packed, by which rule; or only what a rule would keep.

    Attributes:
        dry_run: say what the rule keeps and why the rest goes, from the stored columns; write nothing.
        against: another rule over the same columns, which a dry run compares with this one.
        json: of a dry run: file for the figures as JSON.
    """

    dry_run: bool = operational(False)
    against: RuleOptions = operational(RuleOptions())
    json: str | None = operational(None)


def stages(config: PackOptions, output: str) -> list[tuple[Stage, str]]:
    return pack_stages(with_book(config, output), output)


def run(config: PackOptions, request: Request) -> int:
    if config.dry_run:
        return _dry_run(config, request)
    if config.against != RuleOptions() or config.json is not None:
        raise ConfigError("--against and --json belong to a dry run; pass --dry_run true, or leave them out")
    *before, pack = stages(config, request.output)
    if before and not request.options.overwrite:
        _refuse_other_options(pack[0], request.output)
    with session.shared_session():
        # what is chosen among all samples needs all of them, however few groups are wanted for a taste
        whole = dataclasses.replace(request, options=dataclasses.replace(request.options, limit=None))
        return run_stages(before, whole) or run_stages([pack], request)


def _refuse_other_options(stage: Stage, output: str) -> None:
    """Pack itself would refuse them too, once all else has been chosen for nothing.

    Raises:
        ConfigError: the output was packed with other options.
    """
    done = next(iter(manifest.list_done(output).values()), None)
    if done is not None:
        found = differences(manifest.read(done)["config"], semantic_config(stage.config))
        if found:
            raise ConfigError(
                f"{output} was packed with other options: {'; '.join(found)}. Pass --overwrite to pack it "
                "again, or choose another --output"
            )


def _dry_run(config: PackOptions, request: Request) -> int:
    """Prints the funnel; what was taken down from the output counts where one is given."""
    if request.output:
        config = with_book(config, request.output)
    against = None if config.against == RuleOptions() else config.against
    found = dry_run(config, against, workers=request.options.workers or os.cpu_count() or 1)
    print(render(found))
    if config.json is not None:
        data = json.dumps(as_json(found), indent=1, ensure_ascii=False) + "\n"
        storage.write_bytes(config.json, data.encode())
    return EXIT_DONE


VERB = Verb(config=PackOptions, run=run, stage=True, stages=stages, has_dry_run=True)

if __name__ == "__main__":
    from jobs.cli import entry

    entry("pack")
