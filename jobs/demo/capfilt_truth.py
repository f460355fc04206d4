"""What captioner and filter did, held against the truth of the scenes.

A caption of the demo's world is read back into the scene that it tells (`read_caption`), so that a written
one can be held against the picture: wholly right, or right in objects, colour, numbers or relation. Of the
filter it is counted which wrong texts it dropped and which right ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.demo.capfilt_world import Truth
from jobs.demo.captions import ENGLISH_NUMBERS, RELATION_PHRASES
from jobs.demo.objects import Thing
from jobs.demo.scenes import COLOURS, OPPOSITE, Scene

_NUMBERS = "|".join(ENGLISH_NUMBERS[1:])
_COLOURS = "|".join(COLOURS)
_RELATIONS = {phrase: name for name, phrase in RELATION_PHRASES["en"].items()}
_CAPTION = re.compile(
    rf"(?:(?P<colour1>{_COLOURS}) picture of )?(?P<n1>{_NUMBERS}) (?P<thing1>[a-z ]+?) "
    rf"(?P<relation>{'|'.join(_RELATIONS)}) (?P<n2>{_NUMBERS}) (?P<thing2>[a-z ]+?)"
    rf"(?: (?P<colour2>{_COLOURS}) background| on (?P<colour3>{_COLOURS}))?"
)
#: what a caption may be right in
ASPECTS = ("objects", "colour", "numbers", "relation")


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a caption says: ((kind, count), (kind, count)) as they stand in it, the relation of the first to
    the second, the colour of the background."""

    groups: tuple[tuple[int, int], tuple[int, int]]
    relation: str
    colour: str


def read_caption(text: str, things: tuple[Thing, ...]) -> Told | None:
    """The scene that an English caption tells; null for one that is none of the demo's sentences."""
    found = _CAPTION.fullmatch(" ".join(re.sub(r"[^a-z]+", " ", text.lower()).split()))
    if found is None:
        return None
    colours = [found[name] for name in ("colour1", "colour2", "colour3") if found[name]]
    kinds = [_kind(found[f"thing{n}"], things) for n in (1, 2)]
    if len(colours) != 1 or None in kinds:
        return None
    counts = [ENGLISH_NUMBERS.index(found[f"n{n}"]) for n in (1, 2)]
    groups = tuple(zip(kinds, counts, strict=True))
    return Told(groups=groups, relation=_RELATIONS[found["relation"]], colour=colours[0])  # type: ignore[arg-type]


def _kind(name: str, things: tuple[Thing, ...]) -> int | None:
    return next((i for i, t in enumerate(things) if name in (t.english(1), t.english(2))), None)


def right_in(text: str, scene: Scene, things: tuple[Thing, ...]) -> dict[str, bool]:
    """Which ASPECTS of a picture a caption tells rightly, and `all` of them; numbers and relation only of the
    right objects."""
    told = read_caption(text, things)
    if told is None:
        return dict.fromkeys((*ASPECTS, "all"), False)
    shown = {scene.kind_a: scene.count_a, scene.kind_b: scene.count_b}
    objects = {kind for kind, _ in told.groups} == set(shown) and len(dict(told.groups)) == 2
    expected = scene.relation if told.groups[0][0] == scene.kind_a else OPPOSITE[scene.relation]
    found = {
        "objects": objects,
        "colour": told.colour == scene.colour,
        "numbers": objects and dict(told.groups) == shown,
        "relation": objects and told.relation == expected,
    }
    return {**found, "all": all(found.values())}


def judge_filter(
    table: pa.Table, truth: Mapping[str, Truth], things: tuple[Thing, ...], *, threshold: float
) -> dict[str, Any]:
    """What captioner and filter did.

    Args:
        table: the web's images with the caption columns, joined: `url` (the file name), `web_itm`,
            `synthetic_captions`, `synthetic_itm`.

    Returns:
        `web`: counts of right and wrong captions kept and dropped, precision and recall of dropping wrong
        ones, ROC AUC of the probability; `written`: which share of the written ones is right, before and
        after the filter; `packed`: which share is right of the texts that stay, of the web's and of both.
    """
    rows = table.select(["url", "web_itm", "synthetic_captions", "synthetic_itm"]).to_pylist()
    web_right = np.array([not truth[row["url"]].wrong for row in rows])
    web_itm = np.array([row["web_itm"] for row in rows], np.float32)
    written = [right_in(row["synthetic_captions"][0], truth[row["url"]].scene, things) for row in rows]
    written_itm = np.array([row["synthetic_itm"][0] for row in rows], np.float32)
    web_kept, written_kept = web_itm >= threshold, written_itm >= threshold
    dropped, wrong = ~web_kept, ~web_right
    all_right = np.array([w["all"] for w in written])
    texts_right = np.concatenate([web_right[web_kept], all_right[written_kept]])
    return {
        "web": {
            "right_kept": int((web_kept & web_right).sum()),
            "right_dropped": int((dropped & web_right).sum()),
            "wrong_kept": int((web_kept & wrong).sum()),
            "wrong_dropped": int((dropped & wrong).sum()),
            "precision": _share(wrong[dropped]),
            "recall": _share(dropped[wrong]),
            "auc": auc(web_itm[web_right], web_itm[wrong]),
        },
        "written": {"before": _shares(written), "after": _shares(_only(written, written_kept)),
                    "kept": _share(written_kept)},
        "packed": {
            "pictures": int((web_kept | written_kept).sum()),
            "web_right_before": _share(web_right),
            "web_right": _share(web_right[web_kept]),
            "texts_right": _share(texts_right),
        },
    }  # fmt: skip


def auc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Probability that one of `positives` is above one of `negatives`; equal ones count half."""
    if not len(positives) or not len(negatives):
        return float("nan")
    order = np.sort(negatives)
    below = np.searchsorted(order, positives, side="left")
    upto = np.searchsorted(order, positives, side="right")
    return float((below + upto).mean() / 2 / len(negatives))


def _shares(written: Iterable[Mapping[str, bool]]) -> dict[str, float]:
    rows = list(written)
    return {name: _share(np.array([row[name] for row in rows])) for name in (*ASPECTS, "all")}


def _only(rows: list[dict[str, bool]], mask: np.ndarray) -> list[dict[str, bool]]:
    return [row for row, keep in zip(rows, mask, strict=True) if keep]


def _share(values: np.ndarray) -> float:
    return round(float(values.mean()), 4) if len(values) else 0.0
