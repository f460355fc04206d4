"""What is found in the sidecars of an image folder: one walk, several sections, then the rows they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from jobs.report import ReportConfig
from jobs.reporting import bootstrapped, clusters, expressions
from jobs.reporting.bootstrapped import Bootstrapped, chosen_by_pack
from jobs.reporting.clusters import CLUSTERS, Clusters
from jobs.reporting.cuts import Rule, number_columns, read_rule
from jobs.reporting.judge import Judge
from jobs.reporting.languages import Languages
from jobs.reporting.rows import Tally
from jobs.reporting.sites import Sites
from jobs.reporting.truth import Truth
from jobs.reporting.view import Sample, Section, Source, View, look, look_up, open_source, walk
from jobs.reporting.whatif import WhatIf, reference
from pipeline import inputs, storage
from pipeline.errors import ConfigError, InputError
from pipeline.inputs import Shard
from pipeline.stages.pack.select import verdicts_folder

#: shards by which the range of a score is known before all are counted
REFERENCE_SHARDS = 4
#: of a row in the page, for each threshold: two bytes as base64
BYTES_A_CODE = 8 / 3
#: part of a page that such rows may take
ROWS_PART = 0.3
Place = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found. winners: key -> the row that duplicates point to, for the clusters that are shown."""

    source: Source
    rows: Tally
    what_if: WhatIf
    languages: Languages
    sites: Sites
    clusters: Clusters
    captions: Bootstrapped
    winners: dict[str, tuple[Shard, dict[str, Any]]] = field(default_factory=dict)

    @property
    def large(self) -> list[Place]:
        """(tar, key) of the pictures that are shown large."""
        found = [place(s) for group in self.rows.samples.values() for s in group]
        return found + [place(pair.sample) for pair in self.captions.pairs]

    @property
    def small(self) -> list[Place]:
        """(tar, key) of those shown small: ladders, clusters, hits."""
        found = [place(rung.sample) for steps in self.what_if.steps for rung in steps.ladder]
        for mark, kind in self.clusters.kinds.items():
            for winner, _ in self.top_clusters(mark):
                if winner in self.winners:
                    shard, row = self.winners[winner]
                    found.append((shard.sibling(".tar"), row["key"]))
                found += [place(loser.sample) for loser in kind.losers.get(winner, ())]
        return found + [place(sample) for _, sample, _, _ in self.clusters.hits]

    def top_clusters(self, mark: str) -> list[tuple[str, int]]:
        """(key of the winner, losers) of the biggest clusters of a kind."""
        kind = self.clusters.kinds[mark]
        return [(key, numbers[0]) for key, numbers in kind.winners.top(CLUSTERS)]


def place(sample: Sample) -> Place:
    return sample.shard, sample.row["key"]


def survey(
    config: ReportConfig,
    folders: Sequence[str],
    *,
    judge: Judge | None,
    truth: Truth | None,
    shards: str | None,
) -> Survey:
    """Reads the sidecars.

    Args:
        folders: column folders that stand.
        judge: pack's judgement; None when nothing was packed yet.
        shards: pack's output folder, where something was packed.
    """
    source = open_source(config.images or "", folders, seed=config.seed, max_shards=config.max_shards)
    schema = source.schema()
    known = set(number_columns(schema))
    scores = [name for name in source.column_names() if name in known]
    rule = read_rule(judge.conditions if judge else [], schema, scores, first=config.score)
    names = {config.score.lower(), *rule.columns, *clusters.COLUMNS, *bootstrapped.COLUMNS}
    names |= (judge.columns if judge else set()) | ({"url", "caption"} if truth else set())
    source = replace(source, names=frozenset(names))
    rule, edges = _with_edges(rule, source, judge)
    room = int(ROWS_PART * config.page_mb * 1e6 / (BYTES_A_CODE * max(1, len(rule.cuts))))
    main = next((i for i, cut in enumerate(rule.cuts) if cut.value.lower() == config.score.lower()), None)
    found = Survey(
        source=source,
        rows=Tally(per_group=config.thumbnails, with_truth=truth is not None),
        what_if=WhatIf(rule=rule, edges=edges, sample=min(config.sample, room)),
        languages=Languages(
            cut=None if main is None else rule.cuts[main], edges=() if main is None else edges[main]
        ),
        sites=Sites(),
        clusters=Clusters(),
        captions=Bootstrapped(),
    )

    limits = _limits(shards)

    def see(table: pa.Table, shard: Shard) -> View:
        return look(
            table, shard, judge=judge, truth=truth, score=config.score, seed=config.seed,
            far=shard.number not in source.near, limits=limits.get(shard.number),
        )  # fmt: skip

    sections: list[Section] = [
        found.rows,
        found.what_if,
        found.languages,
        found.sites,
        found.clusters,
        found.captions,
    ]
    found.rows.problems = walk(source, see, sections)
    wanted = [key for mark in found.clusters.kinds for key, _ in found.top_clusters(mark)]
    if shards is not None:
        _note_packed(found, shards)
    return replace(found, winners=look_up(source, wanted))


def _limits(shards: str | None) -> dict[int, str]:
    """Image shard -> what pack decided by looking at all samples together, where it was asked to."""
    folder = verdicts_folder(shards) if shards is not None else ""
    if not folder or not storage.isdir(folder):
        return {}
    return {s.number: s.input.url for s in inputs.shards(folder, ".parquet")}


def _with_edges(rule: Rule, source: Source, judge: Judge | None) -> tuple[Rule, list[list[str]]]:
    """The thresholds that each cut can be moved to, from the values of a few shards."""
    step = max(1, len(source.chosen) // REFERENCE_SHARDS)
    values = []
    for shard in source.chosen[::step][:REFERENCE_SHARDS]:
        try:
            table = source.read(shard)
            if judge:
                table = table.filter(pa.array(judge.basis(table)))
            table = expressions.selected(table, rule.columns)
            values.append(expressions.numbers(table, [cut.value for cut in rule.cuts]))
        except (ConfigError, InputError):
            continue  # the walk over all shards says what is wrong with it
    return rule, reference(values, rule.cuts)


def _note_packed(found: Survey, shards: str) -> None:
    """What pack chose of the captions that are shown."""
    pairs = found.captions.pairs
    numbers = {}
    for pair in pairs:
        shard = found.source.by_key(pair.sample.row["key"])
        if shard is not None:
            numbers[pair.sample.row["key"]] = shard.number
    chosen = chosen_by_pack(shards, list(numbers), numbers) if pairs else {}
    found.captions.pairs = [replace(p, packed=chosen.get(p.sample.row["key"])) for p in pairs]
