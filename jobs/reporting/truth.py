"""Pairs whose truth is known: which captions are right or wrong, and how well a score tells them apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import columns, storage
from pipeline.errors import ConfigError


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


def ranking_auc(right: np.ndarray, wrong: np.ndarray) -> float | None:
    """Area under the ROC curve: how often a right pair scores above a wrong one, ties counting half."""
    if not len(right) or not len(wrong):
        return None
    ordered = np.sort(wrong)
    below = np.searchsorted(ordered, right, "left")
    equal = np.searchsorted(ordered, right, "right") - below
    return float((below.sum() + 0.5 * equal.sum()) / (len(right) * len(wrong)))
