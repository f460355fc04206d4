"""A model of ours as a folder that transformers' `from_pretrained` reads.

CLIP as CLIPModel. BLIP as both BlipForConditionalGeneration and BlipForImageTextRetrieval: the folder holds
the weights of either, and each class takes its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from models.exported import ExportedConfig
from models.published.files import write_state_dict
from models.published.placing import publish
from models.recipes import blip_keys, clip_keys
from models.recipes.renames import KeyMap
from models.tokenizer import Tokenizer

WEIGHTS, CONFIG, PICTURES = "model.safetensors", "config.json", "preprocessor_config.json"
FILES = (WEIGHTS, "pytorch_model.bin")
BICUBIC = 3


def write(
    folder: Path,
    *,
    exported: ExportedConfig,
    config: Any,
    weights: Mapping[str, Tensor],
    kept: Mapping[str, str],
    tokenizer: Tokenizer,
) -> list[str]:
    """Weights, configuration, tokenizer and picture processor; ValueError for a system it has not."""
    if exported.recipe not in KINDS:
        raise ValueError(f"transformers has no {exported.recipe} of this kind; it has {', '.join(KINDS)}")
    keys, describe, processor = KINDS[exported.recipe]
    write_state_dict(folder / WEIGHTS, publish(weights, keys, kept))
    _json(folder / CONFIG, describe(config, tokenizer))
    _json(folder / PICTURES, _pictures(exported, processor))
    tokenizer.save(folder)
    return [f"{describe(config, tokenizer)['architectures'][0]}.from_pretrained"]


def _clip(config: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    if tokenizer.sep_id == 2:
        raise ValueError(
            "transformers' CLIP reads out at the largest id when the closing id is 2; not so here"
        )
    shared = {
        "hidden_act": config.activation, "layer_norm_eps": 1e-5, "attention_dropout": 0.0,
        "projection_dim": config.embed_dim,
    }  # fmt: skip
    text = {
        "model_type": "clip_text_model", "vocab_size": config.vocab_size, "hidden_size": config.text_width,
        "intermediate_size": config.mlp_ratio * config.text_width, "num_hidden_layers": config.text_depth,
        "num_attention_heads": config.text_heads, "max_position_embeddings": config.max_text_length,
        "bos_token_id": tokenizer.cls_id, "eos_token_id": tokenizer.sep_id, "pad_token_id": tokenizer.pad_id,
    }  # fmt: skip
    vision = {
        "model_type": "clip_vision_model", "hidden_size": config.vision_width,
        "intermediate_size": config.mlp_ratio * config.vision_width,
        "num_hidden_layers": config.vision_depth, "num_attention_heads": config.vision_heads,
        "image_size": config.image_size, "patch_size": config.patch_size,
    }  # fmt: skip
    return {
        "model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": config.embed_dim,
        "text_config": text | shared, "vision_config": vision | shared,
    }  # fmt: skip


def _blip(config: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    text = {
        "model_type": "blip_text_model", "vocab_size": config.vocab_size, "hidden_size": config.text_width,
        "encoder_hidden_size": config.vision_width, "projection_dim": config.embed_dim,
        "intermediate_size": config.text_mlp_ratio * config.text_width,
        "num_hidden_layers": config.text_depth, "num_attention_heads": config.text_heads,
        "max_position_embeddings": config.text_positions, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.dropout,
        "label_smoothing": config.label_smoothing, "bos_token_id": config.dec_id,
        "eos_token_id": config.sep_id, "sep_token_id": config.sep_id, "pad_token_id": config.pad_id,
    }  # fmt: skip
    vision = {
        "model_type": "blip_vision_model", "hidden_size": config.vision_width,
        "intermediate_size": config.mlp_ratio * config.vision_width,
        "num_hidden_layers": config.vision_depth, "num_attention_heads": config.vision_heads,
        "image_size": config.image_size, "patch_size": config.patch_size, "layer_norm_eps": 1e-6,
        "hidden_act": "gelu", "attention_dropout": 0.0,
    }  # fmt: skip
    return {
        "model_type": "blip", "architectures": ["BlipForConditionalGeneration"],
        "projection_dim": config.embed_dim, "image_text_hidden_size": config.embed_dim,
        "label_smoothing": config.label_smoothing, "text_config": text, "vision_config": vision,
    }  # fmt: skip


def _pictures(exported: ExportedConfig, processor: str) -> dict[str, Any]:
    """The whole picture squeezed into the square, as models.images does."""
    side = exported.model["image_size"]
    return {
        "image_processor_type": processor, "do_resize": True, "size": {"height": side, "width": side},
        "resample": BICUBIC, "do_center_crop": False, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(exported.image_mean), "image_std": list(exported.image_std),
        "do_convert_rgb": True,
    }  # fmt: skip


def _json(path: Path, facts: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def beside(folder: Path) -> dict[str, Any]:
    """Fields of our Config that config.json tells and shapes do not."""
    facts = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    text, vision = facts.get("text_config", {}), facts.get("vision_config", {})
    if facts.get("model_type") == "blip":
        return {
            "text_heads": text.get("num_attention_heads", 8),
            "vision_heads": vision.get("num_attention_heads", 12),
        }
    return {
        "text_heads": text.get("num_attention_heads", 8),
        "vision_heads": vision.get("num_attention_heads", 12),
        "activation": text.get("hidden_act", "quick_gelu"),
    }


def recipe_of(folder: Path) -> str:
    """The recipe of a folder's model_type; raises ValueError for one that is none of ours."""
    kind = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_type")
    if kind not in KINDS:
        raise ValueError(f"{folder} holds a {kind!r}; of transformers' models {', '.join(KINDS)} are read")
    return kind


Describe = Callable[[Any, Tokenizer], dict[str, Any]]
#: recipe -> (names, config.json, picture processor)
KINDS: dict[str, tuple[KeyMap, Describe, str]] = {
    "clip": (clip_keys.TRANSFORMERS, _clip, "CLIPImageProcessor"),
    "blip": (blip_keys.TRANSFORMERS, _blip, "BlipImageProcessor"),
}
