"""The weight names of published ALBEF checkpoints, and where each goes here.

A published file is `{"model": state_dict}`. Student weights go to the model, their `_m` copies to
`teacher.*`, the queue to `queue.*` (transposed: theirs is [E, Q]). Retrieval and VQA files drop the
`bert.` prefix and have no word predictor: that is `RETRIEVAL`. The word predictor's output matrix and bias
are stored twice there and held once here. There is no `_m` of `itm_head` and `temp`: the teacher copies the
student's.
"""

from __future__ import annotations

from models.recipes.backbone_keys import BERT_LAYER, VISION, bert_attention
from models.recipes.renames import Change, KeyMap, OneElement, Transposed, within


def _pairs(bert: str) -> list[tuple[str, str]]:
    """The student's pairs; `bert` is the prefix of the text encoder's body."""
    return [
        *VISION,
        (f"{bert}.embeddings.word_embeddings", "text.embed.word"),
        (f"{bert}.embeddings.position_embeddings", "text.embed.position"),
        (f"{bert}.embeddings.token_type_embeddings", "text.embed.token_type"),
        (f"{bert}.embeddings.LayerNorm", "text.embed.norm"),
        *within(f"{bert}.encoder.layer.{{n}}", "text.layers.{n}", bert_attention("attention") | BERT_LAYER),
        ("vision_proj", "image_projection"),
        ("text_proj", "text_projection"),
        ("itm_head", "itm_head"),
        ("temp", "temperature"),
    ]


_WORDS = [
    ("text_encoder.cls.predictions.transform.dense", "mlm_head.dense"),
    ("text_encoder.cls.predictions.transform.LayerNorm", "mlm_head.norm"),
    ("text_encoder.cls.predictions.bias", "mlm_head.bias"),
    ("text_encoder.cls.predictions.decoder.bias", "mlm_head.bias"),
    ("text_encoder.cls.predictions.decoder.weight", "text.embed.word.weight"),
]


def _with_teacher(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs, those of the `_m` copies, and the queue."""
    copies = []
    for published, ours in pairs:
        tower, dot, rest = published.partition(".")
        if tower not in ("itm_head", "temp"):
            copies.append((f"{tower}_m{dot}{rest}", f"teacher.{ours}"))
    queue = [("image_queue", "queue.image"), ("text_queue", "queue.text"), ("queue_ptr", "queue.cursor")]
    return [*pairs, *copies, *queue]


_CHANGES: dict[str, Change] = {
    "image_queue": Transposed(),
    "text_queue": Transposed(),
    "queue_ptr": OneElement(),
}
#: constant buffers, and picture numbers that mean something in the data set of that run alone
_IGNORED = (r"text_encoder(_m)?\.(bert\.)?embeddings\.position_ids", "idx_queue")

KEYS = KeyMap(pairs=_with_teacher(_pairs("text_encoder.bert") + _WORDS), changes=_CHANGES, ignored=_IGNORED)
RETRIEVAL = KeyMap(
    pairs=_with_teacher(_pairs("text_encoder")), changes=_CHANGES, ignored=_IGNORED, fresh=(r"mlm_head\..*",)
)
