"""The weight names of OpenAI's CLIP and of open_clip's ViT models, and of transformers' CLIPModel.

The first two release the same names and shapes. Two kinds of weights change their shape on the way: the
projections are stored as [D, E] to multiply from the right, and [CLS] and the positions lack the leading
axes of ours. transformers holds query, key and value in three matrices.
"""

from __future__ import annotations

from models.recipes.renames import KeyMap, LeadingAxes, Part, Transposed, within

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
    ignored=("input_resolution", "context_length", "vocab_size", r"(.+\.)?attn_mask"),
)

#: text_model.encoder.layers.N and vision_model.encoder.layers.N
LAYER = {
    "layer_norm1": "attention_norm",
    "self_attn.q_proj": "attention.qkv",
    "self_attn.k_proj": "attention.qkv",
    "self_attn.v_proj": "attention.qkv",
    "self_attn.out_proj": "attention.out",
    "layer_norm2": "feed_forward_norm",
    "mlp.fc1": "feed_forward.up",
    "mlp.fc2": "feed_forward.down",
}

TRANSFORMERS = KeyMap(
    pairs=[
        ("vision_model.embeddings.class_embedding", "vision.embed.cls"),
        ("vision_model.embeddings.position_embedding.weight", "vision.embed.positions"),
        ("vision_model.embeddings.patch_embedding", "vision.embed.patch"),
        ("vision_model.pre_layrnorm", "vision.entry_norm"),
        *within("vision_model.encoder.layers.{n}", "vision.blocks.{n}", LAYER),
        ("vision_model.post_layernorm", "vision.norm"),
        ("visual_projection", "image_projection"),
        ("text_model.embeddings.token_embedding.weight", "text.embed.word.weight"),
        ("text_model.embeddings.position_embedding.weight", "text.embed.position"),
        *within("text_model.encoder.layers.{n}", "text.blocks.{n}", LAYER),
        ("text_model.final_layer_norm", "text.norm"),
        ("text_projection", "text_projection"),
        ("logit_scale", "logit_scale"),
    ],
    changes={
        "vision_model.embeddings.class_embedding": LeadingAxes(2),
        "vision_model.embeddings.position_embedding.weight": LeadingAxes(1),
        **{
            f"{tower}_model.encoder.layers.{{n}}.self_attn.{name}_proj": Part(index)
            for tower in ("vision", "text")
            for index, name in enumerate("qkv")
        },
    },
    ignored=(r"(text|vision)_model\.embeddings\.position_ids",),
)
