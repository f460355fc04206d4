"""The tensors of a TorchScript archive (OpenAI's CLIP files), without running its code.

`torch.jit.load` would compile and hold the archive's own code. Its `data.pkl` is a pickle of plain objects
whose attributes are modules and tensors; here it is read by an unpickler that knows tensors and storages and
makes every class of the archive an empty box for attributes. Anything else that it asks for is refused.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}  # fmt: skip


_DAMAGE = (
    pickle.UnpicklingError, KeyError, ValueError, TypeError, AttributeError, IndexError, EOFError,
    RuntimeError, zipfile.BadZipFile,
)  # fmt: skip


class _Module:
    """A module of the archive: the attributes that the pickle gives it, and no behaviour."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


def is_torchscript(path: Path) -> bool:
    """Whether the file is a zip archive with code in it, as torch.jit.save writes."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Names of the module tree -> tensors. Raises ValueError for what is no such archive or asks for more."""
    try:
        with zipfile.ZipFile(path) as archive:
            [root] = [name[: -len("data.pkl")] for name in archive.namelist() if name.endswith("/data.pkl")]
            reader = _Reader(io.BytesIO(archive.read(f"{root}data.pkl")), archive, root)
            tree = reader.load()
    except _DAMAGE as error:
        raise ValueError(f"{path} is a TorchScript archive that cannot be read ({error})") from error
    found: dict[str, Tensor] = {}
    _collect(tree, "", found)
    if not found:
        raise ValueError(f"{path} is a TorchScript archive without tensors; give the checkpoint itself")
    return found


class _Reader(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(stream)
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch.jit._pickle":  # typed lists and attributes: their values are enough
            return lambda *values: values[0] if values else None
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not run here")

    def persistent_load(self, key: Any) -> Tensor:
        """A storage as a flat tensor."""
        kind, dtype, number, *_ = key
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"unknown persistent object {kind!r}")
        data = bytearray(self.archive.read(f"{self.root}data/{number}"))
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset).clone()


def _collect(node: Any, prefix: str, found: dict[str, Tensor]) -> None:
    if not isinstance(node, _Module):
        return
    for name, value in getattr(node, "attributes", {}).items():
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        else:
            _collect(value, f"{prefix}{name}.", found)
