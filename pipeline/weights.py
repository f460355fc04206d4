"""The mark of a model's content, taken on the driver without loading it: no torch, only hashes of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline import storage
from pipeline.errors import ConfigError


def model_fingerprint(model: str, pretrained: str | None) -> str:
    """Equal for equal weights, wherever they lie: over the files of a model folder or a checkpoint; over name
    and tag of published weights.

    Raises:
        ConfigError: there is no model of this description.
    """
    if not model:
        raise ConfigError("no model; give --model: an open_clip name, or the model/ folder of a training")
    if Path(model).is_dir():
        if pretrained is not None:
            raise ConfigError(f"model {model!r} has weights of its own; leave pretrained {pretrained!r} away")
        return _folder_mark(Path(model))
    if "/" in model and not model.startswith("hf-hub:"):
        raise ConfigError(f"model folder {model!r} does not exist; train it first, or give an open_clip name")
    if pretrained is None and not model.startswith("hf-hub:"):
        raise ConfigError(
            f"model {model!r} needs --pretrained: a tag such as laion2b_s34b_b79k, or a checkpoint"
        )
    if pretrained is not None and Path(pretrained).is_file():
        return _short(f"{model}\n{storage.sha256_file(Path(pretrained))}")
    if pretrained is not None and ("/" in pretrained or Path(pretrained).suffix in (".pt", ".bin", ".pth")):
        raise ConfigError(f"pretrained {pretrained!r} is no file; give a checkpoint, or a tag of {model}")
    return _short(f"{model}\n{pretrained}")


def _folder_mark(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if not files:
        raise ConfigError(f"model folder {str(folder)!r} is empty; give the model/ folder of a finished run")
    lines = [f"{p.relative_to(folder).as_posix()} {storage.sha256_file(p)}" for p in files]
    return _short("\n".join(lines))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
