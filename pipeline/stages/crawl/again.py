"""Which rows of finished image shards are fetched again: those a predicate names, with some that never are.

A picture that stands is not fetched again, whatever the predicate says. Nor is what somebody forbade (an
opt-out, an address that is refused, a take-down, a rule that was asked before the fetching), nor what was
fetched well and then judged (below the floor of a fused crawl).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns
from pipeline.predicate import Predicate
from pipeline.stages.crawl.rows import NOT_ASKED

#: what the choice looks at beside the columns that the predicate names
JUDGED = ("status", "reason", "error_message")
#: reasons that no predicate brings back
NEVER = frozenset({"opt_out", "refused_address", "taken_down", "no_url", "below_floor", "below_floor_null"})
#: how a picture that stands, and a row refused before it was asked for, are counted among those left out
STANDS, REFUSED = "pictures that stand", "refused by a rule"
#: shards that are read at a time
READERS = 8


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a predicate means for one shard: positions of the rows to fetch again, in order, and how many
    that it also names are left out, by reason."""

    positions: list[int]
    left_out: Counter[str] = field(default_factory=Counter)


def choose(table: pa.Table, where: Predicate) -> Choice:
    """Chooses rows of an image shard's parquet, of which `table` has at least `JUDGED` and what is named.

    A column that other shards have and this one has not (lists differ in what they carry) is null here.

    Raises:
        ConfigError: the predicate cannot be evaluated.
    """
    known = {name.lower() for name in table.column_names}
    for name in sorted(where.columns - known):
        table = table.append_column(name, pa.nulls(len(table)))
    named = pc.fill_null(where.evaluate(table), False)
    positions: list[int] = []
    left_out: Counter[str] = Counter()
    facts = table.select(JUDGED).filter(named)
    rows = zip(pc.indices_nonzero(named).to_pylist(), *(c.to_pylist() for c in facts.columns), strict=True)
    for position, status, reason, message in rows:
        why_not = _forbidden(status, reason, message)
        if why_not is None:
            positions.append(position)
        else:
            left_out[why_not] += 1
    return Choice(positions=positions, left_out=left_out)


def _forbidden(status: str | None, reason: str | None, message: str | None) -> str | None:
    if status == columns.SUCCESS:
        return STANDS
    if reason in NEVER:
        return reason
    return REFUSED if message == NOT_ASKED else None


def survey(shards: Sequence[tuple[int, str]], where: Predicate) -> Iterator[tuple[int, Choice]]:
    """The choice for each (number, parquet) in their order, read from the columns that matter alone.

    Raises:
        ConfigError: no shard has a column that the predicate names, or the predicate cannot be evaluated.
        InputError: a shard cannot be read.
    """
    missing = set(where.columns)
    schema = pa.schema([])

    def look(url: str) -> tuple[pa.Schema, Choice]:
        found = columns.read_schema(url)
        names = [n for n in found.names if n.lower() in where.columns or n in JUDGED]
        return found, choose(columns.read_parquet(url, names), where)

    with ThreadPoolExecutor(READERS) as pool:
        for chunk in _chunks(shards, 4 * READERS):
            answers = pool.map(look, [url for _, url in chunk])
            for (number, _), (found, choice) in zip(chunk, answers, strict=True):
                missing -= {name.lower() for name in found.names}
                schema = found if not schema.names else schema
                yield number, choice
    if missing and schema.names:
        where.check(schema)


def _chunks(items: Sequence[tuple[int, str]], size: int) -> Iterable[Sequence[tuple[int, str]]]:
    """A few at a time, so that the answers of a hundred thousand shards do not pile up."""
    return (items[start : start + size] for start in range(0, len(items), size))
