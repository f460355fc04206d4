"""The weight names of OpenAI's CLIP and of open_clip's ViT models, and where each goes here.

Both release the same names and shapes. Two kinds of weights change their shape on the way: the
projections are stored as [D, E] to multiply from the right, and [CLS] and the positions lack the leading
axes of ours.
"""

from __future__ import annotations

from models.recipes.renames import KeyMap, LeadingAxes, Transposed, within

RESBLOCK = {
    "ln_1": "attention_norm",
    "attn.in_proj_weight": "attention.qkv.weight",
    "attn.in_proj_bias": "attention.qkv.bias",
    "attn.out_proj": "attention.out",
    "ln_2": "feed_forward_norm",
    "mlp.c_fc": "feed_forward.up",
    "mlp.c_proj": "feed_forward.down",
}

#: Facts of OpenAI's archive that are no weights, and open_clip's causal mask, are ignored.
KEYS = KeyMap(
    pairs=[
        ("visual.class_embedding", "vision.embed.cls"),
        ("visual.positional_embedding", "vision.embed.positions"),
        ("visual.conv1", "vision.embed.patch"),
        ("visual.ln_pre", "vision.entry_norm"),
        *within("visual.transformer.resblocks.{n}", "vision.blocks.{n}", RESBLOCK),
        ("visual.ln_post", "vision.norm"),
        ("visual.proj", "image_projection.weight"),
        ("token_embedding", "text.embed.word"),
        ("positional_embedding", "text.embed.position"),
        *within("transformer.resblocks.{n}", "text.blocks.{n}", RESBLOCK),
        ("ln_final", "text.norm"),
        ("text_projection", "text_projection.weight"),
        ("logit_scale", "logit_scale"),
    ],
    changes={
        "visual.proj": Transposed(),
        "text_projection": Transposed(),
        "visual.class_embedding": LeadingAxes(2),
        "visual.positional_embedding": LeadingAxes(1),
    },
    ignored=("input_resolution", "context_length", "vocab_size", "attn_mask"),
)
