"""Names inside the backbones that published checkpoints of several systems share: timm's ViT and BERT."""

from __future__ import annotations

from models.recipes.renames import within

#: of visual_encoder.blocks.N
VIT_BLOCK = {
    "norm1": "attention_norm",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "norm2": "feed_forward_norm",
    "mlp.fc1": "feed_forward.up",
    "mlp.fc2": "feed_forward.down",
}
#: the image tower of ALBEF and BLIP
VISION = [
    ("visual_encoder.cls_token", "vision.embed.cls"),
    ("visual_encoder.pos_embed", "vision.embed.positions"),
    ("visual_encoder.patch_embed.proj", "vision.embed.patch"),
    *within("visual_encoder.blocks.{n}", "vision.blocks.{n}", VIT_BLOCK),
    ("visual_encoder.norm", "vision.norm"),
]


def bert_attention(name: str) -> dict[str, str]:
    """The self-attention of bert.encoder.layer.N and its norm, which is called `name` here."""
    return {
        **{f"attention.self.{part}": f"{name}.{part}" for part in ("query", "key", "value")},
        "attention.output.dense": f"{name}.out",
        "attention.output.LayerNorm": f"{name}_norm",
    }


#: the rest of such a layer: cross-attention and feed-forward
BERT_LAYER = {
    "crossattention.self.query": "cross_attention.query",
    "crossattention.self.key": "cross_attention.key",
    "crossattention.self.value": "cross_attention.value",
    "crossattention.output.dense": "cross_attention.out",
    "crossattention.output.LayerNorm": "cross_norm",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
    "output.LayerNorm": "feed_forward_norm",
}
