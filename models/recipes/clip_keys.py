"""The weight names of OpenAI's CLIP and of open_clip's ViT models, and where each goes here.

Both release the same names and shapes. Two kinds of weights change their shape on the way: the
projections are stored as [D, E] to multiply from the right, and [CLS] and the positions lack the leading
axes of ours.
"""

from __future__ import annotations

from torch import Tensor

from models.recipes.renames import Rules, rename

INSIDE_BLOCK = {
    "ln_1.weight": "attention_norm.weight",
    "ln_1.bias": "attention_norm.bias",
    "attn.in_proj_weight": "attention.qkv.weight",
    "attn.in_proj_bias": "attention.qkv.bias",
    "attn.out_proj.weight": "attention.out.weight",
    "attn.out_proj.bias": "attention.out.bias",
    "ln_2.weight": "feed_forward_norm.weight",
    "ln_2.bias": "feed_forward_norm.bias",
    "mlp.c_fc.weight": "feed_forward.up.weight",
    "mlp.c_fc.bias": "feed_forward.up.bias",
    "mlp.c_proj.weight": "feed_forward.down.weight",
    "mlp.c_proj.bias": "feed_forward.down.bias",
}

RULES: Rules = (
    (r"visual\.class_embedding", r"vision.embed.cls"),
    (r"visual\.positional_embedding", r"vision.embed.positions"),
    (r"visual\.conv1\.weight", r"vision.embed.patch.weight"),
    (r"visual\.ln_pre\.(weight|bias)", r"vision.entry_norm.\1"),
    (r"visual\.transformer\.resblocks\.(?P<n>\d+)\.(?P<inside>.+)", r"vision.blocks.\g<n>.{inside}"),
    (r"visual\.ln_post\.(weight|bias)", r"vision.norm.\1"),
    (r"visual\.proj", r"image_projection.weight"),
    (r"token_embedding\.weight", r"text.embed.word.weight"),
    (r"positional_embedding", r"text.embed.position"),
    (r"transformer\.resblocks\.(?P<n>\d+)\.(?P<inside>.+)", r"text.blocks.\g<n>.{inside}"),
    (r"ln_final\.(weight|bias)", r"text.norm.\1"),
    (r"text_projection", r"text_projection.weight"),
    (r"logit_scale", r"logit_scale"),
)

#: Facts of OpenAI's archive that are no weights, and open_clip's causal mask.
IGNORED = ("input_resolution", "context_length", "vocab_size", "attn_mask")
TRANSPOSED = ("visual.proj", "text_projection")
LEADING_AXES = {"visual.class_embedding": (1, 1), "visual.positional_embedding": (1,)}


def our_name(published: str) -> str | None:
    """The name in `ClipModel` for a published one; None for one that carries no weight.

    Raises ValueError for a name that no CLIP with a ViT has.
    """
    if published in IGNORED:
        return None
    name = rename(published, RULES, inside=INSIDE_BLOCK)
    if name is None:
        raise ValueError(f"{published!r} is no weight of a CLIP with a ViT; is the file of another system?")
    return name


def our_value(published: str, value: Tensor) -> Tensor:
    """The tensor in our shape."""
    if published in TRANSPOSED:
        return value.T.contiguous()
    if published in LEADING_AXES:
        return value.reshape(*LEADING_AXES[published], *value.shape)
    return value
