"""Which texts of a sample are packed, and in which order.

    pairmill pack --input images --columns '[columns/caption]' --captions.policy capfilt --output shards

    web         the caption that came with the picture
    capfilt     web and synthetic texts that BLIP's filter lets pass (arXiv 2201.12086)
    laion-coco  the best of many synthetic texts, by two CLIPs
    mix         both, whose comes first drawn by weights

The first text becomes `.txt` and `caption`; what else is written stands in FORMAT.md. What is chosen for a
row is a function of its own values, its key and the seed: `pipeline.stages.pack.caption_rules`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError, InputError
from pipeline.settings import since
from pipeline.stages.pack import caption_rules
from pipeline.stages.pack.caption_rules import SOURCES, SYNTHETIC, WEB, Candidate, Picture, Rule, Text

POLICIES = ("web", "capfilt", "laion-coco", "mix")
#: why a row has no text: none passed, or none was judged
NONE_LEFT, NOT_JUDGED = "no_caption_left", "no_caption_left_null"
#: what each policy reads beside the caption, and the option of `pairmill caption` that a column takes
NEEDS = {
    "web": (),
    "capfilt": ("web_itm", "synthetic_captions", "synthetic_itm"),
    "laion-coco": ("synthetic_captions", "synthetic_clip"),
    "mix": ("synthetic_captions",),
}
SCORES = {"synthetic_itm": "a filter", "synthetic_clip": "a CLIP"}
#: the scores of synthetic texts
LISTS = ("synthetic_itm", "synthetic_clip", "synthetic_clip2")
SOURCE, WEB_TEXT = "caption_source", "web_caption"


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """Which texts of a sample are packed.

    Attributes:
        policy: `web`, the caption that came with the picture; `capfilt`, what BLIP's filter lets pass;
            `laion-coco`, the best synthetic one by two CLIPs; `mix`, both. Null takes the preset's, else web.
        threshold: of capfilt: least ITM probability of a text.
        max_synthetic: synthetic texts of a sample at most, the best ones.
        weights: of mix: how often the `web` and the `synthetic` text come first; empty: equally. A source
            that is left out or has 0 is not packed.
    """

    policy: str | None = None
    threshold: float = since(0.5)
    max_synthetic: int = since(1)
    weights: dict[str, float] = since(factory=dict)


@dataclass(frozen=True)
class Chosen:
    """What was chosen for the rows of a table.

    reasons: why a row has no text worth packing; null where it has one.
    texts: those of each row, the first choice first; never empty where the reason is null. Null for the web
        policy, which leaves the table as it is.
    most: texts that a row can have at most.
    """

    reasons: pa.StringArray
    texts: Sequence[Sequence[Text]] | None = None
    most: int = 1

    def written(self, table: pa.Table) -> pa.Table:
        """The table as it is packed: `caption` is the first choice; further columns as FORMAT.md has them.

        Every row has every column, with "" where it has fewer texts: readers that take their schema from the
        first samples would lose a field that comes later.
        """
        if self.texts is None:
            return table
        rows = [[t.text for t in texts] + [""] * (self.most - len(texts)) for texts in self.texts]
        web = [text or "" for text in table["caption"].to_pylist()]
        at = table.column_names.index("caption")
        table = table.set_column(at, "caption", pa.array([row[0] for row in rows], pa.string()))
        added = {SOURCE: [texts[0].source if texts else None for texts in self.texts], WEB_TEXT: web}
        if self.most > 1:
            added |= {f"caption_{n}": [row[n] for row in rows] for n in range(self.most)}
        for name, values in added.items():
            table = table.append_column(name, pa.array(values, pa.string()))
        return table


class CaptionPolicy:
    """Chooses the texts of rows; the same row and options give the same texts, whatever its shard."""

    def __init__(self, options: CaptionOptions, *, seed: int, preset: str | None = None) -> None:
        """`preset`: the policy to take where the options name none. Raises ConfigError for options that make
        no sense."""
        self.options = options
        self.name = options.policy or preset or "web"
        _check(self.name, options)
        most, weights = options.max_synthetic, options.weights or dict.fromkeys(SOURCES, 1.0)
        rules: dict[str, Rule] = {
            "capfilt": functools.partial(caption_rules.capfilt, threshold=options.threshold, most=most),
            "laion-coco": functools.partial(caption_rules.laion_coco, most=most),
            "mix": functools.partial(caption_rules.mix, weights=weights, most=most, seed=seed),
        }
        self._rule = rules.get(self.name)
        self._needs = NEEDS[self.name] if most else ("web_itm",)
        with_web = self.name == "capfilt" or (self.name == "mix" and weights.get(WEB, 0) > 0)
        synthetic = most if self.name != "mix" or weights.get(SYNTHETIC, 0) > 0 else 0
        self._most = with_web + synthetic

    def check(self, schema: pa.Schema) -> None:
        """Raises ConfigError when the joined table lacks a column that the policy reads, or has one of the
        names that it writes."""
        for name in self._needs:
            if name not in schema.names:
                raise ConfigError(
                    f"captions.policy {self.name!r} needs column {name!r}, which is not there; make it with "
                    "`pairmill caption` and name its folder in --columns, or take captions.policy web"
                )
        if self._rule is None:
            return
        ours = {SOURCE, WEB_TEXT, *(f"caption_{n}" for n in range(self._most))}
        if clash := sorted(ours & {name.lower() for name in schema.names}):
            raise ConfigError(
                f"captions.policy {self.name!r} writes {', '.join(sorted(ours))}, and the images or columns "
                f"have {', '.join(clash)} already; name them otherwise, or take captions.policy web"
            )

    def choose(self, table: pa.Table) -> Chosen:
        """For each row of a joined table (`pipeline.columns`).

        Raises:
            InputError: captions that lack the scores which the policy goes by.
        """
        if self._rule is None:
            return Chosen(pa.nulls(len(table), pa.string()))
        texts, reasons = [], []
        for picture in pictures(table, needed=self._needs):
            found = self._rule(picture)
            texts.append(found)
            judged = bool(picture.synthetic) or picture.web_itm is not None
            reasons.append(None if found else NONE_LEFT if judged else NOT_JUDGED)
        return Chosen(pa.array(reasons, pa.string()), texts, self._most)


def pictures(table: pa.Table, *, needed: Sequence[str] = ()) -> list[Picture]:
    """The rows of a joined table, with whatever it has of the columns of `pairmill caption`.

    Raises:
        InputError: a row has synthetic texts, and of the `needed` scores none, or another number.
    """
    columns = ("caption", "web_itm", "synthetic_captions", *LISTS)
    values = {name: table[name].to_pylist() for name in columns if name in table.column_names}
    found = []
    for at, key in enumerate(table["key"].to_pylist()):
        row = {name: values[name][at] if name in values else None for name in columns}
        texts = row["synthetic_captions"] or []
        scores = [_scores(key, row, name, texts, needed=name in needed) for name in LISTS]
        found.append(
            Picture(
                key=key,
                web=row["caption"] or "",
                web_itm=caption_rules.score(row["web_itm"]),
                synthetic=[
                    Candidate(text=text, itm=itm, clip=clip, clip2=clip2)
                    for text, itm, clip, clip2 in zip(texts, *scores, strict=True)
                    if text is not None
                ],
            )
        )
    return found


def _scores(
    key: str, row: Mapping[str, Any], name: str, texts: Sequence[str], *, needed: bool
) -> list[float | None]:
    """The scores of a row's texts; all null where nobody was asked for them."""
    values = row[name]
    if values is None:
        if texts and needed:
            raise InputError(
                f"sample {key} has synthetic captions, but {name} is null: they were made without "
                f"{SCORES[name]}; give one to `pairmill caption`, or take another captions.policy"
            )
        return [None] * len(texts)
    if len(values) != len(texts):
        raise InputError(
            f"sample {key} has {len(texts)} synthetic captions and {len(values)} values of {name}; "
            "run `pairmill caption` again"
        )
    return [caption_rules.score(value) for value in values]


def _check(name: str, options: CaptionOptions) -> None:
    if name not in POLICIES:
        raise ConfigError(f"captions.policy {name!r} is not known; use one of {', '.join(POLICIES)}")
    default = CaptionOptions()
    for option, policies in (
        ("threshold", ("capfilt",)),
        ("weights", ("mix",)),
        ("max_synthetic", ("capfilt", "laion-coco", "mix")),
    ):
        if getattr(options, option) != getattr(default, option) and name not in policies:
            raise ConfigError(
                f"captions.{option} {getattr(options, option)} means nothing to captions.policy {name!r}; "
                f"leave it out, or take {' or '.join(policies)}"
            )
    if not 0 <= options.threshold <= 1:
        raise ConfigError(f"captions.threshold {options.threshold} must be a probability, from 0 to 1")
    least = 0 if name in ("web", "capfilt") else 1
    if options.max_synthetic < least:
        raise ConfigError(f"captions.max_synthetic {options.max_synthetic} must be at least {least}")
    weights = options.weights
    if unknown := sorted(weights.keys() - set(SOURCES)):
        raise ConfigError(
            f"captions.weights names {', '.join(unknown)}; the sources are {', '.join(SOURCES)}"
        )
    if any(not math.isfinite(w) or w < 0 for w in weights.values()) or (
        weights and not any(weights.values())
    ):
        raise ConfigError(f"captions.weights {weights}: none below 0, and one above")
