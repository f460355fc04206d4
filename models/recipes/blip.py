"""BLIP: bootstrapping language-image pre-training (Li et al., arXiv 2201.12086).

Blocks      pre-norm ViT; one post-norm BERT without token types in three modes (`models.blocks.tied_text`):
            text alone from [CLS], grounded in a picture from [ENC], causal decoder from [DEC]. Grounded
            encoder and decoder share all but the self-attention. A projection with bias on each [CLS]; a
            matching head on the grounded [ENC]; BERT's word predictor on the decoder.
Objectives  ITC against the momentum teacher's features of the batch and of a queue, with soft targets;
            ITM with hard negatives; LM with label smoothing. Summed unweighted.
State       the momentum teacher (0.995) and the queue, in `BlipSystem`; none for LM alone.
Sizes       `base` is the paper's (ViT-B/16 at 224 px, BERT-base, queue 57600), `large` with ViT-L/16; `tiny`
            learns small pictures on two CPU cores.

Fine-tuning by the Config: the captioner is `objectives=("lm",), prompt="a picture of "`; filter and retrieval
are `objectives=("itc", "itm"), itm_similarity="online"`. What an objective alone needs is frozen
when that is off.

The student encodes each picture once. Matched pairs, both kinds of negatives and the captions to be written
go through the layers in one pass of 4B rows, with keys and values projected once per picture.

Deviations from the paper and its code
- Positives go by picture, in the contrast, the queue and the choice of negatives; the code masks the
  diagonal only in pre-training.
- Teacher features of all ranks are keys, not only the local batch's (equal on one process).
- `itm_negatives` is `global` by default; the code's pre-training draws from the own process.
- The queue starts empty instead of full of random vectors.
- The constant in the choice of negatives is added to the online similarity too; a row without a negative is
  left out.
- A prompt comes on top of `max_text_length`; the code cuts prompt and caption together.
- Dropout is the code's in `base` and `large` (0.1 in BERT), and 0 in `tiny` and `small`, whose steps then
  are the same for every number of processes. The teacher has none (in the code it has the student's).
- Weights start at random here (0.02 at width 768, larger at smaller widths); the paper starts from ViT and
  BERT-base, which may be loaded.
- The temperature is bounded in the forward pass instead of being clamped in place.
- The teacher holds no word predictor, no matching head and no decoder, which nothing would ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch, StepContext
from models.blocks.block import BlockConfig, TransformerBlock
from models.blocks.bounded import bounded
from models.blocks.decoding import CachedDecoder
from models.blocks.embedders import BertEmbedder
from models.blocks.initialise import init_bert_, init_vit_
from models.blocks.text import MlmHead
from models.blocks.tied_text import TiedBert, TiedLayer
from models.blocks.vision import VisionTransformer
from models.objectives.gather import gather, pad_columns
from models.objectives.itc import queue_itc, similarity
from models.objectives.itm import Negatives, Rows, check_scope, draw_both, itm_loss
from models.objectives.lm import Continuation, continuation, lm_loss
from models.precision import upcast
from models.recipes.base import ImageOutput, StatelessSystem, TextOutput
from models.recipes.momentum_system import MomentumSystem

OBJECTIVES = ("itc", "itm", "lm")
SIMILARITIES = ("teacher", "online")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every dimension of a BLIP; the defaults are the paper's pre-training.

    Attributes:
        image_size: Side of the square pictures, in pixels.
        patch_size: Side of a patch, in pixels.
        vision_width: Width of the image tower.
        vision_depth: Blocks of the image tower.
        vision_heads: Attention heads of the image tower.
        mlp_ratio: Inner width of the image tower's feed-forward networks over its width.
        drop_path: Chance to skip a branch of the last image block; rises linearly from 0 at the first.
        text_width: Width of the BERT.
        text_depth: Layers of the BERT, each with cross-attention.
        text_heads: Attention heads of the BERT.
        text_mlp_ratio: Inner width of the BERT's feed-forward networks over its width.
        dropout: Of the BERT, in training: embeddings, attention weights and ends of branches.
        embed_dim: Width of the joint embedding.
        vocab_size: Entries of the tokenizer, [DEC] and [ENC] included.
        pad_id: Token id of padding.
        sep_id: Token id that closes a text.
        dec_id: Token id that opens a text to be written.
        enc_id: Token id that opens a text grounded in a picture.
        max_text_length: Tokens of a text, special tokens included.
        text_positions: Rows of the position table, at least max_text_length and the prompt.
        objectives: Losses that are summed, of itc, itm and lm; itm needs itc.
        prompt: What the decoder reads before each caption and is not asked to predict.
        prompt_ids: Token ids of the prompt; the tokenizer fills them in.
        label_smoothing: Of the captions' next tokens.
        itm_negatives: `global` draws wrong pictures and texts from all processes, `local` from the own one.
        itm_similarity: `teacher` draws them by the similarity with the teacher's features, as pre-training
            does, `online` by the student's own, as retrieval fine-tuning does.
        queue_size: Pairs in the queue; 0 for none.
        momentum: Momentum of the teacher.
        alpha: Weight of the teacher's soft targets; 0 for none.
        alpha_warmup: Epochs over which alpha rises from 0.
        temperature: Initial temperature of the contrast.
        gradient_checkpointing: Recompute the blocks in the backward pass to save memory.
    """

    image_size: int = 224
    patch_size: int = 16
    vision_width: int = 768
    vision_depth: int = 12
    vision_heads: int = 12
    mlp_ratio: int = 4
    drop_path: float = 0.0
    text_width: int = 768
    text_depth: int = 12
    text_heads: int = 12
    text_mlp_ratio: int = 4
    dropout: float = 0.1
    embed_dim: int = 256
    vocab_size: int = 30524
    pad_id: int = 0
    sep_id: int = 102
    dec_id: int = 30522
    enc_id: int = 30523
    max_text_length: int = 30
    text_positions: int = 512
    objectives: tuple[str, ...] = OBJECTIVES
    prompt: str = ""
    prompt_ids: tuple[int, ...] = ()
    label_smoothing: float = 0.1
    itm_negatives: str = "global"
    itm_similarity: str = "teacher"
    queue_size: int = 57600
    momentum: float = 0.995
    alpha: float = 0.4
    alpha_warmup: float = 2.0
    temperature: float = 0.07
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        check_scope(self.itm_negatives)
        unknown = sorted(set(self.objectives) - set(OBJECTIVES))
        if unknown or not self.objectives:
            raise ValueError(
                f"objectives {list(self.objectives)}: give one or more of {', '.join(OBJECTIVES)}"
            )
        if "itm" in self.objectives and "itc" not in self.objectives:
            raise ValueError("objective itm draws its negatives by the contrast; add itc to objectives")
        if self.itm_similarity not in SIMILARITIES:
            raise ValueError(f"itm_similarity {self.itm_similarity!r} is unknown; use teacher or online")
        longest = self.max_text_length + len(self.prompt_ids)
        if longest > self.text_positions:
            raise ValueError(
                f"max_text_length {self.max_text_length} and a prompt of {len(self.prompt_ids)} tokens "
                f"exceed text_positions {self.text_positions}; raise text_positions or shorten the texts"
            )
        for name in ("pad_id", "sep_id", "dec_id", "enc_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(
                    f"{name} {getattr(self, name)} lies outside vocab_size {self.vocab_size}; "
                    "take both from the tokenizer"
                )


SIZES: dict[str, Config] = {
    "tiny": Config(
        image_size=64, patch_size=8, vision_width=128, vision_depth=4, vision_heads=4,
        text_width=128, text_depth=3, text_heads=4, embed_dim=128, vocab_size=2050, sep_id=3, dec_id=2048,
        enc_id=2049, max_text_length=32, text_positions=64, queue_size=1024, dropout=0.0,
    ),
    "small": Config(
        vision_width=384, vision_heads=6, text_width=384, text_depth=6, text_heads=6, queue_size=16384,
        dropout=0.0,
    ),
    "base": Config(),
    "large": Config(vision_width=1024, vision_depth=24, vision_heads=16, drop_path=0.1),
}  # fmt: skip

VISION_EPS, BERT_EPS = 1e-6, 1e-12
TEMPERATURE_BOUNDS = (0.001, 0.5)


class BlipModel(nn.Module):
    """The network. Its teacher is a copy of what the contrast needs."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.prompt and not config.prompt_ids:
            raise ValueError(
                f"prompt {config.prompt!r} has no prompt_ids; let tokenizer.fit(config) fill them in"
            )
        self.config = config
        self.vision = VisionTransformer(
            BlockConfig(
                width=config.vision_width, heads=config.vision_heads,
                hidden=config.mlp_ratio * config.vision_width, eps=VISION_EPS,
            ),
            image_size=config.image_size, patch_size=config.patch_size, depth=config.vision_depth,
            recompute=config.gradient_checkpointing,
        )  # fmt: skip
        for index, block in enumerate(self.vision.blocks):
            assert isinstance(block, TransformerBlock)
            block.drop_path = config.drop_path * index / max(1, config.vision_depth - 1)
        self.text = TiedBert(
            BlockConfig(
                width=config.text_width, heads=config.text_heads,
                hidden=config.text_mlp_ratio * config.text_width, norm="post", eps=BERT_EPS,
                memory_width=config.vision_width, dropout=config.dropout,
            ),
            embedder=BertEmbedder(
                vocab_size=config.vocab_size, positions=config.text_positions, token_types=0,
                width=config.text_width, pad_id=config.pad_id, eps=BERT_EPS, dropout=config.dropout,
            ),
            depth=config.text_depth, recompute=config.gradient_checkpointing,
        )  # fmt: skip
        self.lm_head = MlmHead(config.text_width, config.vocab_size, eps=BERT_EPS)
        self.image_projection = nn.Linear(config.vision_width, config.embed_dim)
        self.text_projection = nn.Linear(config.text_width, config.embed_dim)
        self.itm_head = nn.Linear(config.text_width, 2)
        self.temperature = nn.Parameter(torch.tensor(config.temperature))
        init_vit_(self.vision)
        init_bert_(self.text, width=config.text_width)
        init_bert_(self.lm_head, width=config.text_width)
        self._freeze_idle()

    def image_feature(self, tokens_BND: Tensor) -> Tensor:
        """The unit joint embedding [B, E], float32, of the pictures' [CLS]."""
        return F.normalize(upcast(self.image_projection(tokens_BND[:, 0])), dim=-1)

    def text_feature(self, states_BTD: Tensor) -> Tensor:
        """The unit joint embedding [B, E], float32, of the texts' [CLS] in text mode."""
        return F.normalize(upcast(self.text_projection(states_BTD[:, 0])), dim=-1)

    def words(self, states_XD: Tensor) -> Tensor:
        """Word logits [..., V] of the decoder's states [..., D]."""
        return self.lm_head(states_XD, self.text.embed.word.weight)

    def encode_image(self, image_BCHW: Tensor) -> ImageOutput:
        tokens_BND = self.vision(image_BCHW)
        return ImageOutput(feature_BE=self.image_feature(tokens_BND), tokens_BND=tokens_BND)

    def encode_text(self, text_ids_BT: Tensor, text_mask_BT: Tensor) -> TextOutput:
        """The grounded encoder begins anew from the words: `states_BTD` are the embedded ones with [ENC]."""
        states_BTD = self.text.encode(text_ids_BT, text_mask_BT)
        return TextOutput(feature_BE=self.text_feature(states_BTD), states_BTD=self.ground(text_ids_BT))

    def ground(self, text_ids_BT: Tensor) -> Tensor:
        """What `match` begins with, [B, T, D]: the embedded words with [ENC], which ask no text mode."""
        return self.text.embed(opened(text_ids_BT, self.config.enc_id))

    def match(
        self,
        image_tokens_BND: Tensor,
        text_states_BTD: Tensor,
        text_mask_BT: Tensor,
        *,
        rows_B: Tensor | None = None,
    ) -> Tensor:
        """ITM logits [B, 2]; with `rows_B`, text i looks at picture rows_B[i] (few pictures, many texts)."""
        grounded_BTD = self.text.run(text_states_BTD, text_mask_BT, image_tokens_BND, rows_R=rows_B)
        return self.itm_head(grounded_BTD[:, 0])

    def lm_logits(
        self,
        text_ids_BT: Tensor,
        text_mask_BT: Tensor,
        image_tokens_BND: Tensor,
        *,
        rows_B: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V] of the next token, for ids that begin with [DEC] (and a prompt)."""
        states_BTD = self.text.run(
            self.text.embed(text_ids_BT), text_mask_BT, image_tokens_BND,
            rows_R=rows_B, decoding=len(text_ids_BT),
        )  # fmt: skip
        return self.words(states_BTD)

    def decoder(self, image_tokens_MND: Tensor) -> CachedDecoder:
        """Writes texts about the pictures token by token; the first token is [DEC]."""
        return CachedDecoder(self.text, self.words, image_tokens_MND)

    def forward(self, batch: Batch, context: StepContext, extras: dict[str, Any]) -> dict[str, Tensor]:
        """The losses that are on; `extras` is what `BlipSystem.prepare` returned for this batch."""
        wanted = self.config.objectives
        image_BND = self.vision(batch.pictures)
        parts: dict[str, Tensor] = {}
        rows = Rows.of(self.config.itm_negatives)
        no_text = no_image = text = None
        if "itc" in wanted:
            low, high = TEMPERATURE_BOUNDS
            temperature = bounded(self.temperature, low=low, high=high)
            image_BE = self.image_feature(image_BND)
            text_BE = self.text_feature(self.text.encode(batch.text_ids_BT, batch.text_mask_BT))
            parts["itc"] = queue_itc(
                image_BE,
                text_BE,
                batch.image_id_B,
                teacher_image_BE=extras["teacher_image_BE"],
                teacher_text_BE=extras["teacher_text_BE"],
                keys=extras["keys"],
                temperature=temperature,
                alpha=extras["alpha"],
            )
            if "itm" in wanted:
                keys = self._negative_keys(extras, image_BE, text_BE, rows)
                no_text, no_image = draw_both(
                    batch, context, image_BE, text_BE, keys=keys,
                    logits=lambda own_BE, key_GE: similarity(own_BE, key_GE) / temperature,
                )  # fmt: skip
        if "lm" in wanted:
            text = continuation(
                batch.text_ids_BT, batch.text_mask_BT,
                first_id=self.config.dec_id, prompt_ids=self.config.prompt_ids,
            )  # fmt: skip
        if text is not None or no_text is not None:
            pairs_3BTD, written_BTD = self._ground(batch, image_BND, no_image, no_text, text, rows)
        if no_image is not None and no_text is not None:
            logits_3B2 = self.itm_head(pairs_3BTD[:, 0])
            parts["itm"] = itm_loss(logits_3B2, no_image_B=~no_image.valid_B, no_text_B=~no_text.valid_B)
        if text is not None:
            logits_XV = self.words(text.pick(written_BTD))
            parts["lm"] = lm_loss(logits_XV, text.target_X, smoothing=self.config.label_smoothing)
        told = {name: value.detach() for name, value in parts.items()}
        if "itc" in wanted:
            told["temperature"] = temperature.detach()
        return {"loss": torch.stack(list(parts.values())).sum()} | told

    def _ground(
        self,
        batch: Batch,
        image_BND: Tensor,
        no_image: Negatives | None,
        no_text: Negatives | None,
        text: Continuation | None,
        rows: Rows,
    ) -> tuple[Tensor, Tensor]:
        """One pass over [matched | negative picture | negative text | caption to be written].

        Returns the states of the first three groups (empty without negatives) and those of the last.
        """
        ids, masks, memory_MND = [], [], image_BND
        own_B = torch.arange(len(batch), device=image_BND.device)
        looks = []
        if no_image is not None and no_text is not None:
            grounded_BT = opened(batch.text_ids_BT, self.config.enc_id)
            memory_MND, wrong_B = rows.memories(image_BND, no_image.index_B)
            wrong_ids_BT, wrong_BT = rows.texts(grounded_BT, batch.text_mask_BT, no_text.index_B)
            ids += [grounded_BT, grounded_BT, wrong_ids_BT]
            masks += [batch.text_mask_BT, batch.text_mask_BT, wrong_BT]
            looks += [own_B, wrong_B, own_B]
        if text is not None:
            ids.append(text.ids_BT)
            masks.append(text.mask_BT)
            looks.append(own_B)
        length = max(x.shape[1] for x in ids)
        states_RTD = self.text.run(
            self.text.embed(torch.cat([pad_columns(x, length) for x in ids])),
            torch.cat([pad_columns(x, length) for x in masks]),
            memory_MND,
            rows_R=torch.cat(looks),
            decoding=0 if text is None else len(batch),
        )
        encoding = len(states_RTD) - (0 if text is None else len(batch))
        return states_RTD[:encoding], states_RTD[encoding:]

    def _negative_keys(
        self, extras: dict[str, Any], image_BE: Tensor, text_BE: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features of the candidates and the ids of their pictures: the teacher's, or the student's own."""
        key_image_GE, key_text_GE, id_G = extras["batch_keys"]
        if self.config.itm_similarity == "online":
            key_image_GE, key_text_GE = gather(image_BE), gather(text_BE)
        local = len(image_BE)
        return rows.own(key_image_GE, local), rows.own(key_text_GE, local), rows.own(id_G, local)

    def _freeze_idle(self) -> None:
        """No gradient, and so no weight decay, for what no objective asks."""
        off = {name for name in OBJECTIVES if name not in self.config.objectives}
        layers = [layer for layer in self.text.layers if isinstance(layer, TiedLayer)]
        idle: list[tuple[set[str], list[nn.Module]]] = [
            ({"itc"}, [self.image_projection, self.text_projection]),
            ({"itm"}, [self.itm_head]),
            ({"lm"}, [self.lm_head]),
            ({"lm"}, [part for layer in layers for part in decoder_parts(layer)]),
            ({"itc", "itm"}, [part for layer in layers for part in (layer.attention, layer.attention_norm)]),
            ({"itm", "lm"}, [part for layer in layers for part in (layer.cross_attention, layer.cross_norm)]),
        ]
        for needed_by, parts in idle:
            if needed_by <= off:
                for part in parts:
                    part.requires_grad_(False)
        self.temperature.requires_grad_("itc" not in off)


def opened(ids_BT: Tensor, first_id: int) -> Tensor:
    """The ids with another opening token."""
    return torch.cat([torch.full_like(ids_BT[:, :1], first_id), ids_BT[:, 1:]], dim=1)


def decoder_parts(layer: TiedLayer) -> tuple[nn.Module, nn.Module]:
    return layer.decoder_attention, layer.decoder_attention_norm


class BlipSystem(MomentumSystem[BlipModel, Config]):
    """The model, its teacher and its queue."""

    def __init__(self, config: Config) -> None:
        super().__init__(model=BlipModel(config), config=config)
        teacher = self.teacher.module
        del teacher.lm_head, teacher.itm_head
        for layer in teacher.text.layers:
            del layer.decoder_attention, layer.decoder_attention_norm

    def ask_teacher(self, batch: Batch, context: StepContext) -> dict[str, Any]:
        with self.teacher.inference(self.model.itm_head.weight.dtype) as teacher:
            image_BND = teacher.vision(batch.pictures)
            states_BTD = teacher.text.encode(batch.text_ids_BT, batch.text_mask_BT)
            return {
                "teacher_image_BE": teacher.image_feature(image_BND),
                "teacher_text_BE": teacher.text_feature(states_BTD),
            }


def build(config: Config) -> BlipSystem | StatelessSystem:
    """A fresh BLIP; seed torch before. LM alone needs no teacher and no queue."""
    if "itc" in config.objectives:
        return BlipSystem(config)
    return StatelessSystem(model=BlipModel(config), config=config)
