"""ALBEF: align before fuse (Li et al., arXiv 2107.07651).

Blocks      pre-norm ViT; one post-norm BERT whose first half reads the text alone and whose second half
            lets the text ask the image tokens; a projection with bias on each [CLS]; a matching head on
            the fused [CLS]; BERT's word predictor tied to the word embedding.
Objectives  ITC against the momentum teacher's features of the batch and of a queue, with soft targets;
            ITM with hard negatives; MLM with the picture, soft targets too. Summed unweighted.
State       the momentum teacher (0.995) and the queue, in `AlbefSystem`.
Sizes       `base` is the paper's (ViT-B/16 at 256 px, BERT-base, queue 65536); `large` puts ViT-L/16 and
            BERT-large in their place, `small` ViT-S/16 and a BERT of that width; `tiny` learns small pictures
            on two CPU cores.

The student encodes each picture once and its text half reads clean and masked captions in one pass. The
fusion half takes matched pairs, both kinds of negatives and the masked captions in one pass of 4B rows,
with keys and values projected once per picture.

Deviations from the paper and its code
- Positives go by picture, in the contrast, the queue and the choice of negatives; the code masks the
  diagonal only in pre-training.
- Teacher features of all ranks are keys, not only the local batch's (equal on one process).
- The queue starts empty instead of full of random vectors.
- The constant in the choice of negatives is added after the softmax; a row without a negative is left out.
- Negatives are drawn from all processes; `itm_negatives="local"` is the code's.
- Dropout is the reference's in `base` and `large` (0.1 in BERT), and 0 in `tiny` and `small`, whose steps
  then are the same for every number of processes. The teacher has none (in the code it has the student's).
- Weights start at random here (0.02 at width 768, larger at smaller widths); the paper starts from DeiT
  and BERT-base, which may be loaded.
- The temperature is bounded in the forward pass instead of being clamped in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch, StepContext
from models.blocks.block import BlockConfig
from models.blocks.bounded import bounded
from models.blocks.embedders import BertEmbedder
from models.blocks.initialise import init_bert_, init_vit_
from models.blocks.text import BertEncoder, MlmHead
from models.blocks.vision import VisionTransformer
from models.objectives.gather import pad_columns
from models.objectives.itc import queue_itc, similarity
from models.objectives.itm import Negatives, Rows, check_scope, draw_both, itm_loss
from models.objectives.mlm import MaskedText, mask_tokens, mlm_loss
from models.precision import upcast
from models.recipes.base import ImageOutput, TextOutput
from models.recipes.momentum_system import MomentumSystem, alpha_at

__all__ = ["SIZES", "AlbefModel", "AlbefSystem", "Config", "alpha_at", "build"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every dimension of an ALBEF; the defaults are the paper's pre-training.

    Attributes:
        image_size: Side of the square pictures, in pixels.
        patch_size: Side of a patch, in pixels.
        vision_width: Width of the image tower.
        vision_depth: Blocks of the image tower.
        vision_heads: Attention heads of the image tower.
        text_width: Width of the BERT.
        text_depth: Layers of the BERT, fusion layers included.
        fusion_start: First layer with cross-attention; the layers before it see text only.
        text_heads: Attention heads of the BERT.
        mlp_ratio: Inner width of the feed-forward networks over the width.
        dropout: Of the BERT, in training: embeddings, attention weights and ends of branches.
        embed_dim: Width of the joint embedding.
        vocab_size: Entries of the tokenizer.
        pad_id: Token id of padding.
        cls_id: Token id that opens a text; never masked.
        mask_id: Token id that stands for a masked word.
        max_text_length: Tokens of a text, special tokens included.
        text_positions: Rows of the position table, at least max_text_length.
        mlm_probability: Share of the tokens that are masked.
        itm_negatives: `global` draws wrong pictures and texts from all processes, `local` from the own one.
        queue_size: Pairs in the queue; 0 for none.
        momentum: Momentum of the teacher.
        alpha: Weight of the teacher's soft targets; 0 for none.
        alpha_warmup: Epochs over which alpha rises from 0.
        temperature: Initial temperature of the contrast.
        gradient_checkpointing: Recompute the blocks in the backward pass to save memory.
    """

    image_size: int = 256
    patch_size: int = 16
    vision_width: int = 768
    vision_depth: int = 12
    vision_heads: int = 12
    text_width: int = 768
    text_depth: int = 12
    fusion_start: int = 6
    text_heads: int = 12
    mlp_ratio: int = 4
    dropout: float = 0.1
    embed_dim: int = 256
    vocab_size: int = 30522
    pad_id: int = 0
    cls_id: int = 101
    mask_id: int = 103
    max_text_length: int = 25
    text_positions: int = 512
    mlm_probability: float = 0.15
    itm_negatives: str = "global"
    queue_size: int = 65536
    momentum: float = 0.995
    alpha: float = 0.4
    alpha_warmup: float = 1.0
    temperature: float = 0.07
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        check_scope(self.itm_negatives)
        if self.max_text_length > self.text_positions:
            raise ValueError(
                f"max_text_length {self.max_text_length} exceeds text_positions {self.text_positions}; "
                "raise text_positions or shorten the texts"
            )
        for name in ("pad_id", "cls_id", "mask_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(
                    f"{name} {getattr(self, name)} lies outside vocab_size {self.vocab_size}; "
                    "take both from the tokenizer"
                )


SIZES: dict[str, Config] = {
    "tiny": Config(
        image_size=64, patch_size=8, vision_width=128, vision_depth=4, vision_heads=4,
        text_width=128, text_depth=4, fusion_start=2, text_heads=4, embed_dim=128,
        vocab_size=2048, cls_id=2, mask_id=4, max_text_length=32, text_positions=64, queue_size=1024,
        dropout=0.0,
    ),
    "small": Config(vision_width=384, vision_heads=6, text_width=384, text_heads=6, dropout=0.0),
    "base": Config(),
    "large": Config(
        vision_width=1024, vision_depth=24, vision_heads=16,
        text_width=1024, text_depth=24, fusion_start=12, text_heads=16,
    ),
}  # fmt: skip

VISION_EPS, BERT_EPS = 1e-6, 1e-12
TEMPERATURE_BOUNDS = (0.001, 0.5)


class AlbefModel(nn.Module):
    """The network. Its teacher is a copy of the whole; there the matching head is idle."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTransformer(
            BlockConfig(
                width=config.vision_width, heads=config.vision_heads,
                hidden=config.mlp_ratio * config.vision_width, eps=VISION_EPS,
            ),
            image_size=config.image_size, patch_size=config.patch_size, depth=config.vision_depth,
            recompute=config.gradient_checkpointing,
        )  # fmt: skip
        self.text = BertEncoder(
            BlockConfig(
                width=config.text_width, heads=config.text_heads, hidden=config.mlp_ratio * config.text_width,
                norm="post", eps=BERT_EPS, fused_qkv=False, dropout=config.dropout,
            ),
            embedder=BertEmbedder(
                vocab_size=config.vocab_size, positions=config.text_positions, token_types=2,
                width=config.text_width, pad_id=config.pad_id, eps=BERT_EPS, dropout=config.dropout,
            ),
            depth=config.text_depth, split=config.fusion_start, memory_width=config.vision_width,
            recompute=config.gradient_checkpointing,
        )  # fmt: skip
        self.mlm_head = MlmHead(config.text_width, config.vocab_size, eps=BERT_EPS)
        self.image_projection = nn.Linear(config.vision_width, config.embed_dim)
        self.text_projection = nn.Linear(config.text_width, config.embed_dim)
        self.itm_head = nn.Linear(config.text_width, 2)
        self.temperature = nn.Parameter(torch.tensor(config.temperature))
        init_vit_(self.vision)
        init_bert_(self.text, width=config.text_width)
        init_bert_(self.mlm_head, width=config.text_width)

    def image_feature(self, tokens_BND: Tensor) -> Tensor:
        """The unit joint embedding [B, E], float32, of the pictures' [CLS]."""
        return F.normalize(upcast(self.image_projection(tokens_BND[:, 0])), dim=-1)

    def text_feature(self, states_BTD: Tensor) -> Tensor:
        """The unit joint embedding [B, E], float32, of the texts' [CLS] after the text half."""
        return F.normalize(upcast(self.text_projection(states_BTD[:, 0])), dim=-1)

    def words(self, states_XD: Tensor) -> Tensor:
        """Word logits [..., V] of fused states [..., D]."""
        return self.mlm_head(states_XD, self.text.embed.word.weight)

    def encode_image(self, image_BCHW: Tensor) -> ImageOutput:
        tokens_BND = self.vision(image_BCHW)
        return ImageOutput(feature_BE=self.image_feature(tokens_BND), tokens_BND=tokens_BND)

    def encode_text(self, text_ids_BT: Tensor, text_mask_BT: Tensor) -> TextOutput:
        states_BTD = self.text.encode(text_ids_BT, text_mask_BT)
        return TextOutput(feature_BE=self.text_feature(states_BTD), states_BTD=states_BTD)

    def match(
        self,
        image_tokens_BND: Tensor,
        text_states_BTD: Tensor,
        text_mask_BT: Tensor,
        *,
        rows_B: Tensor | None = None,
    ) -> Tensor:
        """ITM logits [B, 2]; with `rows_B`, text i looks at picture rows_B[i] (few pictures, many texts)."""
        fused_BTD = self.text.fuse(text_states_BTD, text_mask_BT, image_tokens_BND, rows_B=rows_B)
        return self.itm_head(fused_BTD[:, 0])

    def mlm_logits(self, text_ids_BT: Tensor, text_mask_BT: Tensor, image_tokens_BND: Tensor) -> Tensor:
        states_BTD = self.text.encode(text_ids_BT, text_mask_BT)
        return self.words(self.text.fuse(states_BTD, text_mask_BT, image_tokens_BND))

    def forward(self, batch: Batch, context: StepContext, extras: dict[str, Any]) -> dict[str, Tensor]:
        """The three losses; `extras` is what `AlbefSystem.prepare` returned for this batch."""
        low, high = TEMPERATURE_BOUNDS
        temperature = bounded(self.temperature, low=low, high=high)
        masked: MaskedText = extras["masked"]

        image_BND = self.vision(batch.pictures)
        text_ids_2BT = torch.cat([batch.text_ids_BT, masked.ids_BT])
        clean_BTD, holes_BTD = self.text.encode(text_ids_2BT, batch.text_mask_BT.repeat(2, 1)).chunk(2)
        image_BE, text_BE = self.image_feature(image_BND), self.text_feature(clean_BTD)

        itc = queue_itc(
            image_BE,
            text_BE,
            batch.image_id_B,
            teacher_image_BE=extras["teacher_image_BE"],
            teacher_text_BE=extras["teacher_text_BE"],
            keys=extras["keys"],
            temperature=temperature,
            alpha=extras["alpha"],
        )
        rows = Rows.of(self.config.itm_negatives)
        no_text, no_image = self._negatives(batch, context, extras, image_BE, text_BE, temperature)
        pairs_3BTD, filled_BTD = self._fuse(
            image_BND, clean_BTD, holes_BTD, batch.text_mask_BT, no_image.index_B, no_text.index_B, rows
        )
        itm = itm_loss(
            self.itm_head(pairs_3BTD[:, 0]), no_image_B=~no_image.valid_B, no_text_B=~no_text.valid_B
        )
        word_logits_XV = self.words(masked.pick(filled_BTD))
        mlm = mlm_loss(word_logits_XV, masked.target_X, soft_XV=extras["soft_XV"], alpha=extras["alpha"])

        parts = {"itc": itc, "itm": itm, "mlm": mlm, "temperature": temperature}
        return {"loss": itc + itm + mlm} | {name: value.detach() for name, value in parts.items()}

    @torch.no_grad()
    def _negatives(
        self,
        batch: Batch,
        context: StepContext,
        extras: dict[str, Any],
        image_BE: Tensor,
        text_BE: Tensor,
        temperature: Tensor,
    ) -> tuple[Negatives, Negatives]:
        """A wrong text for each picture and a wrong picture for each text, by the student's features against
        the teacher's of the batch."""
        rows = Rows.of(self.config.itm_negatives)
        key_image_GE, key_text_GE, id_G = (rows.own(x, len(batch)) for x in extras["batch_keys"])
        return draw_both(
            batch, context, image_BE, text_BE, keys=(key_image_GE, key_text_GE, id_G),
            logits=lambda own_BE, key_GE: similarity(own_BE, key_GE) / temperature,
        )  # fmt: skip

    def _fuse(
        self,
        image_BND: Tensor,
        clean_BTD: Tensor,
        holes_BTD: Tensor,
        mask_BT: Tensor,
        no_image_B: Tensor,
        no_text_B: Tensor,
        rows: Rows,
    ) -> tuple[Tensor, Tensor]:
        """One fusion pass over [matched | negative picture | negative text | masked text with its picture].

        Returns the states of the first three groups, padded to the longest text of all ranks where negatives
        come from all, and those of the last, as long as they were.
        """
        own_B = torch.arange(len(image_BND), device=image_BND.device)
        memory_MND, wrong_B = rows.memories(image_BND, no_image_B)
        wrong_BTD, wrong_BT = rows.texts(clean_BTD, mask_BT, no_text_B)
        own_length, length = clean_BTD.shape[1], wrong_BTD.shape[1]
        clean_BTD, holes_BTD, mask_BT = (pad_columns(x, length) for x in (clean_BTD, holes_BTD, mask_BT))
        fused_4BTD = self.text.fuse(
            torch.cat([clean_BTD, clean_BTD, wrong_BTD, holes_BTD]),
            torch.cat([mask_BT, mask_BT, wrong_BT, mask_BT]),
            memory_MND,
            rows_B=torch.cat([own_B, wrong_B, own_B, own_B]),
        )
        return fused_4BTD[: 3 * len(own_B)], fused_4BTD[3 * len(own_B) :, :own_length]


class AlbefSystem(MomentumSystem[AlbefModel, Config]):
    """The model, its teacher and its queue."""

    def __init__(self, config: Config) -> None:
        super().__init__(model=AlbefModel(config), config=config)

    def ask_teacher(self, batch: Batch, context: StepContext) -> dict[str, Any]:
        """The masked text, and the teacher's features and word probabilities."""
        config = self.config
        masked = mask_tokens(
            batch.text_ids_BT, batch.text_mask_BT, context=context, row_B=batch.row_B,
            probability=config.mlm_probability, mask_id=config.mask_id, vocab_size=config.vocab_size,
            keep_ids=(config.pad_id, config.cls_id),
        )  # fmt: skip
        soft_XV = None
        with self.teacher.inference(self.model.itm_head.weight.dtype) as teacher:
            image_BND = teacher.vision(batch.pictures)
            clean_BTD = teacher.text.encode(batch.text_ids_BT, batch.text_mask_BT)
            image_BE, text_BE = teacher.image_feature(image_BND), teacher.text_feature(clean_BTD)
            if config.alpha > 0:
                holes_BTD = teacher.text.encode(masked.ids_BT, batch.text_mask_BT)
                filled_BTD = teacher.text.fuse(holes_BTD, batch.text_mask_BT, image_BND)
                soft_XV = F.softmax(upcast(teacher.words(masked.pick(filled_BTD))), dim=-1)
        return {
            "masked": masked,
            "soft_XV": soft_XV,
            "teacher_image_BE": image_BE,
            "teacher_text_BE": text_BE,
        }


def build(config: Config) -> AlbefSystem:
    """A fresh ALBEF; seed torch before."""
    return AlbefSystem(config)
