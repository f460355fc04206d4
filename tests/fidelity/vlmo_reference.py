"""VLMo once more, from the paper's equations and the notes on its released code, to compare with.

Plain and slow: one sample at a time, texts padded to exactly max_text_len, attention in explicit products,
the tables of indices filled by loops. It computes from a state dict of published names, and shares no code
with `models`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the names of the weights do not tell."""

    heads: int
    layers: int
    vl_start: int
    patch: int
    grid: int
    text_len: int
    window: int


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * weight + bias


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def softmax(x: Tensor) -> Tensor:
    e = torch.exp(x - x.max(dim=-1, keepdim=True).values)
    return e / e.sum(dim=-1, keepdim=True)


def image_table(grid: int) -> list[list[int]]:
    """[CLS] and the patches in raster order; entry [i][j] is the row of the table for query i and key j."""
    n = (2 * grid - 1) ** 2 + 3
    size = grid * grid + 1
    table = [[0] * size for _ in range(size)]
    for i in range(size):
        for j in range(size):
            if i == 0 and j == 0:
                table[i][j] = n - 1
            elif i == 0:
                table[i][j] = n - 3
            elif j == 0:
                table[i][j] = n - 2
            else:
                down = (i - 1) // grid - (j - 1) // grid
                right = (i - 1) % grid - (j - 1) % grid
                table[i][j] = (down + grid - 1) * (2 * grid - 1) + right + grid - 1
    return table


def text_table(grid: int, length: int, window: int) -> list[list[int]]:
    n = (2 * grid - 1) ** 2 + 3
    everything = n + 2 + 2 * window
    table = [[0] * length for _ in range(length)]
    for i in range(length):
        for j in range(length):
            if i == 0 and j == 0:
                table[i][j] = everything - 1
            elif i == 0:
                table[i][j] = everything - 3
            elif j == 0:
                table[i][j] = everything - 2
            else:
                table[i][j] = (j - i) + (window - 2) + n + 2
    return table


def joint_table(grid: int, length: int, window: int) -> list[list[int]]:
    n = (2 * grid - 1) ** 2 + 3
    text, image = text_table(grid, length, window), image_table(grid)
    rows = [row + [n] * len(image) for row in text]
    return rows + [[n + 1] * length + row for row in image]


class Reference:
    """The whole system, from weights under published names."""

    def __init__(self, weights: Mapping[str, Tensor], shape: Shape) -> None:
        self.w = weights
        self.shape = shape

    def linear(self, x: Tensor, name: str) -> Tensor:
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def norm(self, x: Tensor, name: str, eps: float = 1e-6) -> Tensor:
        return layer_norm(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps)

    def embed_text(self, ids: Tensor) -> Tensor:
        """[T, D]; `ids` has exactly max_text_len entries."""
        rows = []
        for place, token in enumerate(ids.tolist()):
            x = self.w["text_embeddings.word_embeddings.weight"][token]
            x = x + self.w["text_embeddings.token_type_embeddings.weight"][0]
            if "relative_position_bias_table" not in self.w:
                x = x + self.w["text_embeddings.position_embeddings.weight"][place]
            x = self.norm(x, "text_embeddings.LayerNorm", 1e-12)
            rows.append(x + self.w["token_type_embeddings.weight"][0])
        return torch.stack(rows)

    def embed_image(self, pixels: Tensor) -> Tensor:
        """[N, D] of a picture [3, H, W]."""
        kernel = self.w["transformer.patch_embed.proj.weight"].flatten(1)
        rows = [self.w["transformer.cls_token"][0, 0]]
        size = self.shape.patch
        for down in range(self.shape.grid):
            for right in range(self.shape.grid):
                patch = pixels[:, down * size : (down + 1) * size, right * size : (right + 1) * size]
                rows.append(kernel @ patch.flatten() + self.w["transformer.patch_embed.proj.bias"])
        x = torch.stack(rows)
        if "transformer.pos_embed" in self.w:
            x = x + self.w["transformer.pos_embed"][0]
        return x + self.w["token_type_embeddings.weight"][1]

    def attention(self, x: Tensor, layer: int, mask: Tensor, table: list[list[int]]) -> Tensor:
        """[L, D]; `mask` [L] is True for what may be seen."""
        name = f"transformer.blocks.{layer}.attn"
        width = x.shape[1] // self.shape.heads
        query, key, value = self.w[f"{name}.qkv.weight"].chunk(3)
        q = x @ query.T + self.w[f"{name}.q_bias"]
        k = x @ key.T
        v = x @ value.T + self.w[f"{name}.v_bias"]
        heads = []
        for head in range(self.shape.heads):
            part = slice(head * width, (head + 1) * width)
            scores = (q[:, part] * width**-0.5) @ k[:, part].T
            if "relative_position_bias_table" in self.w:
                column = layer * self.shape.heads + head
                scores = scores + self.w["relative_position_bias_table"][torch.tensor(table), column]
            scores = torch.where(mask[None, :], scores, torch.tensor(-torch.inf, dtype=x.dtype))
            heads.append(softmax(scores) @ v[:, part])
        return self.linear(torch.cat(heads, dim=1), f"{name}.proj")

    def expert(self, x: Tensor, layer: int, kind: str) -> Tensor:
        name = f"transformer.blocks.{layer}"
        hidden = gelu(self.linear(self.norm(x, f"{name}.norm2_{kind}"), f"{name}.mlp_{kind}.fc1"))
        return self.linear(hidden, f"{name}.mlp_{kind}.fc2")

    def block(self, x: Tensor, layer: int, route: str, mask: Tensor, table: list[list[int]]) -> Tensor:
        """`route` is text, imag or vl, as in the names of the experts."""
        name = f"transformer.blocks.{layer}"
        first, second = self.w.get(f"{name}.gamma_1", 1.0), self.w.get(f"{name}.gamma_2", 1.0)
        x = x + first * self.attention(self.norm(x, f"{name}.norm1"), layer, mask, table)
        if route == "vl" and layer < self.shape.vl_start:
            words, patches = x[: self.shape.text_len], x[self.shape.text_len :]
            fed = torch.cat([self.expert(words, layer, "text"), self.expert(patches, layer, "imag")])
        else:
            fed = self.expert(x, layer, route)
        return x + second * fed

    def two_branches(
        self, x: Tensor, route: str, mask: Tensor, table: list[list[int]]
    ) -> tuple[Tensor, Tensor]:
        """All layers by the modality's experts; and the top ones again by the joint expert. Normed."""
        kept = []
        for layer in range(self.shape.layers):
            x = self.block(x, layer, route, mask, table)
            kept.append(x)
        joint = kept[self.shape.vl_start - 1]
        for layer in range(self.shape.vl_start, self.shape.layers):
            joint = self.block(joint, layer, "vl", mask, table)
        return self.norm(x, "transformer.norm"), self.norm(joint, "transformer.norm")

    def image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed_image(pixels)
        mask = torch.ones(len(x), dtype=torch.bool)
        return self.two_branches(x, "imag", mask, image_table(self.shape.grid))

    def text(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        s = self.shape
        return self.two_branches(
            self.embed_text(ids), "text", mask.bool(), text_table(s.grid, s.text_len, s.window)
        )

    def together(self, ids: Tensor, mask: Tensor, pixels: Tensor) -> Tensor:
        """[T + N, D], normed."""
        s = self.shape
        x = torch.cat([self.embed_text(ids), self.embed_image(pixels)])
        seen = torch.cat([mask.bool(), torch.ones(len(x) - len(ids), dtype=torch.bool)])
        table = joint_table(s.grid, s.text_len, s.window)
        for layer in range(s.layers):
            x = self.block(x, layer, "vl", seen, table)
        return self.norm(x, "transformer.norm")

    def feature(self, state: Tensor, head: str) -> Tensor:
        """Of the [CLS] of a sequence: a unit vector."""
        x = self.linear(state[0], f"{head}.fc")
        return x / torch.sqrt((x**2).sum())

    def match(self, ids: Tensor, mask: Tensor, pixels: Tensor) -> Tensor:
        pooled = torch.tanh(self.linear(self.together(ids, mask, pixels)[0], "pooler.dense"))
        return self.linear(pooled, "itm_score.fc")

    def words(self, states: Tensor) -> Tensor:
        x = gelu(self.linear(states, "mlm_score.transform.dense"))
        x = self.norm(x, "mlm_score.transform.LayerNorm", 1e-12)
        return x @ self.w["mlm_score.decoder.weight"].T + self.w["mlm_score.bias"]

    def contrast(self, image: list[Tensor], text: list[Tensor], scale: Tensor) -> Tensor:
        """The mean over both directions; pair i belongs together."""
        total = torch.zeros((), dtype=scale.dtype)
        for rows, columns in ((image, text), (text, image)):
            for i, row in enumerate(rows):
                logits = torch.stack([scale.exp() * (row * column).sum() for column in columns])
                total = total - torch.log(softmax(logits))[i] / (2 * len(rows))
        return total

    def itc(self, pictures: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        images = [self.image(p) for p in pictures]
        texts = [self.text(t, m) for t, m in zip(ids, mask, strict=True)]
        own = self.contrast(
            [self.feature(own, "itc_image_proj") for own, _ in images],
            [self.feature(own, "itc_text_proj") for own, _ in texts],
            self.w["logit_scale"],
        )
        joint = self.contrast(
            [self.feature(joint, "itc_vl_image_proj") for _, joint in images],
            [self.feature(joint, "itc_vl_text_proj") for _, joint in texts],
            self.w["logit_vl_scale"],
        )
        return (own + joint) * 0.5

    def itm(
        self, pictures: Tensor, ids: Tensor, mask: Tensor, no_image: list[int], no_text: list[int]
    ) -> Tensor:
        """`no_image[i]` is the wrong picture of text i, `no_text[i]` the wrong text of picture i."""
        losses = []
        for i in range(len(ids)):
            trials = [(i, i, 1), (i, no_image[i], 0), (no_text[i], i, 0)]
            for text, picture, label in trials:
                logits = self.match(ids[text], mask[text], pictures[picture])
                losses.append(-torch.log(softmax(logits))[label])
        return torch.stack(losses).mean()

    def mlm(self, states: list[Tensor], labels: Tensor) -> Tensor:
        """The mean over the places where `labels` is not -100."""
        losses = []
        for state, row in zip(states, labels, strict=True):
            for place, label in enumerate(row.tolist()):
                if label != -100:
                    losses.append(-torch.log(softmax(self.words(state[place])))[label])
        return torch.stack(losses).mean()
