"""The weight names of published BLIP checkpoints and of transformers' BLIP, and where each goes here.

A published file is `{"model": state_dict}`. `KEYS` is pre-training: student, `_m` copies (to `teacher.*`),
queue (transposed: theirs is [E, Q]). `RETRIEVAL` has no decoder, and a queue with picture ids; `CAPTIONING`
has the decoder alone. Encoder and decoder are stored one after the other there, with what they share standing
twice (word embeddings three times); here everything stands once. `KEYS` knows the names of the other two as
well, except for the retrieval's `idx_queue` and `ptr_queue`: what a file lacks tells it apart.

transformers has two classes of ours: BlipForConditionalGeneration (`TRANSFORMERS_CAPTIONING`) and
BlipForImageTextRetrieval (`TRANSFORMERS_RETRIEVAL`), which differ in the names of the image tower alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from models.recipes.backbone_keys import BERT_LAYER, VISION, bert_attention
from models.recipes.renames import Change, KeyMap, OneElement, Transposed, within

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class OneRow:
    """[1, Q] there, [Q] here."""

    def to_ours(self, value: Tensor) -> Tensor:
        return value.reshape(-1)

    def to_published(self, value: Tensor) -> Tensor:
        return value.reshape(1, -1)


_TRANSFORMERS_VISION = [
    ("vision_model.embeddings.class_embedding", "vision.embed.cls"),
    ("vision_model.embeddings.position_embedding", "vision.embed.positions"),
    ("vision_model.embeddings.patch_embedding", "vision.embed.patch"),
    *within(
        "vision_model.encoder.layers.{n}",
        "vision.blocks.{n}",
        {
            "layer_norm1": "attention_norm",
            "self_attn.qkv": "attention.qkv",
            "self_attn.projection": "attention.out",
            "layer_norm2": "feed_forward_norm",
            "mlp.fc1": "feed_forward.up",
            "mlp.fc2": "feed_forward.down",
        },
    ),
    ("vision_model.post_layernorm", "vision.norm"),
]


def _text(bert: str, attention: str) -> list[tuple[str, str]]:
    """The pairs of encoder or decoder; `attention` is the name here of its own self-attention."""
    layer = bert_attention(attention) | BERT_LAYER
    return [
        (f"{bert}.embeddings.word_embeddings", "text.embed.word"),
        (f"{bert}.embeddings.position_embeddings", "text.embed.position"),
        (f"{bert}.embeddings.LayerNorm", "text.embed.norm"),
        *within(f"{bert}.encoder.layer.{{n}}", "text.layers.{n}", layer),
    ]


_ENCODER = _text("text_encoder", "attention")
_DECODER = [
    *_text("text_decoder.bert", "decoder_attention"),
    ("text_decoder.cls.predictions.transform.dense", "lm_head.dense"),
    ("text_decoder.cls.predictions.transform.LayerNorm", "lm_head.norm"),
    ("text_decoder.cls.predictions.bias", "lm_head.bias"),
    ("text_decoder.cls.predictions.decoder.bias", "lm_head.bias"),
    ("text_decoder.cls.predictions.decoder.weight", "text.embed.word.weight"),
]
_PROJECTIONS = [("vision_proj", "image_projection"), ("text_proj", "text_projection")]
_MATCHING = [("itm_head", "itm_head")]
_TEMPERATURE = [("temp", "temperature")]


def _teacher(pairs: Pairs) -> list[tuple[str, str]]:
    """The `_m` copies of the towers and projections."""
    copies = []
    for published, ours in pairs:
        tower, dot, rest = published.partition(".")
        copies.append((f"{tower}_m{dot}{rest}", f"teacher.{ours}"))
    return copies


_STUDENT = [*VISION, *_ENCODER, *_PROJECTIONS, *_MATCHING, *_TEMPERATURE]
_COPIES = _teacher([*VISION, *_ENCODER, *_PROJECTIONS])
_QUEUE = [("image_queue", "queue.image"), ("text_queue", "queue.text")]
_CHANGES: dict[str, Change] = {
    "image_queue": Transposed(),
    "text_queue": Transposed(),
    "queue_ptr": OneElement(),
    "ptr_queue": OneElement(),
    "idx_queue": OneRow(),
}
_IGNORED = (r"(text_encoder(_m)?|text_decoder\.bert)\.embeddings\.position_ids",)
#: what retrieval files lack: the decoder
_NO_DECODER = (r"lm_head\..*", r"text\.layers\.\d+\.decoder_attention(_norm)?\..*")
#: what captioning files lack: the encoder's self-attention, the contrast and the matching head
_NO_ENCODER = (
    r"text\.layers\.\d+\.attention(_norm)?\..*", r"(image|text)_projection\..*", r"itm_head\..*",
    "temperature",
)  # fmt: skip

KEYS = KeyMap(
    pairs=[*_STUDENT, *_DECODER, *_COPIES, *_QUEUE, ("queue_ptr", "queue.cursor")],
    changes=_CHANGES,
    ignored=_IGNORED,
)
RETRIEVAL = KeyMap(
    pairs=[*_STUDENT, *_COPIES, *_QUEUE, ("ptr_queue", "queue.cursor"), ("idx_queue", "queue.id")],
    changes=_CHANGES,
    ignored=_IGNORED,
    fresh=_NO_DECODER,
)
CAPTIONING = KeyMap(pairs=[*VISION, *_DECODER], ignored=_IGNORED, fresh=_NO_ENCODER)
TRANSFORMERS_CAPTIONING = KeyMap(
    pairs=[*_TRANSFORMERS_VISION, *_DECODER], ignored=_IGNORED, fresh=_NO_ENCODER
)
#: both classes in one folder
TRANSFORMERS = KeyMap(
    pairs=[*_TRANSFORMERS_VISION, *_ENCODER, *_DECODER, *_PROJECTIONS, *_MATCHING],
    ignored=_IGNORED,
    fresh=("temperature",),
)
TRANSFORMERS_RETRIEVAL = KeyMap(
    pairs=[*_TRANSFORMERS_VISION, *_ENCODER, *_PROJECTIONS, *_MATCHING],
    ignored=_IGNORED,
    fresh=(*_NO_DECODER, "temperature"),
)
