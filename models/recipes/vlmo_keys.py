"""The weight names of published VLMo and BEiT checkpoints, and where each goes here.

VLMo: one raw state dict; indices of relative positions in it are buffers, and carry nothing. `KEYS` serves
both kinds of positions (base and large have a table of biases, base_plus has absolute positions). What stage
image of ours needs beside the published weights, they have no place for.

BEiT, which the paper starts from: its blocks go to the shared attention and the image experts, all else
begins fresh. `BEIT_TIMM` is the spelling of timm and of the released files, `BEIT_TRANSFORMERS` that of
transformers' BeitModel, `BEIT_TRANSFORMERS_HEADED` with a head on it. BEiT holds a table of relative
positions for each layer or one for all, where VLMo has one for everything: `one_table` first, then the map.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from models.recipes.renames import KeyMap, Part, within

_ATTENTION = {
    "norm1": "attention_norm",
    "attn.qkv": "attention.qkv",
    "attn.q_bias": "attention.q_bias",
    "attn.v_bias": "attention.v_bias",
    "attn.proj": "attention.out",
    "gamma_1": "attention_scale",
    "gamma_2": "expert_scale",
}


def _expert(published: str, ours: str) -> dict[str, str]:
    return {
        f"norm2{published}": f"experts.{ours}.norm",
        f"mlp{published}.fc1": f"experts.{ours}.feed_forward.up",
        f"mlp{published}.fc2": f"experts.{ours}.feed_forward.down",
    }


_BLOCK = _ATTENTION | _expert("_text", "text") | _expert("_imag", "image") | _expert("_vl", "joint")
#: What only stage image trains, and VLMo's files do not hold.
_STAGE_IMAGE = (r"pixels\..+", r"image_embed\.mask_token")

KEYS = KeyMap(
    pairs=[
        ("transformer.cls_token", "image_embed.cls"),
        ("transformer.pos_embed", "image_embed.positions"),
        ("transformer.patch_embed.proj", "image_embed.patch"),
        *within("transformer.blocks.{n}", "transformer.blocks.{n}", _BLOCK),
        ("transformer.norm", "transformer.norm"),
        ("relative_position_bias_table", "transformer.positions.table"),
        ("text_embeddings.word_embeddings", "text_embed.word"),
        ("text_embeddings.position_embeddings.weight", "text_embed.position"),
        ("text_embeddings.token_type_embeddings", "text_embed.token_type"),
        ("text_embeddings.LayerNorm", "text_embed.norm"),
        ("token_type_embeddings", "modality"),
        ("pooler.dense", "pooler"),
        ("itm_score.fc", "itm_head"),
        ("itc_image_proj.fc", "image_projection"),
        ("itc_text_proj.fc", "text_projection"),
        ("itc_vl_image_proj.fc", "joint_image_projection"),
        ("itc_vl_text_proj.fc", "joint_text_projection"),
        ("logit_scale", "logit_scale"),
        ("logit_vl_scale", "joint_logit_scale"),
        ("mlm_score.transform.dense", "mlm_head.dense"),
        ("mlm_score.transform.LayerNorm", "mlm_head.norm"),
        ("mlm_score.decoder.weight", "mlm_head.decoder.weight"),
        ("mlm_score.bias", "mlm_head.decoder.bias"),
    ],
    ignored=(
        r"(text_|text_imag_)?relative_position_index",
        r"transformer\.(.+\.)?relative_position_index",
        r"text_embeddings\.position_ids",
    ),
    fresh=_STAGE_IMAGE,
)

_FROM_BEIT = (
    r"text_embed\..+", r"modality\..+", r"pooler\..+", r"itm_head\..+", r"mlm_head\..+", r".*_projection\..+",
    r"(joint_)?logit_scale", r"transformer\.blocks\.\d+\.experts\.(text|joint)\..+", r"transformer\.norm\..+",
    *_STAGE_IMAGE,
)  # fmt: skip

#: timm's, which are those of the released files.
BEIT_TIMM = KeyMap(
    pairs=[
        ("cls_token", "image_embed.cls"),
        ("pos_embed", "image_embed.positions"),
        ("patch_embed.proj", "image_embed.patch"),
        *within("blocks.{n}", "transformer.blocks.{n}", _ATTENTION | _expert("", "image")),
        ("norm", "transformer.norm"),
        ("relative_position_bias_table", "transformer.positions.table"),
        ("mask_token", "image_embed.mask_token"),
    ],
    ignored=(r"(.+\.)?relative_position_index", r"(.+\.)?k_bias", r"(lm_)?head\..+", r"fc_norm\..+"),
    fresh=_FROM_BEIT,
)

_LAYER = {
    "layernorm_before": "attention_norm",
    "attention.attention.query.weight": "attention.qkv.weight",
    "attention.attention.key.weight": "attention.qkv.weight",
    "attention.attention.value.weight": "attention.qkv.weight",
    "attention.attention.query.bias": "attention.q_bias",
    "attention.attention.value.bias": "attention.v_bias",
    "attention.output.dense": "attention.out",
    "layernorm_after": "experts.image.norm",
    "intermediate.dense": "experts.image.feed_forward.up",
    "output.dense": "experts.image.feed_forward.down",
    "lambda_1": "attention_scale",
    "lambda_2": "expert_scale",
}


def _transformers(body: str, norm: str) -> KeyMap:
    """With `body` before the names of the encoder's modules; `norm` is the one that its states end in."""
    return KeyMap(
        pairs=[
            (f"{body}embeddings.cls_token", "image_embed.cls"),
            (f"{body}embeddings.position_embeddings", "image_embed.positions"),
            (f"{body}embeddings.patch_embeddings.projection", "image_embed.patch"),
            (f"{body}embeddings.mask_token", "image_embed.mask_token"),
            *within(f"{body}encoder.layer.{{n}}", "transformer.blocks.{n}", _LAYER),
            (norm, "transformer.norm"),
            ("relative_position_bias_table", "transformer.positions.table"),
        ],
        changes={
            f"{body}encoder.layer.{{n}}.attention.attention.{name}.weight": Part(index=index)
            for index, name in enumerate(("query", "key", "value"))
        },
        ignored=(
            r"(.+\.)?relative_position_index", r"classifier\..+", r"lm_head\..+", r"(beit\.)?pooler\..+",
        ),
        fresh=_FROM_BEIT,
    )  # fmt: skip


BEIT_TRANSFORMERS = _transformers("", "layernorm")
#: BeitForMaskedImageModeling and BeitForImageClassification.
BEIT_TRANSFORMERS_HEADED = _transformers("beit.", "layernorm")

_TABLE = re.compile(r"(?:.+\.(\d+)\..+|.+\.)?relative_position_bias_table")


def one_table(published: Mapping[str, Tensor], *, depth: int, rows: int) -> dict[str, Tensor]:
    """A BEiT state dict whose tables [R, H], one a layer or one for all, are one [rows, depth * H].

    BEiT's rows come first, the others (text, and between modalities) are 0, as a fresh table is.
    Raises ValueError when some layers have a table and others have none.
    """
    tables = {name: match[1] for name in published if (match := _TABLE.fullmatch(name))}
    rest = {name: value for name, value in published.items() if name not in tables}
    if not tables:
        return rest
    by_layer = {int(layer): published[name] for name, layer in tables.items() if layer is not None}
    if not by_layer:
        [name] = tables
        by_layer = dict.fromkeys(range(depth), published[name])
    if sorted(by_layer) != list(range(depth)):
        raise ValueError(f"tables of relative positions for layers {sorted(by_layer)} of {depth}")
    columns = torch.cat([by_layer[layer] for layer in range(depth)], dim=1)
    return rest | {
        "relative_position_bias_table": torch.nn.functional.pad(columns, (0, 0, 0, rows - len(columns)))
    }
