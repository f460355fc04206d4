"""A head: a few linear layers from an embedding to one number, in a file that users bring.

    head = read_head("nsfw.safetensors")
    scores_B = head(vectors_BE)

The names are those of a `torch.nn.Sequential`: `0.weight` [out, in], `0.bias` [out], `2.weight`, ... Where a
number is left out between two layers stands a ReLU (`0`, `2`, `4`); where none is (`4`, `5`), nothing does. A
file with `weight` and `bias` alone is one layer. LAION's heads are of this kind once they are renamed so
(docs/columns.md). Nothing is unpickled.

Shapes: B rows, E dimensions of the embedding.
"""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import dataclass

import numpy as np

from pipeline import storage
from pipeline.errors import ConfigError

ACTIVATIONS = ("sigmoid", "none")
_NAME = re.compile(r"(\d+)\.(weight|bias)")
_SUFFIXES = (".safetensors", ".npz")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """number: its place in the sequence. weight: float64 [out, in]; bias: [out]."""

    number: int
    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Head:
    """width: the E that it reads."""

    layers: tuple[Layer, ...]

    @property
    def width(self) -> int:
        return int(self.layers[0].weight.shape[1])

    def __call__(self, vectors_BE: np.ndarray, *, activation: str = "sigmoid") -> np.ndarray:
        """float32 [B]. Computed in float64, so that the order of additions, and with it the number of threads
        and of rows, does not show in the result."""
        values = vectors_BE.astype(np.float64)
        for at, layer in enumerate(self.layers):
            if at and layer.number > self.layers[at - 1].number + 1:
                values = np.maximum(values, 0)
            values = values @ layer.weight.T + layer.bias
        scores_B = values[:, 0]
        if activation == "sigmoid":
            scores_B = 0.5 * (1 + np.tanh(0.5 * scores_B))  # does not overflow
        return scores_B.astype(np.float32)


def read_head(url: str) -> Head:
    """Raises ConfigError when there is no such file, or it holds something else than such layers."""
    if not url.endswith(_SUFFIXES):
        raise ConfigError(
            f"safety.head {url!r} must end in {' or '.join(_SUFFIXES)}; pickled weights (.pt, .pth) are not "
            "read, docs/columns.md says how to convert them"
        )
    try:
        arrays = _arrays(url, storage.read_bytes(url))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(f"safety.head {url!r} does not exist; give the file of a head") from error
    return Head(layers=_layers(url, arrays))


def _arrays(url: str, data: bytes) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        if url.endswith(".safetensors"):
            return load(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (SafetensorError, ValueError, OSError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"safety.head {url!r} cannot be read ({error}); write it as float32 with safetensors or "
            "numpy.savez"
        ) from error


def _layers(url: str, arrays: dict[str, np.ndarray]) -> tuple[Layer, ...]:
    if arrays and set(arrays) <= {"weight", "bias"}:
        arrays = {f"0.{name}": array for name, array in arrays.items()}
    strange = sorted(name for name in arrays if not _NAME.fullmatch(name))
    if strange or not arrays:
        raise ConfigError(
            f"safety.head {url!r} holds {', '.join(strange) or 'nothing'}; layers are named 0.weight, "
            "0.bias, 2.weight, ... as in a torch.nn.Sequential (docs/columns.md)"
        )
    layers: list[Layer] = []
    for number in sorted({int(name.partition(".")[0]) for name in arrays}):
        weight = arrays.get(f"{number}.weight", np.empty(0))
        outputs = weight.shape[0]
        bias = arrays.get(f"{number}.bias", np.zeros(outputs))
        before = layers[-1].weight.shape[0] if layers else None
        if weight.ndim != 2 or 0 in weight.shape or bias.shape != (outputs,):
            raise ConfigError(
                f"safety.head {url!r}: layer {number} has weight {list(weight.shape)} and bias "
                f"{list(bias.shape)}; they must be [out, in] and [out]"
            )
        if before is not None and weight.shape[1] != before:
            raise ConfigError(
                f"safety.head {url!r}: layer {number} reads {weight.shape[1]} values, the one before it "
                f"gives {before}"
            )
        if not all(a.dtype.kind == "f" and np.isfinite(a).all() for a in (weight, bias)):
            raise ConfigError(f"safety.head {url!r}: layer {number} must hold finite floating-point numbers")
        layers.append(Layer(number=number, weight=weight.astype(np.float64), bias=bias.astype(np.float64)))
    if layers[-1].weight.shape[0] != 1:
        raise ConfigError(f"safety.head {url!r} gives {layers[-1].weight.shape[0]} values; it must give one")
    return tuple(layers)
