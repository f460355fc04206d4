"""State dicts in files, read without running any code of theirs.

    read_state_dict("ALBEF.pth")            torch.load(weights_only=True): tensors and containers
    read_state_dict("model.safetensors")
    read_state_dict("ViT-B-32.pt")          OpenAI's CLIP, a TorchScript archive: its tensors alone

Around the state dict may lie `model`, `state_dict` or `module` (ALBEF, open_clip, DeepSpeed), and before
every name `module.` (DistributedDataParallel): both are taken off.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.published.torchscript import is_torchscript, read_torchscript

WRAPPERS = ("model", "state_dict", "module", "model_state_dict")
PREFIX = "module."


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file by name, on the CPU.

    Raises:
        ValueError: no such file, no checkpoint, or one that holds objects which loading would have to run.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a .pth, .pt, .bin or .safetensors file")
    if path.suffix == ".safetensors":
        try:
            return _unprefixed(load_file(path))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read ({error}); download it again") from error
    if is_torchscript(path):
        return read_torchscript(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        why = str(error).splitlines()[0]
        raise ValueError(
            f"{path} holds more than tensors, and its objects are not run here ({why}); save its state dict "
            "alone with torch.save or safetensors, on a machine where you trust it"
        ) from error
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no checkpoint, or a damaged one ({error}); download it again") from error
    return _unprefixed(_unwrapped(found, path))


def write_state_dict(path: Path, weights: dict[str, Tensor], *, wrapper: str | None = None) -> None:
    """Writes a .safetensors or, by torch.save, a .pth, .pt or .bin; under its name once it is whole.

    `wrapper` is the key that the reference looks under; safetensors knows no such thing.
    """
    temp = path.with_name(f".{path.name}.tmp")
    temp.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: value.clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
    if path.suffix == ".safetensors":
        save_file(whole, temp, metadata={"format": "pt"})
    else:
        torch.save({wrapper: whole} if wrapper else whole, temp)
    temp.replace(path)


def _unwrapped(found: Any, path: Path) -> Mapping[str, Tensor]:
    while isinstance(found, Mapping) and not _is_state_dict(found):
        inside = next((found[name] for name in WRAPPERS if isinstance(found.get(name), Mapping)), None)
        if inside is None:
            break
        found = inside
    if not isinstance(found, Mapping) or not _is_state_dict(found):
        keys = sorted(map(str, found))[:5] if isinstance(found, Mapping) else []
        raise ValueError(
            f"{path} holds {type(found).__name__} {keys}, no state dict, nor one under "
            f"{', '.join(WRAPPERS)}; save it so"
        )
    return found


def _is_state_dict(found: Mapping[Any, Any]) -> bool:
    return bool(found) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())


def _unprefixed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if weights and all(name.startswith(PREFIX) for name in weights):
        weights = {name.removeprefix(PREFIX): value for name, value in weights.items()}
    return dict(weights)
