"""The multiway transformer (VLMo, arXiv 2111.02358): one attention, a feed-forward expert per modality.

Pre-norm as in BEiT: query and value biases only, LayerScale on each branch, relative positions as a bias on
the scores or learnt absolute positions in the embedding. What a sequence is decides its `route`:

    text, image     the modality's expert in every layer
    joint           below `joint_start`: text tokens take the text expert, image tokens the image expert;
                    from `joint_start` on all tokens take the joint (vision-language) expert

Shapes: B batch, C channels, H/W pixels, T text tokens, N image tokens ([CLS] first), L sequence (T, N, or
T + N with the text first), D width, K layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.batch import StepContext
from models.blocks.attention import SelfAttention
from models.blocks.embedders import table_rows
from models.blocks.feedforward import FeedForward
from models.blocks.initialise import deviation
from models.blocks.relative_positions import RelativePositions

Route = Literal["text", "image", "joint"]


@dataclass(frozen=True, kw_only=True)
class MultiwayConfig:
    """What one block is made of.

    Attributes:
        width: Width of the sequence.
        heads: Attention heads.
        hidden: Inner width of each expert.
        eps: Epsilon of the layer norms.
        layer_scale: First value of the factors on the branches; None for a block without them.
    """

    width: int
    heads: int
    hidden: int
    eps: float = 1e-6
    layer_scale: float | None = 0.1


class Expert(nn.Module):
    """A feed-forward network behind its own norm."""

    def __init__(self, config: MultiwayConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.feed_forward = FeedForward(config.width, config.hidden)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.feed_forward(self.norm(x_BLD))


class MultiwayBlock(nn.Module):
    """[B, L, D] to [B, L, D]; `joint` adds the joint expert."""

    def __init__(self, config: MultiwayConfig, *, joint: bool) -> None:
        super().__init__()
        self.attention = SelfAttention(config.width, config.heads, key_bias=False)
        self.attention_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.experts = nn.ModuleDict({"text": Expert(config), "image": Expert(config)})
        if joint:
            self.experts["joint"] = Expert(config)
        self.attention_scale: nn.Parameter | None = None
        self.expert_scale: nn.Parameter | None = None
        if config.layer_scale is not None:
            self.attention_scale = nn.Parameter(torch.full((config.width,), config.layer_scale))
            self.expert_scale = nn.Parameter(torch.full((config.width,), config.layer_scale))

    def forward(
        self,
        x_BLD: Tensor,
        *,
        route: Route,
        text_length: int,
        mask_B11L: Tensor | None,
        bias_HLL: Tensor | None,
        kept_B2: Tensor | None,
    ) -> Tensor:
        """`mask_B11L` is True where there is a token; `kept_B2` are factors on a sample's two branches."""
        scores = _on_scores(mask_B11L, bias_HLL, x_BLD.dtype)
        attended_BLD = self.attention(self.attention_norm(x_BLD), mask=scores)
        x_BLD = x_BLD + _scaled(attended_BLD, self.attention_scale, kept_B2, 0)
        if route == "joint" and "joint" not in self.experts:
            fed_BLD = torch.cat([
                self.experts["text"](x_BLD[:, :text_length]),
                self.experts["image"](x_BLD[:, text_length:]),
            ], dim=1)  # fmt: skip
        else:
            fed_BLD = self.experts[route](x_BLD)
        return x_BLD + _scaled(fed_BLD, self.expert_scale, kept_B2, 1)


def _on_scores(mask_B11L: Tensor | None, bias_HLL: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Padding and positions as one addend to the scores (or a boolean mask where there are no positions)."""
    if bias_HLL is None:
        return mask_B11L
    bias_1HLL = bias_HLL.to(dtype)[None]
    return bias_1HLL if mask_B11L is None else bias_1HLL.masked_fill(~mask_B11L, -torch.inf)


def _scaled(branch_BLD: Tensor, scale_D: Tensor | None, kept_B2: Tensor | None, column: int) -> Tensor:
    if scale_D is not None:
        branch_BLD = branch_BLD * scale_D
    if kept_B2 is not None:
        branch_BLD = branch_BLD * kept_B2[:, column, None, None].to(branch_BLD.dtype)
    return branch_BLD


class MultiwayTransformer(nn.Module):
    """The blocks, their relative positions (None: absolute ones were embedded) and the final norm."""

    def __init__(
        self,
        config: MultiwayConfig,
        *,
        depth: int,
        joint_start: int,
        positions: RelativePositions | None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= joint_start < depth:
            raise ValueError(f"joint_start {joint_start} must lie between 0 and depth {depth} - 1")
        self.joint_start = joint_start
        self.recompute = recompute
        self.positions = positions
        self.blocks = nn.ModuleList(
            MultiwayBlock(config, joint=index >= joint_start) for index in range(depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(
        self,
        x_BLD: Tensor,
        *,
        route: Route,
        text_mask_BT: Tensor | None = None,
        kept_BK2: Tensor | None = None,
    ) -> Tensor:
        """Normed states of the last layer. A `joint` sequence is a text of `text_mask_BT`'s length, then a
        picture."""
        shared = self._shared(x_BLD, route, text_mask_BT)
        return self.norm(self._run(x_BLD, route, shared, kept_BK2, 0, len(self.blocks)))

    def branches(
        self,
        x_BLD: Tensor,
        *,
        route: Literal["text", "image"],
        text_mask_BT: Tensor | None = None,
        kept_BK2: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """[CLS] states [B, D] of one modality: by its own experts, and by joint ones in the top layers."""
        shared = self._shared(x_BLD, route, text_mask_BT)
        middle_BLD = self._run(x_BLD, route, shared, kept_BK2, 0, self.joint_start)
        own_BLD = self._run(middle_BLD, route, shared, kept_BK2, self.joint_start, len(self.blocks))
        joint_BLD = self._run(middle_BLD, "joint", shared, kept_BK2, self.joint_start, len(self.blocks))
        return self.norm(own_BLD[:, 0]), self.norm(joint_BLD[:, 0])

    def _shared(
        self, x_BLD: Tensor, route: Route, text_mask_BT: Tensor | None
    ) -> tuple[int, Tensor | None, Tensor | None]:
        """What is the same in all layers: length of the text, padding mask, biases [K, H, L, L]."""
        length = 0 if text_mask_BT is None else text_mask_BT.shape[1]
        assert (route == "image") == (text_mask_BT is None), f"route {route} and a text mask do not agree"
        bias_KHLL = None if self.positions is None else self.positions(length, picture=route != "text")
        if text_mask_BT is None:
            return 0, None, bias_KHLL
        mask_BL = F.pad(text_mask_BT.bool(), (0, x_BLD.shape[1] - length), value=True)
        return length, mask_BL[:, None, None, :], bias_KHLL

    def _run(
        self,
        x_BLD: Tensor,
        route: Route,
        shared: tuple[int, Tensor | None, Tensor | None],
        kept_BK2: Tensor | None,
        start: int,
        stop: int,
    ) -> Tensor:
        length, mask_B11L, bias_KHLL = shared
        for layer in range(start, stop):
            options: dict[str, Any] = {
                "route": route,
                "text_length": length,
                "mask_B11L": mask_B11L,
                "bias_HLL": None if bias_KHLL is None else bias_KHLL[layer],
                "kept_B2": None if kept_BK2 is None else kept_BK2[:, layer],
            }
            if self.recompute and torch.is_grad_enabled():
                x_BLD = checkpoint(self.blocks[layer], x_BLD, use_reentrant=False, **options)
            else:
                x_BLD = self.blocks[layer](x_BLD, **options)
        return x_BLD


def kept_paths(
    context: StepContext, purpose: str, row_B: Tensor, *, depth: int, probability: float
) -> Tensor | None:
    """Stochastic depth: factors [B, K, 2] on the branches, 0 or 1 / share kept; None for probability 0.

    The probability rises linearly over the layers from 0 to `probability`. Draws are keyed by the sample.
    """
    if probability == 0:
        return None
    dropped_K1 = torch.linspace(0, probability, depth, device=row_B.device, dtype=torch.float64)[:, None]
    uniform_BK2 = context.uniform(purpose, row_B, 2 * depth).unflatten(1, (depth, 2))
    return (uniform_BK2 >= dropped_K1) / (1 - dropped_K1)


class ImageEmbedder(nn.Module):
    """[B, 3, H, W] to [B, 1 + (H/P)(W/P), D]: [CLS] and the patches, with absolute positions if asked for.

    `mask_token` stands for hidden patches in masked image modelling; unless `masks`, it is idle and no
    parameter. Raises ValueError when the patch does not divide the picture, or a picture has another size.
    """

    mask_token: Tensor

    def __init__(
        self, *, image_size: int, patch_size: int, width: int, absolute: bool, masks: bool = False
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(
                f"patch_size {patch_size} must divide image_size {image_size}; change one of them"
            )
        self.image_size, self.patch_size = image_size, patch_size
        self.grid = image_size // patch_size
        self.patch = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width)) if absolute else None
        hold(self, "mask_token", torch.zeros(1, 1, width), trained=masks)

    def forward(self, image_BCHW: Tensor, *, hidden_BN: Tensor | None = None) -> Tensor:
        """`hidden_BN` is True for the patches (without [CLS]) that the mask token replaces."""
        if image_BCHW.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"pictures of {tuple(image_BCHW.shape[-2:])} pixels, but image_size is {self.image_size}; "
                "resize the pictures, or build the model at their size and resize its positions"
            )
        x_BND = self.patch(image_BCHW.to(self.patch.weight.dtype)).flatten(2).transpose(1, 2)
        if hidden_BN is not None:
            x_BND = torch.where(hidden_BN[..., None], self.mask_token.to(x_BND.dtype), x_BND)
        x_BND = torch.cat([self.cls.expand(len(x_BND), -1, -1), x_BND], dim=1)
        return x_BND if self.positions is None else x_BND + self.positions


class TextEmbedder(nn.Module):
    """BERT's input without dropout: word + token type 0, absolute positions if asked for, then a layer norm.

    Without absolute positions their table stays, idle and no parameter, as published weights hold one.
    """

    position: Tensor

    def __init__(
        self, *, vocab_size: int, max_text_length: int, width: int, pad_id: int, absolute: bool, eps: float
    ) -> None:
        super().__init__()
        self.absolute = absolute
        self.word = nn.Embedding(vocab_size, width, padding_idx=pad_id)
        self.token_type = nn.Embedding(2, width)
        hold(self, "position", torch.zeros(max_text_length, width), trained=absolute)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD = self.word(ids_BT) + self.token_type(ids_BT.new_zeros(1))
        position_TD = table_rows(self.position, ids_BT.shape[1])  # checks the length in any case
        return self.norm(x_BTD + position_TD if self.absolute else x_BTD)


def hold(module: nn.Module, name: str, value: Tensor, *, trained: bool) -> None:
    """`value` as a parameter, or, where a stage has no use for it, as a buffer of the same name: checkpoints
    of all stages then hold the same names, and no optimizer meets a weight without a gradient."""
    if trained:
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)


def init_multiway_(module: nn.Module, *, width: int) -> None:
    """BEiT and BERT: truncated normal weights, zero biases, a zero row for padding; in place.

    The patch projection keeps torch's, the tables of relative positions start at zero.
    """
    std = deviation(width)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=std)
            if part.padding_idx is not None:
                nn.init.zeros_(part.weight[part.padding_idx].detach())
        elif isinstance(part, ImageEmbedder):
            nn.init.trunc_normal_(part.cls, std=std)
            nn.init.trunc_normal_(part.mask_token, std=std)
            if part.positions is not None:
                nn.init.trunc_normal_(part.positions, std=std)
        elif isinstance(part, TextEmbedder) and part.absolute:
            nn.init.normal_(part.position, std=std)
