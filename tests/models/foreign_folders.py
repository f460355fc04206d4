"""Folders of tiny captioners of random weights that transformers makes: GIT, ViT with GPT-2, BLIP-2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tests.models.blip_folders import tokenizer_at

TOWER = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IDS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}


def write_foreign(folder: Path, kind: str) -> Path:
    """kind: git, vision-encoder-decoder or blip-2."""
    torch.manual_seed(0)
    words = tokenizer_at(folder.with_name(f"{folder.name}-tokenizer")).backend
    {"git": _git, "vision-encoder-decoder": _two, "blip-2": _blip2}[kind](folder, words)
    return folder


def _git(folder: Path, words: Any) -> None:
    config = hf.GitConfig(
        vision_config=TOWER, vocab_size=len(words), max_position_embeddings=64, **TEXT, **IDS
    )
    hf.GitForCausalLM(config).save_pretrained(folder)
    pictures = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    hf.GitProcessor(pictures, words).save_pretrained(folder)


def _two(folder: Path, words: Any) -> None:
    encoder = hf.ViTConfig(**TOWER)
    decoder = hf.GPT2Config(
        vocab_size=len(words), n_embd=32, n_layer=2, n_head=4, n_positions=64, add_cross_attention=True,
        is_decoder=True, **IDS,
    )  # fmt: skip
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = hf.VisionEncoderDecoderModel(config)
    for facts in (model.config, model.generation_config):
        facts.decoder_start_token_id, facts.pad_token_id, facts.eos_token_id = 2, 0, 3
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def _blip2(folder: Path, words: Any) -> None:
    size = len(words)
    config = hf.Blip2Config(
        vision_config=TOWER,
        qformer_config={
            **TEXT, "vocab_size": size, "encoder_hidden_size": 32, "max_position_embeddings": 64
        },
        text_config={
            "model_type": "opt", "vocab_size": size + 1, "hidden_size": 32, "ffn_dim": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128,
            "word_embed_proj_dim": 32, **IDS,
        },
        num_query_tokens=4, image_token_index=size,
    )  # fmt: skip
    hf.Blip2ForConditionalGeneration(config).save_pretrained(folder)
    pictures = hf.BlipImageProcessor(size={"height": 32, "width": 32})
    hf.Blip2Processor(pictures, words, num_query_tokens=4).save_pretrained(folder)
