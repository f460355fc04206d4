"""What a rule would keep, from the stored columns alone: `pairmill pack --dry_run true`.

No picture is touched and nothing is written but to a scratch folder of this machine. Rows are judged by
pack's own code, and what is asked of all samples together runs through pack's own stages, so the figures are
those of the packing. Shards are read one after the other in threads, and of each the columns that a rule
names.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns, inputs, scratch
from pipeline.commit import run_and_commit
from pipeline.errors import ConfigError
from pipeline.inputs import Shard
from pipeline.planning import make_plan
from pipeline.progress import Progress
from pipeline.stage import Stage, Unit
from pipeline.stages.pack import PackConfig, books_of, select_stages, verdicts_folder
from pipeline.stages.pack.captions import NONE_LEFT, NOT_JUDGED
from pipeline.stages.pack.judge import Judge, read_shard
from pipeline.stages.pack.rule import GLOBAL_REASONS, RuleOptions

LANGUAGE = "language"
#: what stands for "no reason", and for "no language"
KEPT, UNKNOWN = "", ""


@dataclass(frozen=True)
class Rule:
    """A rule on trial: its options, the judge, and where the verdicts on all samples lie, if any."""

    options: RuleOptions
    judge: Judge
    verdicts: str | None = None

    def reasons(self, table: pa.Table, number: int) -> pa.Array:
        """Why each row of a shard is dropped; empty where it is kept."""
        reasons = self.judge.judge(table).reasons
        if self.verdicts is not None:
            found = columns.read_parquet(f"{self.verdicts}/{number:08d}.parquet")
            place = pc.index_in(table["key"].combine_chunks(), value_set=found["key"].combine_chunks())
            reasons = pc.coalesce(reasons, found["reason"].combine_chunks().take(place))
        return pc.fill_null(reasons, KEPT)

    def order(self, found: Mapping[str, int]) -> list[str]:
        """Reasons in the order in which the rule asks; those of the crawl first, the most frequent first."""
        own = [*self.judge.order(), NONE_LEFT, NOT_JUDGED, *GLOBAL_REASONS]
        crawl = sorted((r for r in found if r not in own and r != KEPT), key=lambda r: (-found[r], r))
        return [r for r in [*crawl, *own] if found.get(r)]


@dataclass(kw_only=True)
class Tally:
    """What became of all rows.

    shards, rows: how many. moves: (reason under the rule, reason under the other one) -> rows; the other is
    the same where there is none. languages: (language, the same two) -> rows, kept ones as KEPT and others as
    `dropped`; null where the rows have no language.
    """

    shards: int = 0
    rows: int = 0
    moves: Counter[tuple[str, str]] = field(default_factory=Counter)
    languages: Counter[tuple[str, str, str]] | None = None

    def under(self, which: int) -> Counter[str]:
        """Reason -> rows under the rule (0) or the other one (1)."""
        found: Counter[str] = Counter()
        for reasons, rows in self.moves.items():
            found[reasons[which]] += rows
        return found


@dataclass(frozen=True)
class DryRun:
    """The rules (one, or two to compare) and what became of the rows."""

    rules: Sequence[Rule]
    tally: Tally


def dry_run(config: PackConfig, against: RuleOptions | None, *, workers: int) -> DryRun:
    """Judges all rows of a pack's input.

    Raises:
        ConfigError: a rule or a folder is not what it should be.
        InputError: a shard cannot be read, or a top is asked of a column without values.
    """
    books = books_of(config)
    images = inputs.shards(config.input, ".tar")
    folders = [columns.open_folder(url) for url in config.columns]
    sidecars = {s.number: [f.shard(s.number).url for f in folders] for s in images}
    schema = columns.joined_schema(images[0].sibling(".parquet"), sidecars[images[0].number])
    options: list[RuleOptions] = [config] if against is None else [config, against]
    judges = [Judge(one, books=books, seed=config.seed) for one in options]
    for number, judge in enumerate(judges):
        try:
            judge.check(schema)
            judge.shared_inputs()
        except ConfigError as error:
            raise ConfigError(f"against: {error}" if number else str(error)) from error
        judge.start()
    with scratch.folder() as folder, ThreadPoolExecutor(workers) as pool:
        rules = []
        for number, (one, judge) in enumerate(zip(options, judges, strict=True)):
            place = str(folder / f"rule-{number}")
            stages = select_stages(
                one,
                place,
                input=config.input,
                columns=config.columns,
                books=books,
                seed=config.seed,
                buckets=config.buckets,
            )
            _run_here(stages, pool)
            rules.append(Rule(one, judge, verdicts_folder(place) if stages else None))
        return DryRun(rules, _tally(rules, images, sidecars, schema, pool))


def _run_here(stages: Sequence[tuple[Stage, str]], pool: ThreadPoolExecutor) -> None:
    """Runs stages in this process, without Ray."""
    for stage, place in stages:
        plan = make_plan(stage, place)
        stage.start()
        progress = Progress(stage.name, len(plan.todo))
        work = functools.partial(_commit_unit, stage, place)
        for done, _ in enumerate(pool.map(work, plan.todo), 1):
            progress.update(done)
        progress.close(len(plan.todo))
        stage.close()


def _commit_unit(stage: Stage, place: str, unit: Unit) -> None:
    run_and_commit(stage, unit, place)


def _tally(
    rules: Sequence[Rule],
    images: Sequence[Shard],
    sidecars: Mapping[int, list[str]],
    schema: pa.Schema,
    pool: ThreadPoolExecutor,
) -> Tally:
    names = frozenset().union(*(rule.judge.columns() for rule in rules))
    with_language = LANGUAGE in schema.names
    if with_language:
        names |= {LANGUAGE}
    total = Tally(languages=Counter() if with_language else None)
    progress = Progress("dry run", len(images), unit="shards")

    def of_shard(shard: Shard) -> Tally:
        table = read_shard(shard.input.url, sidecars[shard.number], names)
        found = [rule.reasons(table, shard.number) for rule in rules]
        one, other = found[0], found[-1]
        tally = Tally(shards=1, rows=len(table), moves=_counted([one, other]))
        if total.languages is not None:
            said = _plain(table, LANGUAGE)
            kept = [pc.if_else(pc.equal(r, KEPT), KEPT, "dropped") for r in (one, other)]
            tally.languages = _counted([said, *kept])
        return tally

    for tally in pool.map(of_shard, images):
        total.shards += tally.shards
        total.rows += tally.rows
        total.moves.update(tally.moves)
        if total.languages is not None and tally.languages is not None:
            total.languages.update(tally.languages)
        progress.update(total.shards)
    progress.close(total.shards)
    return total


def _plain(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        return pa.repeat(UNKNOWN, len(table))
    return pc.fill_null(table[name].cast(pa.string()), UNKNOWN).combine_chunks()


def _counted(arrays: Sequence[pa.Array]) -> Counter:
    """How often each combination of values stands side by side."""
    names = [str(n) for n in range(len(arrays))]
    table = pa.table(list(arrays), names=names).group_by(names).aggregate([([], "count_all")])
    values = [table[name].to_pylist() for name in names]
    return Counter(dict(zip(zip(*values, strict=True), table["count_all"].to_pylist(), strict=True)))
