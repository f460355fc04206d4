"""A causal decoder token by token: what was computed for earlier tokens and for the picture is kept.

Each picture has the same number of rows (beams or candidates). Its keys and values are projected once and
never copied: the rows of a picture ask them together, as one longer sequence of queries. Those of the tokens
are written into room that is there already, which grows by `SPARE` tokens at a time.

Shapes: M pictures, C rows of a picture, R = M * C rows, T new tokens, S tokens so far, N image tokens, H
heads, d head width, D width, V vocabulary, K pictures that go on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from models.blocks.attention import CrossAttention, SelfAttention, join_heads, split_heads
from models.blocks.tied_text import TiedBert, TiedLayer

KeysValues = tuple[Tensor, Tensor]

#: tokens for which room is made at once
SPARE = 16


class CachedDecoder:
    """The decoder of a `TiedBert`, begun with one row per picture.

    words: states [..., D] to logits [..., V].
    """

    def __init__(self, text: TiedBert, words: Callable[[Tensor], Tensor], image_MND: Tensor) -> None:
        self.text = text
        self.words = words
        self.layers = [layer for layer in text.layers if isinstance(layer, TiedLayer)]
        self.memory = [_project(layer.cross_attention, image_MND) for layer in self.layers]
        self.past: list[KeysValues | None] = [None] * len(self.layers)
        self.length = 0

    def advance(self, ids_MCT: Tensor) -> Tensor:
        """Reads the next tokens (several at the start only); logits [M, C, V] of what follows them."""
        pictures, rows, new = ids_MCT.shape
        assert new == 1 or self.length == 0, "only the first call may read several tokens"
        x_RTD = self.text.embed(ids_MCT.flatten(0, 1), first=self.length)
        for index, layer in enumerate(self.layers):
            x_RTD = self._step(index, layer, x_RTD, rows)
        self.length += new
        return self.words(x_RTD[:, -1]).unflatten(0, (pictures, rows))

    def keep(self, picture_K: Tensor, parent_KC: Tensor) -> None:
        """Goes on with some pictures only, and in each with the given rows (repeated ones are copied)."""
        rows = parent_KC.new_tensor(self._rows_per_picture())
        chosen_R = (picture_K[:, None] * rows + parent_KC).flatten()
        length = self.length
        self.past = [
            (k[:, :, :length][chosen_R], v[:, :, :length][chosen_R])
            for k, v in (kv for kv in self.past if kv is not None)
        ]
        if len(picture_K) != len(self.memory[0][0]):
            self.memory = [(k[picture_K], v[picture_K]) for k, v in self.memory]

    def _rows_per_picture(self) -> int:
        assert self.past[0] is not None, "advance before keep"
        return len(self.past[0][0]) // len(self.memory[0][0])

    def _step(self, index: int, layer: TiedLayer, x_RTD: Tensor, rows: int) -> Tensor:
        def look_back(y_RTD: Tensor) -> Tensor:
            attended_RTD, self.past[index] = _extend(
                layer.decoder_attention, y_RTD, self.past[index], self.length
            )
            return attended_RTD

        x_RTD = layer.residual(x_RTD, layer.decoder_attention_norm, look_back)
        x_RTD = layer.residual(
            x_RTD, layer.cross_norm, lambda y: _look(layer.cross_attention, y, self.memory[index], rows)
        )
        return layer.residual(x_RTD, layer.feed_forward_norm, layer.feed_forward)


def _project(attention: CrossAttention, image_MND: Tensor) -> KeysValues:
    """Keys and values [M, H, N, d]."""
    return (
        split_heads(attention.key(image_MND), attention.heads),
        split_heads(attention.value(image_MND), attention.heads),
    )


def _extend(
    attention: SelfAttention, x_RTD: Tensor, past: KeysValues | None, length: int
) -> tuple[Tensor, KeysValues]:
    """Attention of the new tokens to themselves and to the `length` tokens before, and all of them with room
    behind."""
    projected = (attention.query(x_RTD), attention.key(x_RTD), attention.value(x_RTD))
    q_RHTd, k_RHTd, v_RHTd = (split_heads(t, attention.heads) for t in projected)
    old_k, old_v = past if past is not None else (None, None)
    k_RHSd, v_RHSd = _append(old_k, k_RHTd, length), _append(old_v, v_RHTd, length)
    now = length + x_RTD.shape[1]
    y_RHTd = F.scaled_dot_product_attention(
        q_RHTd, k_RHSd[:, :, :now], v_RHSd[:, :, :now], is_causal=past is None
    )
    return attention.out(join_heads(y_RHTd)), (k_RHSd, v_RHSd)


def _append(past_RHSd: Tensor | None, new_RHTd: Tensor, length: int) -> Tensor:
    """The first `length` tokens and the new ones, in place where there is room."""
    rows, heads, new, width = new_RHTd.shape
    if past_RHSd is None or past_RHSd.shape[2] < length + new:
        grown_RHSd = new_RHTd.new_empty(rows, heads, length + new + SPARE, width)
        if past_RHSd is not None:
            grown_RHSd[:, :, :length] = past_RHSd[:, :, :length]
        past_RHSd = grown_RHSd
    past_RHSd[:, :, length : length + new] = new_RHTd
    return past_RHSd


def _look(attention: CrossAttention, x_RTD: Tensor, memory: KeysValues, rows: int) -> Tensor:
    """Cross-attention of R = M * rows rows to M pictures, the rows of a picture side by side as queries."""
    new = x_RTD.shape[1]
    together_MXD = attention.query(x_RTD).unflatten(0, (-1, rows)).flatten(1, 2)
    y_MHXd = F.scaled_dot_product_attention(split_heads(together_MXD, attention.heads), *memory)
    return attention.out(join_heads(y_MHXd).unflatten(1, (rows, new)).flatten(0, 1))
