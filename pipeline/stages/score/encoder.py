"""A model that encodes pictures and captions, loaded as the options of score say. What kinds `clip` and
`embedding` do with it stands in their own files.

Shapes: B pictures or captions of a batch, E dimensions of the joint space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from models.images import CorruptImageError, decode
from models.inference.clip import ClipScorer, Tokens, fetched, load_clip
from pipeline.errors import ConfigError
from pipeline.pictures import NO_PICTURE, UNDECODABLE
from pipeline.stages.score.config import ScoreConfig

#: open_clip brings the shorter side to the model's size: a line of pixels would become gigabytes
MAX_ASPECT = 100


class Encoder:
    """A loaded model with the precision and the device it is asked for; used by one thread, but for `picture`
    (any) and `pictures`, `texts` (one other)."""

    def __init__(self, model: str, pretrained: str | None, config: ScoreConfig) -> None:
        """Raises ConfigError when the model cannot be loaded, or where there is no GPU."""
        place = _device(config)
        try:
            self.scorer: ClipScorer = load_clip(model, pretrained=pretrained, device=place)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.name = self.scorer.name
        self._low = config.precision == "bf16"

    def picture(self, data: bytes | None) -> Tensor | str:
        """A picture as the model takes it, [3, H, W]; else the reason why it cannot be judged."""
        if data is None:
            return NO_PICTURE
        try:
            image = decode(data)
        except CorruptImageError:
            return UNDECODABLE
        if max(image.size) > MAX_ASPECT * min(image.size):
            return UNDECODABLE
        return self.scorer.preprocess(image)

    def pictures(self, pictures: Sequence[Tensor]) -> Tensor:
        """A batch of them, from where a GPU can fetch it by itself."""
        image_BCHW = torch.stack(list(pictures))
        return image_BCHW.pin_memory() if self.scorer.device.type == "cuda" else image_BCHW

    def texts(self, captions: Sequence[str]) -> list[Tokens]:
        """The same of captions."""
        parts = self.scorer.tokenize(list(captions))
        if self.scorer.device.type != "cuda":
            return parts
        return [tuple(tokens.pin_memory() for tokens in part) for part in parts]

    def encode_pictures(self, image_BCHW: Tensor) -> Callable[[], Tensor]:
        """Starts computing; the call waits for the unit vectors, float32 [B, E] on the CPU."""
        with self._precision():
            return fetched(self.scorer.image_features(image_BCHW))

    def encode_texts(self, parts: Sequence[Tokens]) -> Callable[[], Tensor]:
        """The same of captions."""
        with self._precision():
            return fetched(self.scorer.text_features(parts))

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.scorer.device.type, torch.bfloat16) if self._low else nullcontext()


def use_threads(config: ScoreConfig) -> int:
    """Sets how many threads compute, before a model is loaded. The order of additions, and so the last bit of
    a score, may follow from it."""
    threads = max(1, int(config.cpus))
    torch.set_num_threads(threads)
    return threads


def computed(encoder: Encoder, threads: int) -> dict[str, Any]:
    """What the bits of a score depend on beside what is in the digest; for the manifest."""
    place = encoder.scorer.device
    device = torch.cuda.get_device_name(place) if place.type == "cuda" else place.type
    return {"device": device, "threads": threads, "torch": torch.__version__}


def _device(config: ScoreConfig) -> str | None:
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise ConfigError(
            "device 'cuda': torch finds no GPU in this worker; ask Ray for one with --gpus 1, or take "
            "--device cpu"
        )
    if config.device == "auto" and config.gpus > 0 and not there:
        raise ConfigError(
            f"gpus {config.gpus}: torch finds no GPU in this worker; install a torch that knows it, or say "
            "--device cpu"
        )
    return None if config.device == "auto" else config.device
