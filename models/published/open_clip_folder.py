"""A CLIP of ours as a folder that open_clip reads: open_clip.create_model("local-dir:FOLDER")."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from models.exported import ExportedConfig
from models.published.files import write_state_dict
from models.published.placing import publish
from models.published.tokenizers import END
from models.recipes import clip_keys
from models.tokenizer import Tokenizer

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
FILES = (WEIGHTS, "open_clip_pytorch_model.bin")


def write(
    folder: Path,
    *,
    exported: ExportedConfig,
    config: Any,
    weights: Mapping[str, Tensor],
    kept: Mapping[str, str],
    tokenizer: Tokenizer,
) -> list[str]:
    """Weights, configuration and tokenizer; raises ValueError for another system than CLIP."""
    if exported.recipe != "clip":
        raise ValueError(f"open_clip holds CLIP models; this is a {exported.recipe}")
    write_state_dict(folder / WEIGHTS, publish(weights, clip_keys.KEYS, kept))
    text = {
        "context_length": config.max_text_length, "vocab_size": config.vocab_size,
        "width": config.text_width, "heads": config.text_heads, "layers": config.text_depth,
        "mlp_ratio": config.mlp_ratio,
    }  # fmt: skip
    if tokenizer.backend.eos_token != END:
        # its own rule, the largest id, is that of OpenAI's vocabulary alone
        text |= {"pool_type": "eos", "eos_id": tokenizer.sep_id, "hf_tokenizer_name": "tokenizer"}
        tokenizer.save(folder)
    facts = {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": config.activation == "quick_gelu",
            "vision_cfg": {
                "image_size": config.image_size, "patch_size": config.patch_size,
                "width": config.vision_width, "layers": config.vision_depth,
                "head_width": config.vision_width // config.vision_heads, "mlp_ratio": config.mlp_ratio,
            },
            "text_cfg": text,
        },
        "preprocess_cfg": {
            "mean": list(exported.image_mean), "std": list(exported.image_std),
            "interpolation": "bicubic", "resize_mode": "squash",
        },
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return [f'open_clip.create_model("local-dir:{folder.name.strip(".").removesuffix(".tmp")}")']


def beside(folder: Path) -> dict[str, Any]:
    """Fields of our Config that an open_clip folder's configuration tells and shapes do not."""
    facts = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_cfg"]
    vision, text = facts["vision_cfg"], facts["text_cfg"]
    return {
        "activation": "quick_gelu" if facts.get("quick_gelu") else "gelu",
        "vision_heads": vision["width"] // vision.get("head_width", 64),
        "text_heads": text.get("heads", 8),
    }
