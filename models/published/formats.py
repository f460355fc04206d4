"""What is known of each published format, as data: names, dimensions, constants. `FORMATS` lists them.

A format reads its recipe's Config from shapes, under our names: the same functions serve every format of a
recipe. Attention heads leave no trace in shapes; every published model here has heads of width 64.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from models.recipes import albef_keys, clip_keys
from models.recipes.renames import KeyMap

Shapes = Mapping[str, torch.Size]

HEAD_WIDTH = 64
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Format:
    """One published format of one system.

    Attributes:
        recipe: Name in `models.recipes.RECIPES`.
        variants: Key maps; the first that knows every name of a file is taken. The first is also written.
        infer: Dimensions of the recipe's Config that shapes (ours) tell.
        heads: Field of the Config -> field of its width.
        fields: Names in a published configuration -> fields of the recipe's Config, where they differ.
        constants: Buffers that a strict load of the reference wants, from the Config and the names written.
        wrapper: Key under which the reference looks for the state dict in a .pth file.
        image_mean: Subtracted from each colour.
        image_std: What each colour is divided by.
        changes: Fields of the Config that published weights of this format want other than by default.
        mirrored: Copies that the reference keeps and we do not, from the names written.
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
    mirrored: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = lambda written: {}
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
    """Of a BERT under `text`, with a projection and perhaps a queue."""
    vocabulary, width = shapes["text.embed.word.weight"]
    found = {
        "text_width": width,
        "text_depth": len(depth(shapes, "text.layers")),
        "vocab_size": vocabulary,
        "text_positions": shapes["text.embed.position.weight"][0],
        "embed_dim": shapes["text_projection.weight"][0],
    }
    return found | ({"queue_size": shapes["queue.image"][0]} if "queue.image" in shapes else {})


def infer_albef(shapes: Shapes) -> dict[str, Any]:
    layers = depth(shapes, "text.layers")
    fusion = depth(shapes, "text.layers", having="cross_attention")
    return infer_vit(shapes) | infer_bert(shapes) | {"fusion_start": min(fusion, default=len(layers))}


def infer_clip(shapes: Shapes) -> dict[str, Any]:
    vocabulary, width = shapes["text.embed.word.weight"]
    return infer_vit(shapes) | {
        "text_width": width,
        "text_depth": len(depth(shapes, "text.blocks")),
        "embed_dim": shapes["text_projection.weight"][0],
        "vocab_size": vocabulary,
        "max_text_length": shapes["text.embed.position"][0],
    }


def position_ids(templates: Iterable[str]) -> Callable[[Any, Iterable[str]], dict[str, Tensor]]:
    """BERT's buffer [1, positions] of 0, 1, 2 ... beside each table of `templates` that is written."""

    def constants(config: Any, names: Iterable[str]) -> dict[str, Tensor]:
        row = torch.arange(config.text_positions)[None]
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

FORMATS: dict[str, Format] = {
    "albef": Format(
        recipe="albef",
        variants=(albef_keys.KEYS, albef_keys.RETRIEVAL),
        infer=infer_albef,
        heads=_TWO_TOWERS,
        fields=_VISION_FIELDS
        | _BERT_FIELDS
        | {"fusion_start_layer": "fusion_start", "mlm_probability_used": "mlm_probability"},
        constants=position_ids(["text_encoder.bert.embeddings", "text_encoder_m.bert.embeddings"]),
    ),
    "clip": replace(_CLIP, changes={"activation": "quick_gelu"}, check=_openai_alone),
    "open_clip": _CLIP,
    "transformers": replace(_CLIP, variants=(clip_keys.TRANSFORMERS,)),
}
