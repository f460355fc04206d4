"""The thresholds of a rule: which of its parts compare a number with a constant, and which columns could be.

A rule is a list of parts that all must hold. A part `clip_score >= 0.28` is a *cut*: it can be moved while
every other part stays in force. `clip_score >= CASE WHEN language = 'en' THEN 0.28 ELSE 0.26 END` is two
cuts, each over its own rows. `near_duplicate_of IS NULL` is a cut over `near_distance`: how near is too near.
A score that the rule does not name is a cut as well, which is not asked until it is moved.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from jobs.reporting.expressions import Node, columns_in, conjuncts, constant, kind_of, parse, text_of
from pipeline.errors import ConfigError

#: cuts that one page can move; what is beyond stays as the rule has it
MAX_CUTS = 16
_COMPARISONS = {
    "COMPARE_GREATERTHANOREQUALTO": ">=",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_LESSTHAN": "<",
}
_TURNED = {">=": "<=", ">": "<", "<=": ">=", "<": ">"}
#: what marks duplicates -> the column that says how alike they are, and what of it is kept. `--name` replaces
#: the first word of each
_PAIRS = (
    (re.compile(r"(.+)_duplicate_of"), "{}_distance", ">"),
    (re.compile(r"(.+)_duplicate_of"), "{}_similarity", "<"),
    (re.compile(r"(.+)_by"), "contamination_distance", ">"),
)
_MARK = re.compile(r'"?(\w+)"? IS NULL')
#: of these less is better
_LESS = re.compile(r"unsafe|nsfw|watermark|toxic|blur|noise|spam|distance|entropy_loss")
#: numbers that are names
_NO_SCORE = re.compile(r"_cluster$|_id$|^key$|_index$")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One threshold that can be moved.

    Attributes:
        value: SQL of what is compared.
        op: how: what is kept has `value op threshold`.
        start: the threshold of the rule; None where the rule has none of its own (`off`).
        part: which part of the rule it replaces; -1: it comes on top of the rule.
        level: SQL of the threshold of each row, where that depends on the row; the cut is over rows that
            have `start` there.
        only: which rows these are, in words.
        mark: column that is null where the cut does not apply: it marks duplicates.
        off: what it says of a row while it is off: true, everything passes; false, nothing does.
        single: whether DuckDB compares in 32 bits.
        suffix: what a threshold needs behind it to be compared as the rule's is.
    """

    value: str
    op: str
    start: float | None
    part: int = -1
    level: str = ""
    only: str = ""
    mark: str = ""
    off: bool = True
    single: bool = True
    suffix: str = ""

    @property
    def above(self) -> bool:
        """Whether what lies above the threshold is kept."""
        return self.op in (">=", ">")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One condition of the rule. pieces: its SQL, in which an int is the place of that cut's threshold."""

    text: str
    pieces: tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The whole rule. columns: what its cuts read beside what the rule names (lower case)."""

    parts: tuple[Part, ...]
    cuts: tuple[Cut, ...]

    @property
    def fixed(self) -> tuple[int, ...]:
        """The parts that no cut replaces."""
        moved = {cut.part for cut in self.cuts}
        return tuple(i for i in range(len(self.parts)) if i not in moved)

    @property
    def columns(self) -> set[str]:
        names = {c for part in self.parts for c in columns_in(parse(part.text))}
        for cut in self.cuts:
            names |= set(columns_in(parse(cut.value))) | ({cut.mark.lower()} if cut.mark else set())
        return names


def read_rule(texts: Sequence[str], schema: pa.Schema, scores: Sequence[str], *, first: str = "") -> Rule:
    """Takes a rule apart.

    Args:
        texts: its conditions.
        schema: of the joined table.
        scores: numeric columns that are worth a threshold, though the rule may not name them.
        first: the column whose cut comes first.
    """
    parts: list[Part] = []
    cuts: list[Cut] = []
    for text in [part for one in texts for part in _split(one)]:
        found = _cuts_of(text, schema, len(parts))
        pieces: tuple[str | int, ...] = (text,)
        if found and len(cuts) + len(found) <= MAX_CUTS:
            pieces = _pieces(text, found, len(cuts))
            cuts += found
        parts.append(Part(text=text, pieces=pieces))
    for extra in _extra(scores, schema, cuts):
        if len(cuts) < MAX_CUTS:
            cuts.append(extra)
    order = sorted(range(len(cuts)), key=lambda i: (cuts[i].value != first, cuts[i].part < 0))
    place = {old: new for new, old in enumerate(order)}
    return Rule(
        parts=tuple(
            replace(part, pieces=tuple(place[p] if isinstance(p, int) else p for p in part.pieces))
            for part in parts
        ),
        cuts=tuple(cuts[i] for i in order),
    )


def _split(text: str) -> list[str]:
    """The parts that AND joins; BETWEEN is two."""
    found = []
    for part in conjuncts(text):
        node = parse(part)
        if node.get("class") == "BETWEEN":
            value, low, high = (text_of(node[name]) for name in ("input", "lower", "upper"))
            found += [f"{value} >= {low}", f"{value} <= {high}"]
        else:
            found.append(part)
    return found


def _cuts_of(text: str, schema: pa.Schema, part: int) -> list[Cut]:
    """The cuts that a condition is made of; none where it is something else."""
    if marked := _MARK.fullmatch(text):
        cut = _pair(marked[1], schema)
        return [replace(cut, part=part, off=False)] if cut else []
    node = parse(text)
    op = _COMPARISONS.get(str(node.get("type")))
    if op is None:
        return []
    value, level = node["left"], node["right"]
    if not set(columns_in(value)):
        value, level, op = level, value, _TURNED[op]
    if not set(columns_in(value)) or set(columns_in(value)) & set(columns_in(level)):
        return []
    sql, limit = text_of(value), text_of(level)
    try:
        kind = kind_of(f"greatest({sql}, {limit})", schema)
    except ConfigError:
        return []
    if not re.match(r"FLOAT|DOUBLE|DECIMAL|U?(TINY|SMALL|BIG|HUGE)?INT", kind):
        return []
    wider = "::DOUBLE" if kind == "DOUBLE" and kind_of(sql, schema) == "FLOAT" else ""
    base = Cut(value=sql, op=op, start=None, part=part, single=kind == "FLOAT", suffix=wider)
    if level.get("class") == "CASE":
        return _by_case(base, level, limit)
    number = constant(limit) if not set(columns_in(level)) else None
    return [] if number is None else [replace(base, start=number)]


def _by_case(base: Cut, level: Node, limit: str) -> list[Cut]:
    """A threshold that a CASE chooses among constants: a cut for each of them."""
    branches = [(text_of(check["when_expr"]), check["then_expr"]) for check in level["case_checks"]]
    branches.append(("", level["else_expr"]))
    rows: dict[float, list[str]] = {}
    for when, then in branches:
        number = None if set(columns_in(then)) else constant(text_of(then))
        if number is not None:
            rows.setdefault(number, []).append(when or "otherwise")
        elif set(columns_in(then)) or text_of(then).upper() != "NULL":
            return []
    return [
        replace(base, start=number, level=limit, only=" or ".join(whens)) for number, whens in rows.items()
    ]


def _pieces(text: str, cuts: Sequence[Cut], number: int) -> tuple[str | int, ...]:
    """The SQL of a condition with the places of its thresholds."""
    cut = cuts[0]
    if cut.mark:
        return (f"({cut.mark} IS NULL OR {cut.value} {cut.op} ", number, ")")
    head = f"{cut.value} {cut.op} "
    if not cut.level:
        return (head, number)
    pieces: list[str | int] = [f"{head}CASE"]
    places = {c.start: number + i for i, c in enumerate(cuts)}
    level = next(n for n in (parse(text)["left"], parse(text)["right"]) if n.get("class") == "CASE")
    for check in level["case_checks"]:
        pieces += [f" WHEN {text_of(check['when_expr'])} THEN ", *_place(check["then_expr"], places)]
    pieces += [" ELSE ", *_place(level["else_expr"], places), " END"]
    return tuple(pieces)


def _place(node: Node, places: dict[float | None, int]) -> list[str | int]:
    text = text_of(node)
    number = constant(text)
    return [places[number]] if number is not None else [text]


def _pair(mark: str, schema: pa.Schema) -> Cut | None:
    """The cut that a mark of duplicates stands for, where the table says how alike they are."""
    known = {name.lower(): name for name in schema.names}
    for pattern, measure, op in _PAIRS:
        found = pattern.fullmatch(mark.lower())
        name = known.get(measure.format(found[1])) if found else None
        if name is not None and mark.lower() in known:
            single = pa.types.is_float32(schema.field(name).type)
            return Cut(value=name, op=op, start=None, mark=known[mark.lower()], single=single)
    return None


def _extra(scores: Sequence[str], schema: pa.Schema, cuts: Sequence[Cut]) -> list[Cut]:
    """Cuts over scores that no part of the rule compares."""
    moved = {cut.value.strip('"').lower() for cut in cuts}
    marks = [pair for name in schema.names if (pair := _pair(name, schema)) is not None]
    found = [pair for pair in marks if pair.value.lower() not in moved]
    moved |= {pair.value.lower() for pair in marks}
    for name in scores:
        if name.lower() in moved or _NO_SCORE.search(name.lower()):
            continue
        op = "<=" if _LESS.search(name.lower()) else ">="
        single = pa.types.is_float32(schema.field(name).type)
        found.append(Cut(value=quoted(name), op=op, start=None, single=single))
    return found


def quoted(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_]\w*", name) else '"' + name.replace('"', '""') + '"'


def number_columns(schema: pa.Schema) -> list[str]:
    """Columns of numbers."""
    return [f.name for f in schema if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)]
