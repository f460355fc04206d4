"""What is known of each published format, as data: names, dimensions, constants. `FORMATS` lists them.

A format reads its recipe's Config from shapes, under our names: the same functions serve every format of a
recipe. Attention heads leave no trace in shapes; every published model here has heads of width 64.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from models.blocks.relative_positions import CROSS_ROWS, image_rows, text_rows
from models.recipes import albef_keys, blip_keys, clip_keys, vlmo_keys
from models.recipes.renames import KeyMap

Shapes = Mapping[str, torch.Size]

HEAD_WIDTH = 64
#: tokens that published tables of relative positions were made for
TEXT_WINDOW = 196
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Format:
    """One published format of one system.

    Attributes:
        recipe: Name in `models.recipes.RECIPES`.
        variants: Key maps; the first that a file fits is taken. The first is also written.
        infer: Dimensions of the recipe's Config that shapes (ours) tell.
        heads: Field of the Config -> field of its width.
        fields: Names in a published configuration -> fields of the recipe's Config, where they differ.
        constants: Buffers that a strict load of the reference wants, from the Config and the names written.
        wrapper: Key under which the reference looks for the state dict in a .pth file.
        image_mean: Subtracted from each colour.
        image_std: What each colour is divided by.
        changes: Fields of the Config that published weights of this format want other than by default.
        prepare: What is done to a file's tensors before names are looked at.
        writes: Whether a model can be written in this format.
        clean_captions: Words at which the published training cleaned and cut captions; 0: not at all.
        check: Raises ValueError for a Config that the format cannot hold.
    """

    recipe: str
    variants: tuple[KeyMap, ...]
    infer: Callable[[Shapes], dict[str, Any]]
    heads: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    constants: Callable[[Any, Iterable[str]], dict[str, Tensor]] = lambda config, names: {}
    wrapper: str | None = "model"
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD
    changes: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    writes: bool = True
    clean_captions: int = 0
    check: Callable[[Any], None] = lambda config: None


def depth(shapes: Shapes, prefix: str, *, having: str = "") -> list[int]:
    """Numbers of the layers `prefix`.N, of those with a weight below `having`."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\." + re.escape(having))
    return sorted({int(m[1]) for name in shapes if (m := pattern.match(name))})


def ratio(shapes: Shapes, up: str) -> int:
    """Inner width of a feed-forward network over its width."""
    hidden, width = shapes[f"{up}.weight"]
    return hidden // width


def infer_vit(shapes: Shapes) -> dict[str, Any]:
    """Of `models.blocks.vision`, with [CLS]."""
    width, _, patch, _ = shapes["vision.embed.patch.weight"]
    grid = round((shapes["vision.embed.positions"][1] - 1) ** 0.5)
    return {
        "image_size": grid * patch,
        "patch_size": patch,
        "vision_width": width,
        "vision_depth": len(depth(shapes, "vision.blocks")),
        "mlp_ratio": ratio(shapes, "vision.blocks.0.feed_forward.up"),
    }


def infer_bert(shapes: Shapes) -> dict[str, Any]:
    """Of a BERT under `text`, perhaps with a projection and a queue."""
    vocabulary, width = shapes["text.embed.word.weight"]
    found = {
        "text_width": width,
        "text_depth": len(depth(shapes, "text.layers")),
        "vocab_size": vocabulary,
        "text_positions": shapes["text.embed.position.weight"][0],
    }
    for name, weight in (("embed_dim", "text_projection.weight"), ("queue_size", "queue.image")):
        if weight in shapes:
            found[name] = shapes[weight][0]
    return found


def infer_albef(shapes: Shapes) -> dict[str, Any]:
    layers = depth(shapes, "text.layers")
    fusion = depth(shapes, "text.layers", having="cross_attention")
    return infer_vit(shapes) | infer_bert(shapes) | {"fusion_start": min(fusion, default=len(layers))}


def infer_blip(shapes: Shapes) -> dict[str, Any]:
    text = {"text_mlp_ratio": ratio(shapes, "text.layers.0.feed_forward.up")}
    return infer_vit(shapes) | infer_bert(shapes) | text


def infer_vlmo(shapes: Shapes) -> dict[str, Any]:
    """The picture's size follows from a table of relative positions if its text window is the usual one."""
    width, _, patch, _ = shapes["image_embed.patch.weight"]
    layers = depth(shapes, "transformer.blocks")
    table = shapes.get("transformer.positions.table")
    found: dict[str, Any] = {
        "patch_size": patch,
        "width": width,
        "depth": len(layers),
        "mlp_ratio": ratio(shapes, "transformer.blocks.0.experts.image.feed_forward.up"),
        "positions": "absolute" if table is None else "relative",
    }
    if "transformer.blocks.0.attention_scale" not in shapes:
        found["layer_scale"] = 0.0
    if table is None:
        grid = round((shapes["image_embed.positions"][1] - 1) ** 0.5)
        found["image_size"] = grid * patch
    else:
        found["heads"] = table[1] // len(layers)
        offsets = math.isqrt(max(0, table[0] - image_rows(1) + 1 - CROSS_ROWS - text_rows(TEXT_WINDOW)))
        grid = (offsets + 1) // 2
        if image_rows(grid) + CROSS_ROWS + text_rows(TEXT_WINDOW) == table[0]:
            found |= {"image_size": grid * patch, "text_window": TEXT_WINDOW}
    if joint := depth(shapes, "transformer.blocks", having="experts.joint"):
        found["joint_start"] = min(joint)
    for name, weight in (
        ("vocab_size", "text_embed.word.weight"), ("max_text_length", "text_embed.position"),
        ("embed_dim", "image_projection.weight"),
    ):  # fmt: skip
        if weight in shapes:
            found[name] = shapes[weight][0]
    return found


def infer_beit(shapes: Shapes) -> dict[str, Any]:
    """A VLMo of BEiT's dimensions; where its joint experts begin is the paper's choice for that depth."""
    found = infer_vlmo(shapes)
    start = {12: 10, 24: 21}.get(found["depth"], max(0, found["depth"] - 2))
    return found | {"joint_start": start, "embed_dim": found["width"]}


def one_table_of_vlmo(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BEiT's tables of relative positions as VLMo's one, with rows for texts of the usual window."""
    tables = [v for name, v in published.items() if name.endswith("relative_position_bias_table")]
    layers = {int(m[1]) for name in published if (m := re.search(r"(?:blocks|layer)\.(\d+)\.", name))}
    rows = len(tables[0]) + CROSS_ROWS + text_rows(TEXT_WINDOW) if tables else 0
    return vlmo_keys.one_table(published, depth=len(layers), rows=rows)


def infer_clip(shapes: Shapes) -> dict[str, Any]:
    vocabulary, width = shapes["text.embed.word.weight"]
    return infer_vit(shapes) | {
        "text_width": width,
        "text_depth": len(depth(shapes, "text.blocks")),
        "embed_dim": shapes["text_projection.weight"][0],
        "vocab_size": vocabulary,
        "max_text_length": shapes["text.embed.position"][0],
    }


def position_ids(*templates: str) -> Callable[[Any, Iterable[str]], dict[str, Tensor]]:
    """BERT's buffer [1, positions] of 0, 1, 2 ... beside each table of `templates` that is written."""

    def constants(config: Any, names: Iterable[str]) -> dict[str, Tensor]:
        positions = getattr(config, "text_positions", None) or config.max_text_length
        row = torch.arange(positions)[None]
        written = set(names)
        found = [t for t in templates if f"{t}.position_embeddings.weight" in written]
        return {f"{t}.position_ids": row for t in found}

    return constants


_VISION_FIELDS = {
    "image_size": "image_size", "patch_size": "patch_size", "vision_hidden": "vision_width",
    "vision_layers": "vision_depth", "vision_heads": "vision_heads",
}  # fmt: skip
_BERT_FIELDS = {
    "text_hidden": "text_width", "text_layers": "text_depth", "text_heads": "text_heads",
    "vocab_size": "vocab_size", "projection_dim": "embed_dim",
    "max_position_embeddings": "text_positions", "max_text_length": "max_text_length",
    "queue_size": "queue_size", "momentum": "momentum", "alpha": "alpha", "temperature": "temperature",
}  # fmt: skip
_TWO_TOWERS = {"vision_heads": "vision_width", "text_heads": "text_width"}


def _openai_alone(config: Any) -> None:
    if config.activation != "quick_gelu":
        raise ValueError(
            f"OpenAI's CLIP computes with quick_gelu, this model with {config.activation}: its features "
            "would be others; write --to open_clip or --to transformers, whose configuration says so"
        )


_CLIP = Format(
    recipe="clip",
    variants=(clip_keys.KEYS,),
    infer=infer_clip,
    heads=_TWO_TOWERS,
    changes={"activation": "gelu"},
    wrapper=None,
)

_VLMO = Format(
    recipe="vlmo",
    variants=(vlmo_keys.KEYS,),
    infer=infer_vlmo,
    heads={"heads": "width"},
    fields={
        "image_size": "image_size", "patch_size": "patch_size", "hidden": "width", "layers": "depth",
        "heads": "heads", "vl_expert_start_layer": "joint_start", "vocab_size": "vocab_size",
        "max_text_length": "max_text_length", "max_text_len_of_initckpt": "text_window",
    },
    constants=position_ids("text_embeddings"),
    wrapper=None,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)  # fmt: skip

FORMATS: dict[str, Format] = {
    "albef": Format(
        recipe="albef",
        variants=(albef_keys.KEYS, albef_keys.RETRIEVAL),
        infer=infer_albef,
        heads=_TWO_TOWERS,
        fields=_VISION_FIELDS
        | _BERT_FIELDS
        | {"fusion_start_layer": "fusion_start", "mlm_probability_used": "mlm_probability"},
        constants=position_ids("text_encoder.bert.embeddings", "text_encoder_m.bert.embeddings"),
        clean_captions=30,
    ),
    "blip": Format(
        recipe="blip",
        variants=(blip_keys.KEYS, blip_keys.RETRIEVAL, blip_keys.CAPTIONING),
        infer=infer_blip,
        heads=_TWO_TOWERS,
        fields=_VISION_FIELDS | _BERT_FIELDS | {"label_smoothing": "label_smoothing"},
        constants=position_ids(
            "text_encoder.embeddings", "text_encoder_m.embeddings", "text_decoder.bert.embeddings"
        ),
    ),
    "vlmo": _VLMO,
    "beit": replace(
        _VLMO,
        variants=(vlmo_keys.BEIT_TIMM, vlmo_keys.BEIT_TRANSFORMERS, vlmo_keys.BEIT_TRANSFORMERS_HEADED),
        infer=infer_beit,
        prepare=one_table_of_vlmo,
        writes=False,
    ),
    "clip": replace(_CLIP, changes={"activation": "quick_gelu"}, check=_openai_alone),
    "open_clip": _CLIP,
    "transformers": replace(_CLIP, variants=(clip_keys.TRANSFORMERS,)),
    "transformers-blip": Format(
        recipe="blip",
        variants=(
            blip_keys.TRANSFORMERS,
            blip_keys.TRANSFORMERS_CAPTIONING,
            blip_keys.TRANSFORMERS_RETRIEVAL,
        ),
        infer=infer_blip,
        heads=_TWO_TOWERS,
        writes=False,
    ),
}
