"""Fetches failed rows of a crawl again: `pairmill retry images --where "reason = 'timeout'"`.

Options of `pairmill crawl` that say how URLs are fetched may follow, such as `--fetch.total_timeout 60`; all
others are those of the crawl, which it saved beside its output.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jobs.saved import load_saved
from jobs.stages import report_failed
from pipeline import commit, manifest, storage
from pipeline.errors import ConfigError
from pipeline.fused import Fused
from pipeline.fused_retry import FusedRetry
from pipeline.predicate import Predicate
from pipeline.progress import Progress
from pipeline.runner import run_stage
from pipeline.runner_options import RunOptions
from pipeline.shards.format import shard_name
from pipeline.stage import Stage
from pipeline.stages.crawl.again import survey
from pipeline.stages.crawl.retry import RetryStage
from pipeline.stages.crawl.stage import CrawlStage


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a predicate means for a folder: rows to fetch again by shard, and what it names in vain."""

    shards: int
    asked: Mapping[int, int]
    left_out: Counter[str]

    @property
    def rows(self) -> int:
        return sum(self.asked.values())


def main(argv: Sequence[str]) -> int:
    """Returns 0 done (also where nothing matched), 1 a shard failed, 75 stopped by a signal."""
    parser = argparse.ArgumentParser(
        prog="pairmill retry",
        description="Fetch just those rows of a crawl again that a predicate names, and fill their gaps.",
        epilog="Options of `pairmill crawl` that say how URLs are fetched may follow: "
        "--fetch.total_timeout 60, --fetch.retries 4, --workers 2, --task 0/4.",
        allow_abbrev=False,
    )
    parser.add_argument("images", help="output folder of a crawl")
    parser.add_argument(
        "--where", required=True, help="predicate over the columns of N.parquet: \"reason = 'timeout'\""
    )
    parser.add_argument("--dry-run", action="store_true", help="only say how many rows of which shards")
    known, overrides = parser.parse_known_args(list(argv))
    images = storage.absolute(known.images)
    where = Predicate(known.where)
    crawl, options = _crawl_of(images, overrides)
    commit.roll_forward(images)
    found = _survey(images, where, options)
    print(_told(found, known.where))
    if known.dry_run or not found.rows:
        for number, rows in found.asked.items():
            print(f"{shard_name(number)}  {rows:,}")
        return 0
    return _retry(images, crawl, known.where, found, options)


def _crawl_of(images: str, overrides: Sequence[str]) -> tuple[CrawlStage | Fused, RunOptions]:
    """The crawl with what the command line changes of its options, and the runner's options.

    Raises:
        ConfigError: the folder is no output of a crawl, or an option is wrong.
    """
    if not storage.isdir(images):
        raise ConfigError(f"folder {images!r} does not exist; give the --output of a crawl")
    if not manifest.is_output(images):
        raise ConfigError(
            f"folder {images!r} has no manifests: `pairmill crawl` did not write it (img2dataset, perhaps). "
            "Crawl its failures as a list of their own: filter its N.parquet by status, and pass that to "
            "`pairmill crawl --input`"
        )
    saved = load_saved(images, overrides)
    if saved.verb != "crawl":
        raise ConfigError(f"folder {images!r} is output of `pairmill {saved.verb}`; only a crawl has retries")
    assert isinstance(saved.stage, CrawlStage | Fused), saved.stage
    return saved.stage, saved.options


def _survey(images: str, where: Predicate, options: RunOptions) -> Survey:
    """Asks every shard of this task; a limit counts shards that have something to fetch."""
    numbers = sorted(manifest.list_done(images))
    task = options.parsed_task()
    if task is not None:
        numbers = [n for n in numbers if n % task[1] == task[0]]
    places = [(n, storage.join(images, f"{shard_name(n)}.parquet")) for n in numbers]
    progress = Progress("survey", len(places), unit="shards")
    asked: dict[int, int] = {}
    left_out: Counter[str] = Counter()
    for position, (number, choice) in enumerate(survey(places, where), 1):
        left_out.update(choice.left_out)
        if choice.positions and (options.limit is None or len(asked) < options.limit):
            asked[number] = len(choice.positions)
        progress.update(position, f"{sum(asked.values()):,} rows")
    progress.close(len(places), f"{sum(asked.values()):,} rows")
    return Survey(shards=len(places), asked=asked, left_out=left_out)


def _told(found: Survey, where: str) -> str:
    left = ", ".join(f"{name} {n:,}" for name, n in found.left_out.most_common())
    kept = f"; left out, for they are never fetched again: {left}" if left else ""
    if not found.rows:
        return f"retry: nothing to fetch again where {where}{kept}"
    return (
        f"retry: {found.rows:,} rows to fetch again in {len(found.asked):,} of {found.shards:,} shards{kept}"
    )


def _retry(images: str, crawl: CrawlStage | Fused, where: str, found: Survey, options: RunOptions) -> int:
    stage = _stage(images, crawl, where, list(found.asked))
    before = _state(images, found.asked)
    summary = run_stage(stage, images, replace(options, limit=None), redo=found.asked.keys())
    report_failed("retry", images, summary)
    after = _state(images, found.asked)
    changed = [n for n in found.asked if before[n][0] != after.get(n, before[n])[0]]
    got = sum(kept - before[n][1] for n, (_, kept) in after.items())
    print(f"retry: {got:,} of {found.rows:,} rows have their picture now; {len(changed):,} shards are new")
    if changed:
        print(
            "What was made from these shards before is made from what they were. To bring it up to date, "
            "rerun its commands with --overwrite, in their order (score, dedup, pack): only units that have "
            "one of these shards are done again"
        )
    return summary.exit_code


def _stage(images: str, crawl: CrawlStage | Fused, where: str, numbers: Sequence[int]) -> Stage:
    if isinstance(crawl, CrawlStage):
        return RetryStage(crawl.config, images=images, where=where, numbers=numbers)
    first = RetryStage(crawl.first.config, images=images, where=where, numbers=numbers, made_by=crawl)
    return FusedRetry(crawl, first=first)


def _state(images: str, numbers: Mapping[int, int]) -> dict[int, tuple[str, int]]:
    """number -> (content mark, pictures) of committed shards."""
    done = manifest.list_done(images)
    return {n: (done[n].content, int(manifest.read(done[n])["counts"]["out"])) for n in numbers if n in done}


if __name__ == "__main__":
    from jobs.cli import entry

    entry("retry")
