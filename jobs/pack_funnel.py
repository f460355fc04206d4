"""The figures of a dry run as a table for people, and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from jobs.pack_dry_run import KEPT, DryRun, Rule
from pipeline.settings import semantic_config
from pipeline.stages.pack.rule import Limits, RuleOptions

#: languages and moves that are printed; the rest is counted
SHOWN = 12
_NAMES = ("this rule", "the other rule")


def render(found: DryRun) -> str:
    """The whole report."""
    tally = found.tally
    lines = [f"{tally.rows:,} rows in {tally.shards:,} shards; nothing was written"]
    for number, rule in enumerate(found.rules):
        lines += ["", *_funnel(found, number, rule)]
    if len(found.rules) > 1:
        lines += ["", *_comparison(found)]
    if tally.languages:
        lines += ["", *_languages(found)]
    return "\n".join(lines)


def as_json(found: DryRun) -> dict[str, Any]:
    """The same as JSON values; reasons in the order in which they are asked."""
    tally = found.tally
    value: dict[str, Any] = {"shards": tally.shards, "rows": tally.rows, "rules": []}
    for number, rule in enumerate(found.rules):
        under = tally.under(number)
        dropped = {reason: under[reason] for reason in rule.order(under)}
        value["rules"].append({"rule": asked(rule.options), "kept": under[KEPT], "dropped": dropped})
        if tally.languages is not None:
            value["rules"][-1]["languages"] = {
                language: {"rows": rows, "kept": kept} for language, rows, kept in _by_language(found, number)
            }
    if len(found.rules) > 1:
        value["compared"] = dict(zip(_FATES, _fates(found), strict=True))
        value["moved"] = [{"from": one, "to": other, "rows": rows} for one, other, rows in _moved(found)]
    return value


def asked(rule: RuleOptions) -> dict[str, Any]:
    """The options of a rule that are not at their defaults."""
    default = RuleOptions()
    names = ("where", "preset", "uids", "captions", "max_per_text", "max_per_domain", "top", "by", "of")
    given = {name: getattr(rule, name) for name in names if getattr(rule, name) != getattr(default, name)}
    return {n: semantic_config(v) if n == "captions" else v for n, v in given.items()}


def describe(rule: RuleOptions) -> str:
    """A rule in a line."""
    limits, words = Limits.of(rule), []
    words += [f"preset {rule.preset}"] if rule.preset else []
    words += [" ".join(rule.where.split())] if rule.where else []
    words += [f"uids {rule.uids}"] if rule.uids else []
    words += [f"captions {rule.captions.policy}"] if rule.captions.policy else []
    words += [f"{limits.per_text:,} a text"] if limits.per_text else []
    words += [f"{limits.per_domain:,} a domain"] if limits.per_domain else []
    words += [f"top {rule.top} of {rule.of} by {rule.by}"] if rule.top is not None else []
    return "; ".join(words) or "every picture"


def _funnel(found: DryRun, number: int, rule: Rule) -> list[str]:
    under, rows = found.tally.under(number), found.tally.rows
    left, body = rows, []
    for reason in rule.order(under):
        left -= under[reason]
        body.append((reason, f"{under[reason]:,}", _share(under[reason], rows), f"{left:,}"))
    body.append(("kept", f"{under[KEPT]:,}", _share(under[KEPT], rows), ""))
    head = _NAMES[number] if len(found.rules) > 1 else "rule"
    return [f"{head}: {describe(rule.options)}", *_columns(("reason", "rows", "share", "left"), body)]


_FATES = ("both", "only_this", "only_other", "neither")


def _fates(found: DryRun) -> tuple[int, int, int, int]:
    fates: Counter[tuple[bool, bool]] = Counter()
    for (one, other), rows in found.tally.moves.items():
        fates[one == KEPT, other == KEPT] += rows
    return fates[True, True], fates[True, False], fates[False, True], fates[False, False]


def _moved(found: DryRun) -> list[tuple[str, str, int]]:
    """(reason under this rule, reason under the other one, rows) where they differ, most rows first."""
    moved = [(a or "kept", b or "kept", n) for (a, b), n in found.tally.moves.items() if a != b]
    return sorted(moved, key=lambda move: (-move[2], move[0], move[1]))


def _comparison(found: DryRun) -> list[str]:
    rows = found.tally.rows
    names = ("by both", "only by this rule", "only by the other", "by neither")
    body = [(name, f"{n:,}", _share(n, rows)) for name, n in zip(names, _fates(found), strict=True)]
    lines = _columns(("kept", "rows", "share"), body)
    moved = _moved(found)
    if moved:
        shown = [(a, b, f"{n:,}") for a, b, n in moved[:SHOWN]]
        lines += ["", *_columns((_NAMES[0], _NAMES[1], "rows"), shown, left=2)]
    if len(moved) > SHOWN:
        lines.append(
            f"  and {len(moved) - SHOWN:,} more such moves of {sum(n for *_, n in moved[SHOWN:]):,} rows"
        )
    return lines


def _by_language(found: DryRun, number: int) -> list[tuple[str, int, int]]:
    """(language, rows, kept under a rule), most rows first."""
    rows: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for (language, *fates), n in (found.tally.languages or {}).items():
        rows[language] += n
        kept[language] += n if fates[number] == KEPT else 0
    order = sorted(rows, key=lambda language: (-rows[language], language))
    return [(language or "none", rows[language], kept[language]) for language in order]


def _languages(found: DryRun) -> list[str]:
    each = [_by_language(found, number) for number in range(len(found.rules))]
    body = [
        (rows[0][0], f"{rows[0][1]:,}", *(f"{kept:,}" for _, _, kept in rows))
        for rows in zip(*each, strict=True)
    ]
    heads = ("kept",) if len(each) == 1 else ("kept by this", "by the other")
    lines = _columns(("language", "rows", *heads), body[:SHOWN])
    return [*lines, f"  and {len(body) - SHOWN:,} more languages"] if len(body) > SHOWN else lines


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _columns(head: Sequence[str], body: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Lines of a table; the first `left` columns flush left, the others right."""
    widths = [max(len(row[at]) for row in (head, *body)) for at in range(len(head))]
    lines = []
    for row in (head, *body):
        cells = [
            c.ljust(w) if at < left else c.rjust(w) for at, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
