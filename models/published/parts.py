"""A ViT and a BERT, as the papers start from, -> a model folder: `pairmill convert --from albef-parts`.

The picture tower takes timm's names (DeiT, ViT; the classifier is left out, positions are resized), the text
part transformers' names of a BERT (pooler and next-sentence head are left out). In BLIP the BERT fills
encoder and decoder, without its token types; new rows of the word embedding ([DEC], [ENC]) begin fresh. So do
cross-attention, projections and the matching head; all else must be given by the part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.blocks.embedders import resize_positions
from models.published.files import read_state_dict
from models.published.formats import FORMATS
from models.published.placing import different_shapes, listed, place, skeleton
from models.published.reading import write_model
from models.recipes import RECIPES
from models.tokenizer import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What to start from; at least one of `vision` and `text`.

    Attributes:
        recipe: albef or blip.
        vision: File of a ViT in timm's names.
        text: File of a BERT in transformers' names.
        tokenizer: Folder of the BERT's tokenizer.
        size: A size of the recipe.
        overrides: Fields of the Config.
        ignore: Patterns of names in the files to leave out, beside the heads.
    """

    recipe: str
    vision: str | None
    text: str | None
    tokenizer: str | None
    size: str = "base"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    ignore: Sequence[str] = ()


@dataclass(frozen=True)
class _Part:
    """dropped: names that have no place. renamed: beginnings of names -> those in the published checkpoint.
    filled: our names that the part must fill, all of them, but for `fresh`."""

    dropped: tuple[str, ...]
    renamed: Mapping[str, tuple[str, ...]]
    filled: tuple[str, ...]
    fresh: tuple[str, ...] = ()


_VISION = _Part((r"(head|head_dist|fc_norm|pre_logits)\..*",), {"": ("visual_encoder.",)}, (r"vision\..*",))
_BERT_HEADS = (r"bert\.pooler\..*", r"cls\.seq_relationship\..*", r"bert\.embeddings\.position_ids")
PARTS: dict[str, dict[str, _Part]] = {
    "albef": {
        "vision": _VISION,
        "text": _Part(
            _BERT_HEADS,
            {"bert.": ("text_encoder.bert.",), "cls.": ("text_encoder.cls.",)},
            (r"text\..*", r"mlm_head\..*"),
            (r"text\.layers\.\d+\.cross_.*",),
        ),
    },
    "blip": {
        "vision": _VISION,
        "text": _Part(
            (*_BERT_HEADS, r"bert\.embeddings\.token_type_embeddings\..*"),
            {"bert.": ("text_encoder.", "text_decoder.bert."), "cls.": ("text_decoder.cls.",)},
            (r"text\..*", r"lm_head\..*"),
            (r"text\.layers\.\d+\.cross_.*",),
        ),
    },
}


def convert_parts(out: Path, wanted: Parts) -> list[str]:
    """Writes the model folder; returns what was taken and what begins fresh (seed 0).

    Raises:
        ValueError: no such recipe, no part, or one whose names or shapes do not fit; nothing is written.
    """
    if wanted.recipe not in PARTS:
        raise ValueError(f"parts of {wanted.recipe!r} are unknown; there are {', '.join(PARTS)}")
    files = {"vision": wanted.vision, "text": wanted.text}
    given = {name: file for name, file in files.items() if file}
    if not given:
        raise ValueError("give --vision FILE (a ViT), --text FILE (a BERT), or both")
    if wanted.tokenizer is None:
        raise ValueError(
            "give --tokenizer, the folder of the BERT's tokenizer (vocab.txt of bert-base-uncased)"
        )
    known, tokenizer = FORMATS[wanted.recipe], load_tokenizer(wanted.tokenizer)
    config = _config(wanted, tokenizer)
    torch.manual_seed(0)
    weights = {name: v.clone() for name, v in RECIPES[wanted.recipe].build(config).model.state_dict().items()}
    frame = skeleton(wanted.recipe, config)
    taken: set[str] = set()
    remarks = []
    for name, file in given.items():
        part = PARTS[wanted.recipe][name]
        try:
            placed, said = _placed(read_state_dict(file), part, wanted, weights)
        except ValueError as error:
            raise ValueError(f"{file} as the {name} of {wanted.recipe}: {error}") from error
        weights |= placed
        taken |= placed.keys()
        remarks += [f"{Path(file).name}: {len(placed)} weights", *said]
    begin = sorted(frame.model.keys() - taken)
    remarks.append(f"random: {listed(begin)}")
    write_model(
        out, known, frame, {name: weights[name] for name in frame.model}, {}, config=config,
        tokenizer=tokenizer, size=wanted.size,
        training={"converted_from": [Path(f).name for f in given.values()], "fresh": begin},
    )  # fmt: skip
    return remarks


def _config(wanted: Parts, tokenizer: Any) -> Any:
    recipe = RECIPES[wanted.recipe]
    if wanted.size not in recipe.SIZES:
        raise ValueError(f"{wanted.recipe} has no size {wanted.size!r}; there are {', '.join(recipe.SIZES)}")
    changes = {name: tuple(v) if isinstance(v, list) else v for name, v in wanted.overrides.items()}
    try:
        return tokenizer.fit(replace(tokenizer.fit(recipe.SIZES[wanted.size]), **changes))
    except TypeError as error:
        raise ValueError(f"--model: {error}") from error


def _placed(
    found: Mapping[str, Tensor], part: _Part, wanted: Parts, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The part's weights under our names, in the model's shapes; and remarks."""
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, value in found.items():
        # bert-base-uncased still has TensorFlow's names of the layer norms
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        if any(re.fullmatch(pattern, name) for pattern in (*part.dropped, *wanted.ignore)):
            continue
        start = next((s for s in part.renamed if name.startswith(s)), None)
        if start is None:
            unknown.append(name)
            continue
        for target in part.renamed[start]:
            renamed[target + name.removeprefix(start)] = value
    if unknown:
        raise ValueError(f"unknown names: {listed(unknown)}")
    placed = place(renamed, FORMATS[wanted.recipe].variants[0])
    remarks = _adapted(placed, weights)
    missing = [
        name
        for name in weights
        if any(re.fullmatch(p, name) for p in part.filled)
        and not any(re.fullmatch(p, name) for p in part.fresh)
        and name not in placed
    ]
    wrong = []
    if missing:
        wrong.append(f"missing {listed(missing)}")
    if homeless := sorted(placed.keys() - weights.keys()):
        wrong.append(f"no place for {listed(homeless)}")
    if shapes := different_shapes(placed, {name: value.shape for name, value in weights.items()}):
        wrong.append(f"shapes: {listed(shapes)}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return placed, remarks


def _adapted(placed: dict[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Resizes positions and lengthens the vocabulary, in place; returns what was done."""
    remarks = []
    name = "vision.embed.positions"
    if name in placed and name in weights and placed[name].shape[2:] == weights[name].shape[2:]:
        grid = round((weights[name].shape[1] - 1) ** 0.5)
        before = placed[name].shape[1]
        placed[name] = resize_positions(placed[name], grid)
        if before != placed[name].shape[1]:
            remarks.append(f"{name} resized from {before - 1} to {grid * grid} patches")
    for name in ("text.embed.word.weight", "lm_head.bias"):
        if name in placed and name in weights:
            rows, wanted = len(placed[name]), len(weights[name])
            if 0 < wanted - rows <= ADDED:
                placed[name] = torch.cat([placed[name], weights[name][rows:]])
                remarks.append(f"{name}: {wanted - rows} new rows")
    return remarks


#: rows of a vocabulary that may be new: BLIP's [DEC] and [ENC]
ADDED = 2
