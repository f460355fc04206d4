"""Compares what the chain did with what was planted: `judge(...)` after the demo's chain has run.

Reads the crawl's parquet (what became of every address), the score column, the packed shards (what was kept)
and the truth table, and joins them by address. An address that stands on several pages counts once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from jobs.demo.faults import FAULTS
from pipeline import columns, inputs, storage
from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What became of one address: the best that happened to any of its rows.

    Attributes:
        crawled: its picture was fetched and accepted
        score: the filter's score; None without one
        kept: it is in the packed shards
        reason: why the crawl has no picture of it; empty where it has one
    """

    crawled: bool
    score: float | None
    kept: bool
    reason: str = ""


@dataclass(kw_only=True)
class Verdict:
    """What `judge` found.

    Attributes:
        auc: how often a right pair scores above a wrong one, over crawled pairs; None without both
        auc_by_overlap: the same against the wrong captions of one kind of overlap
        right: counts of rightly captioned pairs without exact duplicates: crawled, kept, dropped
        duplicates: the same of pictures that stand at two addresses: one of each two is to be dropped
        wrong: counts of wrongly captioned pairs: crawled, caught, missed
        boilerplate: the same of texts that describe nothing
        fates: fault -> reason (or `kept`, `dropped`) -> addresses
        surprises: sentences about faults that did not meet the fate they ought to
    """

    auc: float | None = None
    auc_by_overlap: dict[str, float] = field(default_factory=dict)
    right: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, int] = field(default_factory=dict)
    boilerplate: dict[str, int] = field(default_factory=dict)
    fates: dict[str, dict[str, int]] = field(default_factory=dict)
    surprises: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def judge(
    truth: str | Path,
    *,
    images: str,
    column_folders: Sequence[str],
    shards: str,
    score: str = "clip_score",
) -> Verdict:
    """The chain's work against the truth.

    Args:
        truth: the world's `truth.parquet`
        images: output of crawl
        column_folders: outputs of score (and dedup) over these images
        shards: output of pack
        score: the column whose ranking is judged

    Raises:
        ConfigError: a folder is missing, or the images have no column `score`.
    """
    fates = read_fates(images=images, column_folders=column_folders, shards=shards, score=score)
    with storage.open_read(str(truth)) as stream:
        planted = pq.read_table(stream).to_pylist()
    return compare(planted, fates)


def read_fates(*, images: str, column_folders: Sequence[str], shards: str, score: str) -> dict[str, Fate]:
    """What became of every address that the crawl tried."""
    packed = set()
    for shard in inputs.shards(shards, ".parquet"):
        table = columns.read_images(shard.input.url)
        packed |= set(zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True))
    folders = [columns.open_folder(folder) for folder in column_folders]
    fates: dict[str, Fate] = {}
    for shard in inputs.shards(images, ".parquet"):
        table = columns.read_joined(shard.input.url, [f.shard(shard.number).url for f in folders])
        if score not in table.column_names:
            raise ConfigError(f"no column {score!r} in {list(column_folders)}; name the output of score")
        wanted = table.select(["url", "caption", "status", "reason", score])
        for row in wanted.to_pylist():
            crawled = row["status"] == columns.SUCCESS
            kept = crawled and (row["url"], row["caption"]) in packed
            fate = Fate(crawled=crawled, score=row[score], kept=kept, reason=row["reason"] or "")
            before = fates.get(row["url"])
            if before is None or (fate.kept, fate.crawled) > (before.kept, before.crawled):
                fates[row["url"]] = fate
    return fates


def compare(planted: Sequence[dict[str, Any]], fates: dict[str, Fate]) -> Verdict:
    """The verdict over rows of the truth table."""
    verdict = Verdict()
    found: dict[str, Counter[str]] = defaultdict(Counter)
    scores: dict[str, list[float]] = defaultdict(list)
    for row in planted:
        fate = fates.get(row["url"])
        found[row["fault"]][_outcome(fate)] += 1
        if fate and fate.crawled and fate.score is not None and row["is_wrong"] is not None:
            scores["wrong" if row["is_wrong"] else "right"].append(fate.score)
            if row["is_wrong"]:
                scores[row["overlap"]].append(fate.score)
    verdict.fates = {fault: dict(found[fault].most_common()) for fault in FAULTS if fault in found}
    verdict.auc = ranking_auc(scores["right"], scores["wrong"])
    for overlap in ("none", "colour", "object"):
        auc = ranking_auc(scores["right"], scores[overlap])
        if auc is not None:
            verdict.auc_by_overlap[overlap] = auc
    told = {name for name, fault in FAULTS.items() if fault.crawlable and fault.told}
    verdict.right = _counts(found, sorted(told - {"wrong_caption", "duplicate_bytes"}), "kept", "dropped")
    verdict.duplicates = _counts(found, ["duplicate_bytes"], "kept", "dropped")
    verdict.wrong = _counts(found, ["wrong_caption"], "missed", "caught")
    verdict.boilerplate = _counts(found, ["boilerplate_alt"], "missed", "caught")
    verdict.surprises = [sentence for name in found for sentence in _surprises(name, found[name])]
    return verdict


def ranking_auc(right: Sequence[float], wrong: Sequence[float]) -> float | None:
    """Area under the ROC curve of `right` above `wrong`, ties counting half; None where one is empty."""
    if not len(right) or not len(wrong):
        return None
    ordered = np.sort(np.asarray(wrong, np.float64))
    scores = np.asarray(right, np.float64)
    below = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    return float(below.sum() / 2 / (len(scores) * len(ordered)))


def _outcome(fate: Fate | None) -> str:
    if fate is None:
        return "not tried"
    if not fate.crawled:
        return fate.reason or "unknown"
    return "kept" if fate.kept else "dropped"


def _counts(found: dict[str, Counter[str]], faults: list[str], kept: str, dropped: str) -> dict[str, int]:
    """Over some faults: how many were crawled, and how many of these were kept and dropped."""
    total = sum((found[name] for name in faults), Counter())
    return {
        "planted": sum(total.values()),
        "crawled": total["kept"] + total["dropped"],
        kept: total["kept"],
        dropped: total["dropped"],
    }


def _surprises(name: str, outcomes: Counter[str]) -> list[str]:
    """What ought to have been crawled and was not, and the other way round."""
    crawled = outcomes["kept"] + outcomes["dropped"]
    total = sum(outcomes.values())
    if FAULTS[name].crawlable and crawled < total:
        missing = {reason: n for reason, n in outcomes.items() if reason not in ("kept", "dropped")}
        return [f"{total - crawled} of {total} '{name}' pictures could not be fetched: {missing}"]
    if not FAULTS[name].crawlable and outcomes["kept"]:
        return [f"{outcomes['kept']} of {total} '{name}' pictures were kept ({FAULTS[name].about})"]
    return []
