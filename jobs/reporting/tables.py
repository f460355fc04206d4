"""Tables of the report: evaluation results in known shapes, and any other result file as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.reporting.runs import RunFacts
from jobs.reporting.text import clean, count, figure, plural

MAX_ROWS = 60
NAMES = {"mlm": "masked words", "itm": "matched or not", "captions": "captions written"}
CONDITIONS = (
    ("with_picture", "With the picture"),
    ("withheld", "Picture withheld"),
    ("shuffled", "Wrong picture"),
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text; the first of each row is its heading. `current` is the row that is marked."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    current: int = -1


def results(runs: Sequence[RunFacts]) -> list[dict[str, Any]]:
    """Every result file of every run: name, a sentence, tables."""
    found = []
    for run in runs:
        rank = {"retrieval": 0, "itm": 1, "mlm": 2, "captions": 3}
        for name, value in sorted(run.results, key=lambda item: rank.get(item[0], len(rank))):
            words, shown = _result(name, value)
            found.append(
                {
                    "name": clean(f"{run.name}: {NAMES.get(name, name.replace('_', ' '))}"),
                    "words": words,
                    "tables": shown,
                }
            )
    return found


def headline(runs: Sequence[RunFacts]) -> list[tuple[str, str, str]]:
    """Key figures of the last run that was evaluated: (name, number, what it is to be held against)."""
    found: dict[str, tuple[str, str, str]] = {}
    for run in runs:
        for _, value in run.results:
            tr, ir = _numbers(value.get("tr")), _numbers(value.get("ir"))
            if "r10" in tr and "r10" in ir:
                chance = _numbers(value.get("chance")).get("r10")
                beside = f"IR {percent(ir['r10'])}" + (f", by chance {percent(chance)}" if chance else "")
                found["r10"] = ("Retrieval TR R@10", percent(tr["r10"]), beside)
            gain = value.get("gain_of_picture")
            if isinstance(gain, (int, float)):
                found["mlm"] = ("Masked words named", f"{100 * gain:+.1f}", "points by seeing the picture")
    return list(found.values())


def percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"


def _result(name: str, value: Mapping[str, Any]) -> tuple[str, list[Table]]:
    if _numbers(value.get("tr")) and _numbers(value.get("ir")):
        return _retrieval_words(value), [_retrieval(value)]
    accuracy = value.get("accuracy")
    if isinstance(accuracy, dict) and any(isinstance(v, dict) for v in accuracy.values()):
        if name == "itm":
            return _ITM_WORDS, [_accuracy(value, "Wrong picture of a pair", "Right answers")]
        return _mlm_words(value), [_accuracy(value, "Word", "Accuracy on masked words")]
    return "", generic(name, value)


def _retrieval(value: Mapping[str, Any]) -> Table:
    features = value.get("itc") if isinstance(value.get("itc"), dict) else {}
    assert isinstance(features, dict)
    lines = [
        ("Picture to caption (TR)", _numbers(value["tr"])),
        ("Caption to picture (IR)", _numbers(value["ir"])),
    ]
    if value.get("reranked", bool(features)):
        lines += [
            ("TR by features alone", _numbers(features.get("tr"))),
            ("IR by features alone", _numbers(features.get("ir"))),
        ]
    for key, name in CONDITIONS[1:]:
        blind = value.get(key)
        if isinstance(blind, dict):
            lines += [(f"TR, {name.lower()}", _numbers(blind.get("tr")))]
            lines += [(f"IR, {name.lower()}", _numbers(blind.get("ir")))]
    lines.append(("By chance", _numbers(value.get("chance"))))
    lines = [(name, recalls) for name, recalls in lines if recalls]
    ks = sorted({k for _, recalls in lines for k in recalls}, key=lambda k: (len(k), k))
    rows = tuple(
        (name, *(percent(recalls[k]) if k in recalls else "–" for k in ks)) for name, recalls in lines
    )
    return Table(
        title="Recall: how often the right one is among the first K",
        head=("", *(f"R@{clean(k[1:])}" for k in ks)),
        rows=rows,
    )


def _retrieval_words(value: Mapping[str, Any]) -> str:
    pool, words = _numbers(value.get("pool")), []
    if "pictures" in pool and "captions" in pool:
        captions = plural(pool["captions"], "caption")
        words.append(f"A fixed pool of {plural(pool['pictures'], 'picture')} and {captions}.")
    if value.get("reranked") and isinstance(value.get("top_k"), int):
        first = plural(value["top_k"], "candidate")
        words.append(f"The matching head ranks the first {first} of each query anew.")
    return " ".join(words)


_ITM_WORDS = (
    "Each caption is asked about once with its own picture and once with a wrong one, so an answer from the "
    "text alone is right half of the time."
)


def _accuracy(value: Mapping[str, Any], of: str, title: str) -> Table:
    """Accuracy by group (rows) and condition (columns)."""
    accuracy = value["accuracy"]
    shown = [(key, name) for key, name in CONDITIONS if isinstance(accuracy.get(key), dict)]
    groups = list(dict.fromkeys(group for key, _ in shown for group in accuracy[key]))
    masked = _numbers(value.get("words_masked"))
    rows = []
    for group in groups:
        cells = [_mean(accuracy[key].get(group)) for key, _ in shown]
        number = (count(masked[group]) if group in masked else "–",) if masked else ()
        rows.append(("all words" if group == "all" else clean(group), *cells, *number))
    head = (of, *(name for _, name in shown), *(("Words masked",) if masked else ()))
    return Table(title=title, head=head, rows=tuple(rows))


def _mean(value: Any) -> str:
    mean = value.get("mean") if isinstance(value, dict) else value
    return percent(mean) if isinstance(mean, (int, float)) else "–"


def _mlm_words(value: Mapping[str, Any]) -> str:
    gain, seeds = value.get("gain_of_picture"), value.get("seeds")
    if not isinstance(gain, (int, float)):
        return ""
    over = f", mean of {plural(len(seeds), 'seed')}" if isinstance(seeds, list) else ""
    return (
        f"Seeing the picture makes {100 * gain:+.1f} points of difference against having it withheld{over}."
    )


def generic(name: str, value: Mapping[str, Any]) -> list[Table]:
    """Any JSON object: its single values as one table, each object inside of it as another."""
    title = clean(name.replace("_", " "))
    single = tuple((clean(k, 80), figure(v)) for k, v in value.items() if not isinstance(v, (dict, list)))
    found = [Table(title=title, head=("", "Value"), rows=single[:MAX_ROWS])] if single else []
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            found += generic(f"{name} {key}", inner)
    return found


def _numbers(value: Any) -> dict[str, float]:
    """The numeric entries of an object; empty where it is none."""
    if not isinstance(value, dict):
        return {}
    return {str(k): v for k, v in value.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
