"""VLMo: mixture of modality experts (Bao et al., arXiv 2111.02358).

Blocks      one pre-norm BEiT-style transformer over text, picture, or text and picture; attention is shared,
            feed-forward networks are experts: text, image, and joint in the top layers. `relative` positions
            (a bias on the scores) with LayerScale, or `absolute` ones without it (base_plus).
Objectives  by `stage`:
            image            masked patches: the pixels of hidden patches are predicted
            text             MLM on texts alone, by the text experts
            vision_language  ITC (mean over two pairs of heads: the experts' own branch, and one whose top
                             layers take the joint expert) + ITM with hard negatives + 0.25 MLM of whole words
Sizes       `base`, `base_plus`, `large` are the paper's and its code's; `small` has half the base's width;
            `tiny` learns small pictures on two CPU cores; it is of base_plus' kind, as few layers do not make
            out places from relative positions (24 scenes of a colour at a place, width 48, 3 layers, 300
            steps: R@1 1.00 with absolute positions, 0.21 with relative ones).
State       none beside the weights.

Several micro batches given as one group are contrasted with each other (`models.objectives.cached`); hard
negatives of matching then still come from the micro batch.

A run of one stage starts from the exported model of the one before; the names of the weights are the same in
all stages:

    pairmill train --recipe vlmo --size base --model '{"stage": "image"}' --output runs/1 ...
    pairmill train --recipe vlmo --init_from runs/1/model --model '{"stage": "text"}' --output runs/2 ...
    pairmill train --recipe vlmo --init_from runs/2/model --model '{"stage": "vision_language"}' ...

`image` trains the patch embedding, the image experts and what is shared (attention, LayerScale, norms);
`text` the text embedding, the text experts, the word predictor and the biases of text positions, all else
frozen, so that pictures are encoded as before; `vision_language` trains everything.

What evaluation hands back and forth is not encoded: `encode_image(...).tokens_BND` and
`encode_text(...).states_BTD` are the embedded inputs before the first block, because picture and text attend
to each other from there on. `match` and `mlm_logits` run all layers.

Deviations from the paper and its code
- Stage `image` is a stand-in: the paper starts from BEiT, whose targets are the codes of a separate image
  tokenizer. Here the pixels of hidden patches (40 %, as there) are regressed, each patch normalised.
- Positives go by picture, in the contrast and in the choice of negatives; the code masks the diagonal.
- The contrast has gradients through the features of all ranks; the code gathers without.
- The constant in the choice of negatives is added after the softmax; a row without a negative is left out.
- Each word is masked with probability 0.15; the code masks words until 15 % of the tokens are reached.
- Texts are padded to the longest of the batch, not to max_text_length (equal: padding is never attended to).
- No dropout on the text embedding (the code: 0.1).
- Weights start larger below width 768; the patch projection keeps torch's (as in the code).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch, StepContext
from models.blocks.multiway import (
    ImageEmbedder,
    MultiwayConfig,
    MultiwayTransformer,
    TextEmbedder,
    hold,
    init_multiway_,
    kept_paths,
)
from models.blocks.relative_positions import RelativePositions
from models.objectives.cached import Cached, cache, surrogate
from models.objectives.gather import gather, longest, mean_over_ranks, pad_columns
from models.objectives.itc import in_batch_itc, similarity
from models.objectives.itm import Negatives, Rows, check_scope, draw_both, itm_loss
from models.objectives.mlm import MaskedText, mask_tokens, mlm_loss
from models.precision import upcast
from models.recipes.base import ImageOutput, StatelessSystem, TextOutput

STAGES = ("image", "text", "vision_language")
POSITIONS = ("relative", "absolute")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every dimension of a VLMo; the defaults are the paper's base.

    Attributes:
        stage: What is trained, and how: image, text or vision_language.
        image_size: Side of the square pictures, in pixels.
        patch_size: Side of a patch, in pixels.
        width: Width of the transformer.
        depth: Its layers.
        heads: Its attention heads.
        joint_start: First layer with a joint (vision-language) expert; the layers before it have none.
        mlp_ratio: Inner width of the experts over the width.
        layer_scale: First value of the factors on the branches; 0 for none.
        positions: relative (a bias on the attention scores) or absolute (added to the embedding).
        text_window: Tokens that the table of relative positions is made for.
        drop_path: Probability that a sample skips a branch of the last layer, rising linearly from the first.
        embed_dim: Width of the joint embeddings.
        vocab_size: Entries of the tokenizer.
        pad_id: Token id of padding.
        cls_id: Token id that opens a text; never masked.
        sep_id: Token id that closes a text; never masked.
        mask_id: Token id that stands for a masked word.
        max_text_length: Tokens of a text, special tokens included.
        mlm_probability: Share of the words that are masked.
        mlm_weight: Weight of MLM in the sum of stage vision_language.
        patch_probability: Share of the patches that stage image hides.
        itm_negatives: `global` draws wrong pictures and texts from all processes, `local` from the own one.
        temperature: Initial temperature of both contrasts.
        gradient_checkpointing: Recompute the blocks in the backward pass to save memory.
    """

    stage: str = "vision_language"
    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    joint_start: int = 10
    mlp_ratio: int = 4
    layer_scale: float = 0.1
    positions: str = "relative"
    text_window: int = 196
    drop_path: float = 0.1
    embed_dim: int = 768
    vocab_size: int = 30522
    pad_id: int = 0
    cls_id: int = 101
    sep_id: int = 102
    mask_id: int = 103
    max_text_length: int = 40
    mlm_probability: float = 0.15
    mlm_weight: float = 0.25
    patch_probability: float = 0.4
    itm_negatives: str = "global"
    temperature: float = 0.07
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        check_scope(self.itm_negatives)
        for name, valid in (("stage", STAGES), ("positions", POSITIONS)):
            if getattr(self, name) not in valid:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown; use {', '.join(valid)}")
        for name in ("pad_id", "cls_id", "sep_id", "mask_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(
                    f"{name} {getattr(self, name)} lies outside vocab_size {self.vocab_size}; "
                    "take both from the tokenizer"
                )
        for name in ("drop_path", "mlm_probability", "patch_probability"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 0 and below 1")


SIZES: dict[str, Config] = {
    "tiny": Config(
        image_size=64, patch_size=8, width=128, depth=6, heads=4, joint_start=4, positions="absolute",
        layer_scale=0.0, drop_path=0.0, embed_dim=128, vocab_size=2048, cls_id=2, sep_id=3, mask_id=4,
        max_text_length=32,
    ),
    "small": Config(width=384, heads=6, embed_dim=384),
    "base": Config(),
    "base_plus": Config(
        width=544, depth=24, heads=16, joint_start=21, layer_scale=0.0, positions="absolute", embed_dim=544
    ),
    "large": Config(width=1024, depth=24, heads=16, joint_start=21, embed_dim=1024),
}  # fmt: skip

BLOCK_EPS, TEXT_EPS = 1e-6, 1e-12
TEXT, IMAGE = 0, 1  # rows of the modality embedding

#: What each stage trains, by the beginning of the name (`{n}` any layer); None: everything.
TRAINED: dict[str, tuple[str, ...] | None] = {
    "image": (
        "image_embed", "pixels", "transformer.positions", "transformer.norm", "attention", "expert_scale",
        "experts.image",
    ),
    "text": ("text_embed", "mlm_head", "transformer.positions", "experts.text"),
    "vision_language": None,
}  # fmt: skip


class WordHead(nn.Module):
    """BERT's word predictor, not tied to the word embedding: [..., D] to [..., V]."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=TEXT_EPS)
        self.decoder = nn.Linear(width, vocab_size)

    def forward(self, states_XD: Tensor) -> Tensor:
        return self.decoder(self.norm(F.gelu(self.dense(states_XD))))


class PixelHead(nn.Module):
    """States [..., D] to the pixels of a patch; idle, and no parameter, outside stage image."""

    weight: Tensor
    bias: Tensor

    def __init__(self, width: int, pixels: int, *, trained: bool) -> None:
        super().__init__()
        hold(self, "weight", torch.randn(pixels, width) * width**-0.5, trained=trained)
        hold(self, "bias", torch.zeros(pixels), trained=trained)

    def forward(self, states_XD: Tensor) -> Tensor:
        return F.linear(states_XD, self.weight, self.bias)


class VlmoModel(nn.Module):
    """The network, the same in all stages; `forward` is the loss of the config's stage."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        relative = config.positions == "relative"
        self.image_embed = ImageEmbedder(
            image_size=config.image_size, patch_size=config.patch_size, width=config.width,
            absolute=not relative, masks=config.stage == "image",
        )  # fmt: skip
        self.text_embed = TextEmbedder(
            vocab_size=config.vocab_size, max_text_length=config.max_text_length, width=config.width,
            pad_id=config.pad_id, absolute=not relative, eps=TEXT_EPS,
        )  # fmt: skip
        self.modality = nn.Embedding(2, config.width)
        positions = None
        if relative:
            positions = RelativePositions(
                grid=self.image_embed.grid, window=config.text_window, layers=config.depth,
                heads=config.heads, max_text_length=config.max_text_length,
            )  # fmt: skip
        self.transformer = MultiwayTransformer(
            MultiwayConfig(
                width=config.width, heads=config.heads, hidden=config.mlp_ratio * config.width, eps=BLOCK_EPS,
                layer_scale=config.layer_scale or None,
            ),
            depth=config.depth, joint_start=config.joint_start, positions=positions,
            recompute=config.gradient_checkpointing,
        )  # fmt: skip
        self.image_projection = nn.Linear(config.width, config.embed_dim, bias=False)
        self.text_projection = nn.Linear(config.width, config.embed_dim, bias=False)
        self.joint_image_projection = nn.Linear(config.width, config.embed_dim, bias=False)
        self.joint_text_projection = nn.Linear(config.width, config.embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))  # their logarithms
        self.joint_logit_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))
        self.pooler = nn.Linear(config.width, config.width)
        self.itm_head = nn.Linear(config.width, 2)
        self.mlm_head = WordHead(config.width, config.vocab_size)
        self.pixels = PixelHead(config.width, 3 * config.patch_size**2, trained=config.stage == "image")
        init_multiway_(self, width=config.width)
        self._freeze(TRAINED[config.stage])

    @property
    def undecayed(self) -> tuple[str, ...]:
        """Weights without weight decay: of these, a stage may train some rows and must leave the others."""
        return ("transformer.positions.table",)

    def _freeze(self, trained: tuple[str, ...] | None) -> None:
        for name, weight in self.named_parameters():
            inside = name.split(".", 3)[3] if name.startswith("transformer.blocks.") else name
            weight.requires_grad_(trained is None or inside.startswith(trained))

    def embed_image(self, image_BCHW: Tensor, *, hidden_BN: Tensor | None = None) -> Tensor:
        """What the first block reads of a picture: [CLS] and patches [B, N, D]."""
        kind_1D = self.modality(torch.full((1,), IMAGE, device=image_BCHW.device))
        return self.image_embed(image_BCHW, hidden_BN=hidden_BN) + kind_1D

    def embed_text(self, ids_BT: Tensor) -> Tensor:
        """What the first block reads of a text: [B, T, D]."""
        return self.text_embed(ids_BT) + self.modality(torch.full((1,), TEXT, device=ids_BT.device))

    def matched(self, cls_BD: Tensor) -> Tensor:
        """ITM logits [B, 2] of the [CLS] of a text with its picture."""
        return self.itm_head(torch.tanh(self.pooler(cls_BD)))

    def fuse(
        self, text_BTD: Tensor, mask_BT: Tensor, image_BND: Tensor, kept_BK2: Tensor | None = None
    ) -> Tensor:
        """Embedded texts and pictures, through all layers together: normed states [B, T + N, D]."""
        x_BLD = torch.cat([text_BTD, image_BND], dim=1)
        return self.transformer(x_BLD, route="joint", text_mask_BT=mask_BT, kept_BK2=kept_BK2)

    def encode_image(self, image_BCHW: Tensor) -> ImageOutput:
        """The feature of the image experts' branch, and the embedded picture."""
        image_BND = self.embed_image(image_BCHW)
        cls_BD = self.transformer(image_BND, route="image")[:, 0]
        return ImageOutput(feature_BE=_unit(self.image_projection(cls_BD)), tokens_BND=image_BND)

    def encode_text(self, text_ids_BT: Tensor, text_mask_BT: Tensor) -> TextOutput:
        """The feature of the text experts' branch, and the embedded text."""
        text_BTD = self.embed_text(text_ids_BT)
        cls_BD = self.transformer(text_BTD, route="text", text_mask_BT=text_mask_BT)[:, 0]
        return TextOutput(feature_BE=_unit(self.text_projection(cls_BD)), states_BTD=text_BTD)

    def match(
        self,
        image_tokens_BND: Tensor,
        text_states_BTD: Tensor,
        text_mask_BT: Tensor,
        *,
        rows_B: Tensor | None = None,
    ) -> Tensor:
        """ITM logits [B, 2] from embedded inputs; with `rows_B`, text i looks at picture rows_B[i]."""
        if rows_B is not None:
            image_tokens_BND = image_tokens_BND.index_select(0, rows_B)
        return self.matched(self.fuse(text_states_BTD, text_mask_BT, image_tokens_BND)[:, 0])

    def mlm_logits(self, text_ids_BT: Tensor, text_mask_BT: Tensor, image_tokens_BND: Tensor) -> Tensor:
        fused_BLD = self.fuse(self.embed_text(text_ids_BT), text_mask_BT, image_tokens_BND)
        return self.mlm_head(fused_BLD[:, : text_ids_BT.shape[1]])

    def forward(self, batch: Batch, context: StepContext, extras: dict[str, Any]) -> dict[str, Tensor]:
        """The losses of the stage; `extras` is what `VlmoSystem.prepare` returned for this batch."""
        if self.config.stage == "image":
            return self._masked_patches(batch, context)
        if self.config.stage == "text":
            return self._masked_words(batch, context, extras["masked"])
        return self._vision_language(batch, context, extras["masked"], extras.get("cached"))

    def _masked_patches(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """The squared error of the pixels of hidden patches, each patch normalised by its own mean and
        deviation."""
        config = self.config
        hidden_BN = hide_patches(
            context, batch.row_B, patches=self.image_embed.grid**2, probability=config.patch_probability
        )
        x_BND = self.embed_image(batch.pictures, hidden_BN=hidden_BN)
        states_BND = self.transformer(x_BND, route="image", kept_BK2=self._kept(context, "image", batch))
        pixels_BNP = F.unfold(upcast(batch.pictures), config.patch_size, stride=config.patch_size).mT
        target_XP = F.layer_norm(pixels_BNP[hidden_BN], pixels_BNP.shape[-1:], eps=1e-6)
        found_XP = upcast(self.pixels(states_BND[:, 1:][hidden_BN]))
        loss = mean_over_ranks((found_XP - target_XP.to(found_XP.dtype)).square().mean(dim=1))
        return {"loss": loss, "mim": loss.detach()}

    def _masked_words(self, batch: Batch, context: StepContext, masked: MaskedText) -> dict[str, Tensor]:
        """MLM of texts alone; pictures of the batch are not looked at."""
        states_BTD = self.transformer(
            self.embed_text(masked.ids_BT), route="text", text_mask_BT=batch.text_mask_BT,
            kept_BK2=self._kept(context, "text", batch),
        )  # fmt: skip
        loss = mlm_loss(self.mlm_head(masked.pick(states_BTD)), masked.target_X)
        return {"loss": loss, "mlm": loss.detach()}

    def _vision_language(
        self, batch: Batch, context: StepContext, masked: MaskedText, cached: Cached | None
    ) -> dict[str, Tensor]:
        """`cached` is the contrast over a group of micro batches, where there is one."""
        image_BND = self.embed_image(batch.pictures)
        features, scales = self.features(batch, context, image_BND), self.scales()
        if cached is None:
            itc = contrast(*features, *scales, image_id_B=batch.image_id_B)
        else:
            itc = surrogate(cached, features, scales)
        no_text, no_image = self.negatives(batch, context, features[0], features[1], scales[0])
        itm_3BD, states_BTD = self._fuse(batch, context, image_BND, masked, no_text, no_image)
        itm = itm_loss(self.matched(itm_3BD), no_image_B=~no_image.valid_B, no_text_B=~no_text.valid_B)
        mlm = mlm_loss(self.mlm_head(masked.pick(states_BTD)), masked.target_X)

        parts = {"itc": itc, "itm": itm, "mlm": mlm}
        parts |= {"temperature": 1 / scales[0], "temperature_joint": 1 / scales[1]}
        loss = itc + itm + self.config.mlm_weight * mlm
        return {"loss": loss} | {name: value.detach() for name, value in parts.items()}

    def features(
        self, batch: Batch, context: StepContext, image_BND: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Unit features [B, E] of pictures and texts: by the experts' own branch, by the joint branch."""
        own_image_BD, joint_image_BD = self.transformer.branches(
            image_BND, route="image", kept_BK2=self._kept(context, "image", batch)
        )
        own_text_BD, joint_text_BD = self.transformer.branches(
            self.embed_text(batch.text_ids_BT), route="text", text_mask_BT=batch.text_mask_BT,
            kept_BK2=self._kept(context, "text", batch),
        )  # fmt: skip
        return (
            _unit(self.image_projection(own_image_BD)),
            _unit(self.text_projection(own_text_BD)),
            _unit(self.joint_image_projection(joint_image_BD)),
            _unit(self.joint_text_projection(joint_text_BD)),
        )

    def scales(self) -> tuple[Tensor, Tensor]:
        """The factors on the inner products of both branches, float32; not bounded, as in the code."""
        return upcast(self.logit_scale).exp(), upcast(self.joint_logit_scale).exp()

    @torch.no_grad()
    def negatives(
        self, batch: Batch, context: StepContext, image_BE: Tensor, text_BE: Tensor, scale: Tensor
    ) -> tuple[Negatives, Negatives]:
        """A wrong text for each picture and a wrong picture for each text, by the experts' own branch."""
        everywhere = Rows.of(self.config.itm_negatives).everywhere
        key_image_GE, key_text_GE, id_G = (
            gather(x) if everywhere else x for x in (image_BE, text_BE, batch.image_id_B)
        )

        return draw_both(
            batch, context, image_BE, text_BE, keys=(key_image_GE, key_text_GE, id_G),
            logits=lambda own_BE, key_GE: scale * similarity(own_BE, key_GE),
        )  # fmt: skip

    def _fuse(
        self,
        batch: Batch,
        context: StepContext,
        image_BND: Tensor,
        masked: MaskedText,
        no_text: Negatives,
        no_image: Negatives,
    ) -> tuple[Tensor, Tensor]:
        """One pass over [matched | negative picture | negative text | masked text with its picture].

        Negatives are encoded anew from their pixels and ids, which cost less to gather than what the layers
        make of them. Returns the [CLS] of the first three groups [3B, D], and the text states of the last,
        cut to the batch's own length [B, T, D].
        """
        pixels_GCHW, ids_GT, mask_GT = batch.pictures, batch.text_ids_BT, batch.text_mask_BT
        if Rows.of(self.config.itm_negatives).everywhere:
            length = longest(ids_GT.shape[1], ids_GT.device)
            pixels_GCHW, ids_GT, mask_GT = (
                gather(x) for x in (pixels_GCHW, pad_columns(ids_GT, length), pad_columns(mask_GT, length))
            )
        wrong_image_BND = self.embed_image(pixels_GCHW.index_select(0, no_image.index_B))
        wrong_ids_BT, wrong_mask_BT = (x.index_select(0, no_text.index_B) for x in (ids_GT, mask_GT))
        length = wrong_ids_BT.shape[1]
        clean_BT, holes_BT, mask_BT = (
            pad_columns(x, length) for x in (batch.text_ids_BT, masked.ids_BT, batch.text_mask_BT)
        )
        kept = [self._kept(context, p, batch) for p in ("matched", "no image", "no text", "holes")]
        states_4BLD = self.fuse(
            self.embed_text(torch.cat([clean_BT, clean_BT, wrong_ids_BT, holes_BT])),
            torch.cat([mask_BT, mask_BT, wrong_mask_BT, mask_BT]),
            torch.cat([image_BND, wrong_image_BND, image_BND, image_BND]),
            torch.cat([k for k in kept if k is not None]) if kept[0] is not None else None,
        )
        split = 3 * len(batch)
        return states_4BLD[:split, 0], states_4BLD[split:, : batch.text_ids_BT.shape[1]]

    def _kept(self, context: StepContext, sequence: str, batch: Batch) -> Tensor | None:
        """Which branches each sample keeps, drawn apart for each kind of sequence that it is part of."""
        probability = self.config.drop_path if self.training else 0.0
        return kept_paths(
            context, f"drop path {sequence}", batch.row_B, depth=self.config.depth, probability=probability
        )


def _unit(x_BE: Tensor) -> Tensor:
    return F.normalize(upcast(x_BE), dim=-1)


def contrast(
    image_BE: Tensor,
    text_BE: Tensor,
    joint_image_BE: Tensor,
    joint_text_BE: Tensor,
    scale: Tensor,
    joint_scale: Tensor,
    *,
    image_id_B: Tensor,
) -> Tensor:
    """ITC: the mean over both branches."""
    own = in_batch_itc(image_BE, text_BE, image_id_B, scale=scale)
    return (own + in_batch_itc(joint_image_BE, joint_text_BE, image_id_B, scale=joint_scale)) / 2


def hide_patches(context: StepContext, row_B: Tensor, *, patches: int, probability: float) -> Tensor:
    """Boolean [B, patches]: the same number in every picture, at least one."""
    count = max(1, round(probability * patches))
    order_BN = context.uniform("patches", row_B, patches).argsort(dim=1)
    hidden_BN = torch.zeros_like(order_BN, dtype=torch.bool)
    return hidden_BN.scatter_(1, order_BN[:, :count], True)


class VlmoSystem(StatelessSystem):
    """The model, and which ids of the vocabulary continue a word."""

    model: VlmoModel

    def __init__(self, config: Config) -> None:
        super().__init__(model=VlmoModel(config), config=config)
        self.continues_V: Tensor | None = None

    def learn_words(self, continues_V: Tensor) -> None:
        """bool [vocab_size], True for ids that continue a word (`Tokenizer.continues`): without it, every
        token counts as a word. The trainer calls it; it is no part of the model, as only masking needs it."""
        if len(continues_V) != self.config.vocab_size:
            raise ValueError(
                f"{len(continues_V)} ids, but vocab_size is {self.config.vocab_size}; "
                "take both from one tokenizer"
            )
        self.continues_V = continues_V

    def prepare(self, batches: Sequence[Batch], context: StepContext) -> list[dict[str, Any]]:
        """The masked texts, and the contrast over a group of several micro batches. Hard negatives come from
        the micro batch alone, of all processes."""
        if self.config.stage == "image":
            return [{} for _ in batches]
        group: list[dict[str, Any]] = [{"masked": self._mask(batch, context)} for batch in batches]
        if len(batches) > 1 and self.config.stage == "vision_language":
            model = self.model
            features = [model.features(b, context, model.embed_image(b.pictures)) for b in batches]
            loss = partial(contrast, image_id_B=torch.cat([b.image_id_B for b in batches]))
            for extras, cached in zip(group, cache(features, model.scales(), loss), strict=True):
                extras["cached"] = cached
        return group

    def _mask(self, batch: Batch, context: StepContext) -> MaskedText:
        config = self.config
        if self.continues_V is not None and self.continues_V.device != batch.text_ids_BT.device:
            self.continues_V = self.continues_V.to(batch.text_ids_BT.device)
        return mask_tokens(
            batch.text_ids_BT, batch.text_mask_BT, context=context, row_B=batch.row_B,
            probability=config.mlm_probability, mask_id=config.mask_id, vocab_size=config.vocab_size,
            keep_ids=(config.pad_id, config.cls_id, config.sep_id), continues_V=self.continues_V,
        )  # fmt: skip


def build(config: Config) -> VlmoSystem:
    """A fresh VLMo; seed torch before."""
    return VlmoSystem(config)
