"""One pass over the sidecars of an image folder: verdicts, score histograms, and a seeded sample per reason.

No picture is read here. A worker reads the parquet files of one shard, joins them as pack does
(`pipeline.columns`), judges them by pack's own rules (`pipeline.rules`), and keeps only a `Tally`: counters,
a histogram of fixed bins, and the few rows that may be shown. Tallies add up, so memory does not grow with
the number of shards. Beyond `max_shards` a seeded choice of shards stands for all, and the report says so.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import columns, inputs, storage
from pipeline.errors import ConfigError, InputError
from pipeline.inputs import Shard

#: judges a joined table: the drop reason of each row, null where it is kept
Explain = Callable[[pa.Table], pa.Array]

BINS = np.linspace(-1.0, 1.0, 401)
KEPT, SEEN, MISSED = "kept", "seen", "missed"
FAILED_EXAMPLES = 4
#: rows that the crawl itself did not bring in have no picture
_SHOWN = ("key", "caption", "url", "page_url", "width", "height", "original_width", "original_height")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row that may be shown: its values as they are stored, unclean."""

    priority: float
    shard: str
    row: Mapping[str, Any]
    score: float | None
    wrong: bool | None


@dataclass(kw_only=True)
class Tally:
    """What was counted over some shards.

    Attributes:
        shards: shards read.
        pictures: rows with a picture.
        verdicts: pictures per verdict: `kept`, a drop reason, or `seen` where nothing judges yet.
        histograms: `kept`, `dropped`, `right`, `wrong` -> counts in `BINS`.
        unscored: pictures without a score.
        truth_scores: scores of the pairs known to be `right` and `wrong`.
        truth: (`right` or `wrong`, `kept` or `dropped`) -> pictures.
        samples: verdict -> rows that may be shown.
        failed: drop reason of the crawl -> rows that may be shown.
        problems: shards that could not be read or judged, with the reason.
    """

    shards: int = 0
    pictures: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    histograms: dict[str, np.ndarray] = field(default_factory=dict)
    unscored: int = 0
    truth_scores: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    truth: Counter[tuple[str, str]] = field(default_factory=Counter)
    samples: dict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    failed: dict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    problems: list[str] = field(default_factory=list)

    def add(self, other: Tally, *, per_group: int) -> None:
        self.shards += other.shards
        self.pictures += other.pictures
        self.unscored += other.unscored
        self.verdicts.update(other.verdicts)
        self.truth.update(other.truth)
        self.problems += other.problems
        for name, counts in other.histograms.items():
            self.histograms[name] = self.histograms.get(name, 0) + counts
        for name, scores in other.truth_scores.items():
            self.truth_scores[name] += scores
        for mine, theirs, most in (
            (self.samples, other.samples, per_group),
            (self.failed, other.failed, FAILED_EXAMPLES),
        ):
            for name, rows in theirs.items():
                mine[name] = sorted(mine[name] + rows, key=lambda s: (s.priority, s.row["key"]))[:most]

    @property
    def scored(self) -> bool:
        return any(counts.sum() for counts in self.histograms.values())


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Which pairs are known to be right or wrong: parallel arrays of pair marks and answers."""

    marks: pa.Array
    wrong: pa.Array
    by_caption: bool

    def of(self, table: pa.Table) -> np.ndarray:
        """1 wrong, 0 right, -1 unknown for every row."""
        found = pc.index_in(_pair_marks(table, by_caption=self.by_caption), value_set=self.marks)
        answers = self.wrong.take(found).cast(pa.int8())
        return np.asarray(pc.fill_null(answers, -1))


def read_truth(url: str) -> Truth:
    """Reads a truth table: `url`, `is_wrong` (null: not to be judged), and `caption` where one address was
    shown with several.

    Raises:
        ConfigError: it does not exist, is no parquet, or lacks a column.
    """
    try:
        with storage.open_read(url) as stream:
            table = columns.normalise(pq.read_table(stream))
    except (FileNotFoundError, pa.ArrowException) as error:
        raise ConfigError(f"truth {url!r} is no readable parquet file: {error}") from error
    missing = [name for name in ("url", "is_wrong") if name not in table.column_names]
    if missing:
        found = ", ".join(table.column_names)
        raise ConfigError(
            f"truth {url!r} has no column {missing[0]!r}; it needs url and is_wrong, found {found}"
        )
    by_caption = "caption" in table.column_names
    wrong = table["is_wrong"].cast(pa.bool_()).combine_chunks()
    return Truth(marks=_pair_marks(table, by_caption=by_caption), wrong=wrong, by_caption=by_caption)


def _pair_marks(table: pa.Table, *, by_caption: bool) -> pa.Array:
    urls = pc.fill_null(table["url"], "")
    if by_caption:
        urls = pc.binary_join_element_wise(urls, pc.fill_null(table["caption"], ""), "\n")
    return urls.combine_chunks() if isinstance(urls, pa.ChunkedArray) else urls


def tally(
    images: str,
    folders: Sequence[str],
    *,
    explain: Explain | None,
    truth: Truth | None,
    score: str,
    per_group: int,
    seed: int,
    max_shards: int,
) -> tuple[Tally, int]:
    """Reads the sidecars of at most `max_shards` shards; returns the tally and how many shards there are.

    Args:
        folders: column folders that stand.
        explain: pack's judgement; None when nothing was packed yet.
        score: column of the histogram.
    """
    every = inputs.shards(images, ".parquet")
    chosen = every
    if len(every) > max_shards:
        chosen = sorted(random.Random(seed).sample(every, max_shards), key=lambda s: s.number)
    opened = [columns.open_folder(folder) for folder in folders]

    def work(shard: Shard) -> Tally:
        try:
            sidecars = [f.shard(shard.number).url for f in opened]
            table = columns.read_joined(shard.input.url, sidecars)
            return tally_table(
                table, shard, explain=explain, truth=truth, score=score, per_group=per_group, seed=seed
            )
        except (ConfigError, InputError) as error:
            # A report about a broken chain has to tell which shard is broken, not to break itself.
            return Tally(problems=[f"shard {shard.stem}: {error}"])

    total = Tally()
    with ThreadPoolExecutor(4) as pool:
        for one in pool.map(work, chosen):
            total.add(one, per_group=per_group)
    return total, len(every)


def tally_table(
    table: pa.Table,
    shard: Shard,
    *,
    explain: Explain | None,
    truth: Truth | None,
    score: str,
    per_group: int,
    seed: int,
) -> Tally:
    """Counts one joined shard, whose rows are every URL that the crawl tried."""
    rng = np.random.default_rng([seed, shard.number])
    priority = rng.random(len(table))
    has_picture = np.asarray(pc.equal(pc.fill_null(table["status"], ""), columns.SUCCESS))
    reasons = _strings(explain(table) if explain else pa.nulls(len(table), pa.string()))
    verdict = np.where(reasons == "", KEPT if explain else SEEN, reasons)
    scores = _numbers(table, score)
    answers = truth.of(table) if truth else np.full(len(table), -1)
    found = Tally(shards=1, pictures=int(has_picture.sum()))
    found.verdicts = Counter(verdict[has_picture].tolist())
    found.unscored = int(np.isnan(scores[has_picture]).sum())

    kept = verdict == (KEPT if explain else SEEN)
    valid = has_picture & ~np.isnan(scores)
    for name, chosen in (
        ("kept", kept),
        ("dropped", ~kept),
        ("right", answers == 0),
        ("wrong", answers == 1),
    ):
        found.histograms[name] = np.histogram(np.clip(scores[chosen & valid], -1, 1), BINS)[0]
    for name, answer in (("right", 0), ("wrong", 1)):
        known = has_picture & (answers == answer)
        found.truth_scores[name].append(scores[known & valid])
        if explain:
            found.truth[name, "kept"] = int((known & kept).sum())
            found.truth[name, "dropped"] = int((known & ~kept).sum())

    def choose(rows: np.ndarray, most: int) -> list[Sample]:
        best = rows[np.argsort(priority[rows], kind="stable")][:most]
        return [_sample(table, int(i), shard, priority, scores, answers) for i in best]

    for name in found.verdicts:
        found.samples[name] = choose(np.flatnonzero(has_picture & (verdict == name)), per_group)
    if truth and explain:
        found.samples[MISSED] = choose(np.flatnonzero(has_picture & kept & (answers == 1)), per_group)
    failures = _strings(table["reason"])
    for name in set(failures[~has_picture].tolist()):
        found.failed[name] = choose(np.flatnonzero(~has_picture & (failures == name)), FAILED_EXAMPLES)
    return found


def _sample(
    table: pa.Table, i: int, shard: Shard, priority: np.ndarray, scores: np.ndarray, answers: np.ndarray
) -> Sample:
    row = {name: table[name][i].as_py() for name in _SHOWN if name in table.column_names}
    return Sample(
        priority=float(priority[i]),
        shard=shard.sibling(".tar"),
        row=row,
        score=None if np.isnan(scores[i]) else float(scores[i]),
        wrong=None if answers[i] < 0 else bool(answers[i]),
    )


def _strings(array: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.array(pc.fill_null(array, "").to_pylist(), dtype=object)


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column as float64, NaN where it is null or does not stand."""
    if name not in table.column_names or not pa.types.is_floating(table[name].type):
        return np.full(len(table), np.nan)
    return table[name].cast(pa.float64()).to_numpy()


def ranking_auc(right: np.ndarray, wrong: np.ndarray) -> float | None:
    """Area under the ROC curve: how often a right pair scores above a wrong one, ties counting half."""
    if not len(right) or not len(wrong):
        return None
    ordered = np.sort(wrong)
    below = np.searchsorted(ordered, right, "left")
    equal = np.searchsorted(ordered, right, "right") - below
    return float((below.sum() + 0.5 * equal.sum()) / (len(right) * len(wrong)))
