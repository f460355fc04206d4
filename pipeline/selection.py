"""Which rows are kept, and why each other row is not: a preset, a predicate, a list of uids.

Pack decides with this, and the report tells with the same function what a threshold would do; so both always
agree. The first thing that stands against a row names its reason: what the crawl said (`timeout`), or
`not_in_uids`, or the first failing rule of a preset (`low_clip_score`), or `predicate`. A rule whose value is
null does not keep the row, and adds `_null` to the reason.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.columns import SUCCESS
from pipeline.predicate import PREDICATE, Predicate
from pipeline.rules import get_preset
from pipeline.uids import UidSet

NOT_IN_UIDS = "not_in_uids"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a sample must satisfy; everything given must hold.

    where: a predicate (`pipeline.predicate`).
    preset: the name of a preset of `pipeline.rules`.
    uids: only samples with these uids.
    """

    where: str | None = None
    preset: str | None = None
    uids: UidSet | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raises ConfigError when the preset is unknown or the predicate is not one expression."""
        self.rules()

    def rules(self) -> list[tuple[str, Predicate]]:
        """Reason and expression of each rule, in the order in which they are asked."""
        rules = []
        if self.preset is not None:
            rules += [(name, _predicate(text)) for name, text in get_preset(self.preset).rules()]
        if self.where is not None:
            rules.append((PREDICATE, _predicate(self.where)))
        return rules

    def check(self, schema: pa.Schema) -> None:
        """Raises ConfigError unless all rules can be asked of tables of this schema."""
        if self.preset is not None:
            get_preset(self.preset).check_columns(schema.names)
        for _, rule in self.rules():
            rule.check(schema)

    def reasons(self, table: pa.Table) -> pa.StringArray:
        """Why each row of a joined table (`pipeline.columns`) is dropped; null where it is kept.

        Raises:
            ConfigError: a rule cannot be evaluated over the table.
        """
        reasons = table["reason"].combine_chunks()
        failed = pc.fill_null(pc.not_equal(table["status"], SUCCESS), True).combine_chunks()
        reasons = pc.if_else(pc.and_(failed, pc.is_null(reasons)), "unknown", reasons)
        if self.uids is not None:
            outside = pc.invert(self.uids.contains(table["uid"]))
            reasons = pc.coalesce(reasons, pc.if_else(outside, NOT_IN_UIDS, pa.scalar(None, pa.string())))
        # only what could be kept is asked, so that no cast fails on rows without a picture
        for name, rule in self.rules():
            open_rows = pc.indices_nonzero(pc.is_null(reasons))
            if not len(open_rows):
                break
            verdict = rule.refusals(table.take(open_rows), name)
            reasons = pc.replace_with_mask(reasons, pc.is_null(reasons), verdict)
        return reasons


@functools.lru_cache(maxsize=256)
def _predicate(text: str) -> Predicate:
    """Reading one takes longer than asking it of a whole shard."""
    return Predicate(text)


def explain_rows(
    table: pa.Table, *, where: str | None = None, preset: str | None = None, uids: UidSet | None = None
) -> pa.StringArray:
    """`Selection(...).reasons(table)`: the drop reason of each row, null where it is kept."""
    return Selection(where=where, preset=preset, uids=uids).reasons(table)
