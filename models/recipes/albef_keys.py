"""The weight names of published ALBEF checkpoints, and where each goes here.

A published file is `{"model": state_dict}`. Student weights go to `model.*`, their `_m` copies to
`teacher.*`, the queue to `queue.*` (transposed: theirs is [E, Q]). Retrieval and VQA files drop the
`bert.` prefix; both forms are read. The word predictor's output matrix and bias are stored twice there
and held once here. There is no `_m` of `itm_head` and `temp`: the teacher copies the student's.
"""

from __future__ import annotations

from models.recipes.renames import Rules, rename

INSIDE_BLOCK = {
    # visual_encoder.blocks.N
    "norm1": "attention_norm",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "norm2": "feed_forward_norm",
    "mlp.fc1": "feed_forward.up",
    "mlp.fc2": "feed_forward.down",
    # text_encoder.bert.encoder.layer.N
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "attention_norm",
    "crossattention.self.query": "cross_attention.query",
    "crossattention.self.key": "cross_attention.key",
    "crossattention.self.value": "cross_attention.value",
    "crossattention.output.dense": "cross_attention.out",
    "crossattention.output.LayerNorm": "cross_norm",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
    "output.LayerNorm": "feed_forward_norm",
}

_WB = r"(?P<kind>weight|bias)"
RULES: Rules = (
    (r"visual_encoder\.cls_token", r"vision.embed.cls"),
    (r"visual_encoder\.pos_embed", r"vision.embed.positions"),
    (rf"visual_encoder\.patch_embed\.proj\.{_WB}", r"vision.embed.patch.\g<kind>"),
    (rf"visual_encoder\.blocks\.(?P<n>\d+)\.(?P<inside>.+)\.{_WB}", r"vision.blocks.\g<n>.{inside}.\g<kind>"),
    (rf"visual_encoder\.norm\.{_WB}", r"vision.norm.\g<kind>"),
    (r"text_encoder\.(bert\.)?embeddings\.(?P<table>word|position|token_type)_embeddings\.weight",
     r"text.embed.\g<table>.weight"),
    (rf"text_encoder\.(bert\.)?embeddings\.LayerNorm\.{_WB}", r"text.embed.norm.\g<kind>"),
    (rf"text_encoder\.(bert\.)?encoder\.layer\.(?P<n>\d+)\.(?P<inside>.+)\.{_WB}",
     r"text.layers.\g<n>.{inside}.\g<kind>"),
    (rf"text_encoder\.cls\.predictions\.transform\.dense\.{_WB}", r"mlm_head.dense.\g<kind>"),
    (rf"text_encoder\.cls\.predictions\.transform\.LayerNorm\.{_WB}", r"mlm_head.norm.\g<kind>"),
    (r"text_encoder\.cls\.predictions\.(decoder\.)?bias", r"mlm_head.bias"),
    (r"text_encoder\.cls\.predictions\.decoder\.weight", r"text.embed.word.weight"),
    (rf"vision_proj\.{_WB}", r"image_projection.\g<kind>"),
    (rf"text_proj\.{_WB}", r"text_projection.\g<kind>"),
    (rf"itm_head\.{_WB}", r"itm_head.\g<kind>"),
    (r"temp", r"temperature"),
)  # fmt: skip

#: Stored a second time under these names; equal to the weight they are tied to.
TIED = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")

#: Buffers: position_ids is a constant; the queue goes to `queue.*`.
BUFFERS = {"image_queue": "queue.image", "text_queue": "queue.text", "queue_ptr": "queue.cursor"}
IGNORED = ("embeddings.position_ids",)


def our_name(published: str) -> str | None:
    """`model.*`, `teacher.*` or `queue.*` for a published name; None for one that carries nothing.

    Raises ValueError for a name that no ALBEF checkpoint has.
    """
    if published.endswith(IGNORED):
        return None
    if published in BUFFERS:
        return BUFFERS[published]
    tower, dot, rest = published.partition(".")
    owner = "teacher" if tower.endswith("_m") else "model"
    name = rename(tower.removesuffix("_m") + dot + rest, RULES, inside=INSIDE_BLOCK)
    if name is None:
        raise ValueError(f"{published!r} is no weight of an ALBEF checkpoint; is the file of another system?")
    return f"{owner}.{name}"
