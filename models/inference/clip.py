"""One interface to any model that puts pictures and texts into one space, for scoring pairs.

    load_clip("ViT-B-32", pretrained="laion2b_s34b_b79k")   an open_clip model, by name and tag
    load_clip("ViT-B-32", pretrained="weights/mine.pt")     the same, weights from a file
    load_clip("runs/scorer/model")                          a model of our own trainer (clip, albef)

The cosine of a picture and a text is the inner product of their encodings.

`encode_images` and `encode_texts` do all of it. Who has many batches and a GPU takes them apart: `tokenize`
in a thread, `image_features` and `text_features` start the device and leave the result there, `fetched`
brings it here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from models.exported import CONFIG, TOKENIZER, WEIGHTS
from models.inference.load import LoadedModel, load_exported, pick_device
from pipeline import storage

#: texts encoded at once
TEXT_BATCH = 256

#: tensors [B, T] that a text encoder takes, such as ids and mask
Tokens: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class ClipScorer:
    """Encoders of pictures and texts.

    name: for people. fingerprint: identifies the weights (and the tokenizer): equal prints, equal scores.
    preprocess: picture -> float32 [3, H, W]; safe to call from several threads, which the others are not.
    tokenizer: texts -> what text_encoder takes, on the CPU.
    """

    name: str
    fingerprint: str
    preprocess: Callable[[Image.Image], Tensor]
    device: torch.device
    image_encoder: Callable[[Tensor], Tensor]
    tokenizer: Callable[[list[str]], Tokens]
    text_encoder: Callable[..., Tensor]

    def encode_images(self, image_BCHW: Tensor) -> Tensor:
        """Unit vectors, float32 [B, E], on the CPU."""
        return self.image_features(image_BCHW).cpu()

    def encode_texts(self, texts: list[str]) -> Tensor:
        """Unit vectors, float32 [B, E], on the CPU. Long texts are cut at the model's limit."""
        return self.text_features(self.tokenize(texts)).cpu()

    def tokenize(self, texts: list[str]) -> list[Tokens]:
        """Tokens of the texts, in parts of `TEXT_BATCH`."""
        if not texts:
            raise ValueError("no texts to encode")
        return [self.tokenizer(texts[i : i + TEXT_BATCH]) for i in range(0, len(texts), TEXT_BATCH)]

    @torch.inference_mode()
    def image_features(self, image_BCHW: Tensor) -> Tensor:
        """Unit vectors, float32 [B, E], on the device, which may still be computing them. Pictures in pinned
        memory are copied there without waiting."""
        return _unit(self.image_encoder(image_BCHW.to(self.device, non_blocking=True)))

    @torch.inference_mode()
    def text_features(self, parts: Sequence[Tokens]) -> Tensor:
        """The same of what `tokenize` gave."""
        placed = (tuple(t.to(self.device, non_blocking=True) for t in part) for part in parts)
        return torch.cat([_unit(self.text_encoder(*part)) for part in placed])


def fetched(features_BE: Tensor) -> Callable[[], Tensor]:
    """Starts copying a result to the CPU; the call waits for it, and for nothing that the device was given
    later."""
    if features_BE.device.type != "cuda":
        return features_BE.cpu
    copy = features_BE.to("cpu", non_blocking=True)  # torch takes pinned memory for it
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(features_BE.device))

    def wait() -> Tensor:
        done.synchronize()
        return copy

    return wait


def load_clip(
    model: str, *, pretrained: str | None = None, device: torch.device | str | None = None
) -> ClipScorer:
    """Loads a scorer; see the module's examples.

    Raises:
        ValueError: an unknown model or tag, a missing or unfitting file, weights that cannot be fetched.
    """
    place = pick_device(device)
    if Path(model).is_dir():
        if pretrained is not None:
            raise ValueError(f"model {model!r} is a folder with its own weights; leave pretrained away")
        return _ours(model, place)
    if "/" in model and not model.startswith("hf-hub:"):
        raise ValueError(f"model folder {model!r} does not exist; give a model/ folder, or an open_clip name")
    return _open_clip(model, pretrained, place)


def _ours(folder: str, device: torch.device) -> ClipScorer:
    loaded = load_exported(folder, device=device)
    _check_contrast(folder, loaded)
    network: Any = loaded.model

    return ClipScorer(
        name=f"{loaded.exported.recipe}-{loaded.exported.size}",
        fingerprint=exported_fingerprint(folder),
        preprocess=loaded.preprocess,
        device=device,
        image_encoder=lambda image_BCHW: network.encode_image(image_BCHW).feature_BE,
        tokenizer=lambda texts: loaded.tokenizer.encode(texts, loaded.exported.max_text_tokens),
        text_encoder=lambda ids_BT, mask_BT: network.encode_text(ids_BT, mask_BT).feature_BE,
    )


def _check_contrast(folder: str, loaded: LoadedModel) -> None:
    """Raises ValueError for a model whose joint embedding was never trained: its cosines mean nothing."""
    config, fresh = loaded.config, loaded.exported.training.get("fresh", ())
    objectives = getattr(config, "objectives", ("itc",))
    stage = getattr(config, "stage", "vision_language")
    if "itc" not in objectives:
        why = f"it was trained for {', '.join(objectives)} alone"
    elif stage != "vision_language":
        why = f"it comes from stage {stage!r}"
    elif {"image_projection.weight", "text_projection.weight"} & set(fresh):
        why = "its checkpoint had no projections, so they are random"
    else:
        return
    raise ValueError(
        f"model {folder!r} puts pictures and texts into no common space: {why}; give one trained with itc"
    )


def _open_clip(name: str, pretrained: str | None, device: torch.device) -> ClipScorer:
    import open_clip  # slow to import, and only needed here

    local = pretrained is not None and Path(pretrained).is_file()
    if not name.startswith("hf-hub:"):
        _check_open_clip_names(open_clip, name, pretrained, local=local)
    try:
        network, _, preprocess = open_clip.create_model_and_transforms(
            name, pretrained=pretrained, device=device, weights_only=True
        )
    except (RuntimeError, OSError, KeyError, AssertionError, AttributeError, UnpicklingError) as error:
        # open_clip asserts on shapes, and fails in its own ways on files that are no checkpoint
        where = f"from {pretrained}" if local else f"with tag {pretrained!r} (is the network reachable?)"
        raise ValueError(f"open_clip model {name!r} cannot be loaded {where}: {error}") from error
    network.eval().requires_grad_(False)
    tokenizer = open_clip.get_tokenizer(name)
    weights = storage.sha256_file(Path(str(pretrained))) if local else pretrained
    return ClipScorer(
        name=f"{name}/{Path(str(pretrained)).name if local else pretrained}",
        fingerprint=f"{name}:{weights}",
        preprocess=preprocess,
        device=device,
        image_encoder=network.encode_image,
        tokenizer=lambda texts: (tokenizer(texts),),
        text_encoder=network.encode_text,
    )


def _check_open_clip_names(open_clip: Any, name: str, pretrained: str | None, *, local: bool) -> None:
    if name not in open_clip.list_models():
        raise ValueError(
            f"open_clip knows no model {name!r}; open_clip.list_models() lists its names. "
            "For a model of our own trainer give its model/ folder"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ValueError(
            f"model {name!r} needs pretrained: a weights file or a tag ({', '.join(tags[:4]) or 'none'}); "
            "scores of random weights mean nothing"
        )
    if not local and pretrained.lower().replace("-", "_") not in {t.lower().replace("-", "_") for t in tags}:
        raise ValueError(
            f"pretrained {pretrained!r} is neither a file nor a tag of {name}; tags: {', '.join(tags)}"
        )


def exported_fingerprint(folder: str | Path) -> str:
    """sha256 over the weights, the configuration and the tokenizer of a model folder."""
    digest = hashlib.sha256()
    files = [Path(folder) / WEIGHTS, Path(folder) / CONFIG, *sorted((Path(folder) / TOKENIZER).iterdir())]
    for path in files:
        digest.update(f"{path.name}:{storage.sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _unit(feature_BE: Tensor) -> Tensor:
    return torch.nn.functional.normalize(feature_BE.float(), dim=-1)
