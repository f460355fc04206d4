"""Which folder a model's name means, and what its config.json says of it. Needs no torch: stages are planned
with it.

    local_folder("runs/captioner/model")                          a folder
    local_folder("hf:Salesforce/blip-image-captioning-base")      of the Hugging Face hub, fetched once
    local_folder("hf:Salesforce/blip-image-captioning-base@main") at a revision
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

CONFIG = "config.json"
HUB = "hf:"
#: what of a hub's repository is left there: weights that others than torch read
_OTHERS = ("*.h5", "*.msgpack", "*.onnx", "*.ot", "*.tflite", "onnx/*", "openvino/*")


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a folder says about itself.

    ours: whether it is a model/ folder of our own; else it is one of transformers.
    kind: the recipe, or transformers' model_type.
    objectives: what a recipe of ours was trained to; None where it does not say.
    """

    ours: bool
    kind: str
    objectives: tuple[str, ...] | None = None

    @property
    def writes(self) -> bool:
        """Whether it may write captions: the weights have the last word."""
        if not self.ours:
            return True
        return self.kind == "blip" and (self.objectives is None or "lm" in self.objectives)

    @property
    def matches(self) -> bool:
        """Whether it may judge if a text fits a picture: the weights have the last word."""
        if not self.ours:
            return self.kind == "blip"
        return self.kind in ("blip", "albef") and (self.objectives is None or "itm" in self.objectives)


def local_folder(name: str) -> Path:
    """The folder itself, or the local copy of the hub's.

    Raises:
        ValueError: there is none, or the hub cannot be reached.
    """
    if name.startswith(HUB):
        return _from_hub(name)
    if not Path(name).is_dir():
        raise ValueError(
            f"model folder {name!r} does not exist; give the model/ folder of a finished run, a folder of "
            f"transformers, or {HUB}OWNER/NAME"
        )
    return Path(name)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, and only needed here

    repository, _, revision = name.removeprefix(HUB).partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, ignore_patterns=list(_OTHERS)))
    except (OSError, ValueError) as error:  # the hub's own errors are both
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"model {name!r} cannot be fetched ({why}); is the name right, and the hub reachable?"
        ) from error


def describe(folder: str | Path) -> Described:
    """What a model folder is.

    Raises:
        ValueError: it is none.
    """
    path = Path(folder) / CONFIG
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} is no model folder: it has no {CONFIG}; give the model/ folder of a run, or one of "
            "transformers"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); export or download the model anew") from error
    if "recipe" in facts:
        objectives = facts.get("model", {}).get("objectives")
        return Described(
            ours=True, kind=facts["recipe"], objectives=None if objectives is None else tuple(objectives)
        )
    if "model_type" in facts:
        return Described(ours=False, kind=facts["model_type"])
    raise ValueError(f"{path} names neither a recipe nor a model_type; give a model folder")
