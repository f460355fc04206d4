"""What pack may be asked to keep: what a sample must satisfy alone, then what is asked of all together.

The order is fixed, whatever the order of the options: first what is asked of each sample alone (tombstones,
uids, preset, predicate, captions), then at most N pairs with one text, then at most N of one domain, then the
top by a column. What is asked first drops first, so each later step chooses among what is left.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from fractions import Fraction

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.rules import get_preset
from pipeline.settings import location, since
from pipeline.stages.pack.captions import CaptionOptions

#: what the top is a part of
KEPT, ALL = "kept", "all"
#: the reasons of what is asked of all samples together, in the order in which they are asked
PER_TEXT, PER_DOMAIN, BELOW_TOP, BELOW_TOP_NULL = (
    "max_per_text",
    "max_per_domain",
    "below_top",
    "below_top_null",
)
GLOBAL_REASONS = (PER_TEXT, PER_DOMAIN, BELOW_TOP, BELOW_TOP_NULL)

_PERCENT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*%")


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """What is kept. All that are given must hold.

    Attributes:
        where: keep samples for which this SQL expression over the columns is true, such as
            `clip_score >= 0.28 AND duplicate_of IS NULL`.
        preset: keep samples that satisfy a preset of known datasets, such as `laion400m`.
        uids: keep samples whose uid is in this file: DataComp's `.npy` of pairs, or a text list.
        captions: which texts of a sample are packed.
        max_per_text: of pairs with the same text keep so many; 0 keeps all, null takes the preset's limit.
        max_per_domain: of pictures of one domain keep so many; 0 keeps all.
        top: keep the best by the column `by`: a share such as `30%`, or a number of samples.
        by: the numeric column that says what is better (greater is better).
        of: what a share is of, and what competes: `kept`, what all other options keep; `all`, every picture
            (a sample is kept when it is in the top of all and the other options keep it too).
    """

    where: str | None = None
    preset: str | None = None
    uids: str | None = location(None)
    captions: CaptionOptions = since(CaptionOptions())
    max_per_text: int | None = since(None)
    max_per_domain: int | None = since(None)
    top: int | str | None = since(None)
    by: str | None = since(None)
    of: str = since(KEPT)

    def check(self) -> None:
        """Raises ConfigError for options that make no sense, before anything is read."""
        Limits.of(self)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is asked of all samples together; false where nothing is.

    per_text, per_domain: at most so many; 0: no limit. top: a share of what competes, or a number; null: no
    top. by: the column, as it was written; null only where it is not needed. of_all: whether every picture
    competes.
    """

    per_text: int = 0
    per_domain: int = 0
    top: Fraction | int | None = None
    by: str | None = None
    of_all: bool = False

    @classmethod
    def of(cls, rule: RuleOptions) -> Limits:
        """Raises ConfigError for a limit below 0, a top that is none, or options that need each other."""
        per_text = rule.max_per_text
        if per_text is None:
            per_text = (get_preset(rule.preset).max_per_text if rule.preset is not None else None) or 0
        per_domain = rule.max_per_domain or 0
        for name, value in (("max_per_text", per_text), ("max_per_domain", per_domain)):
            if value < 0:
                raise ConfigError(f"{name} {value} must be at least 1, or 0 for no limit")
        top = None if rule.top is None else parse_top(rule.top)
        if top is not None and rule.by is None:
            raise ConfigError(f"top {rule.top!r} needs --by: the column whose greatest values are kept")
        if rule.of not in (KEPT, ALL):
            raise ConfigError(f"of {rule.of!r} must be {KEPT} or {ALL}")
        if rule.of == ALL and top is None:
            raise ConfigError(f"of {ALL!r} says what the top is a part of; give --top with it")
        if rule.by is not None and top is None and not per_text and not per_domain:
            raise ConfigError(
                f"by {rule.by!r} says what is better; give --top, --max_per_text or --max_per_domain with it"
            )
        return cls(per_text=per_text, per_domain=per_domain, top=top, by=rule.by, of_all=rule.of == ALL)

    def __bool__(self) -> bool:
        return bool(self.per_text or self.per_domain or self.top is not None)

    def check(self, schema: pa.Schema) -> None:
        """Raises ConfigError when the table has no such numeric column, or lacks what a limit looks at."""
        if self.per_domain and "url" not in schema.names:
            raise ConfigError("max_per_domain needs column 'url', which is not there")
        if self.by is None:
            return
        known = {field.name.lower(): field for field in schema}
        numeric = sorted(field.name for field in schema if _is_numeric(field.type))
        if self.by.lower() not in known:
            near = difflib.get_close_matches(self.by, known, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(f"by {self.by!r} is no column{hint}; numeric columns: {', '.join(numeric)}")
        kind = known[self.by.lower()].type
        if pa.types.is_null(kind):
            raise ConfigError(f"by {self.by!r}: the column has no values; run the stage that writes it")
        if not _is_numeric(kind):
            raise ConfigError(
                f"by {self.by!r} is a column of {kind}, which has no top; numeric columns: "
                f"{', '.join(numeric)}"
            )


def parse_top(value: int | str) -> Fraction | int:
    """The share (`30%`: 3/10, exactly) or the number of samples.

    Raises:
        ConfigError: it is neither, or not above 0 and at most 100 %.
    """
    text = str(value).strip()
    if found := _PERCENT.fullmatch(text):
        share = Fraction(found[1]) / 100
        if not 0 < share <= 1:
            raise ConfigError(f"top {value!r} must be above 0% and at most 100%")
        return share
    if not text.isdecimal() or isinstance(value, bool):
        raise ConfigError(f"top {value!r} must be a share such as 30%, or a number of samples such as 100000")
    if int(text) < 1:
        raise ConfigError(f"top {value!r} must be at least 1 sample")
    return int(text)


def taken_of(top: Fraction | int, competing: int) -> int:
    """How many are in the top of so many: a share is rounded down."""
    return min(competing, top if isinstance(top, int) else math.floor(top * competing))


def _is_numeric(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
