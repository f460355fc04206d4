"""Captions by any captioner of transformers, through its own code: BLIP-2, GIT, vision encoder-decoders ...

    load_foreign("models/git-base-coco").write_prepared(...)

Slower than a BLIP, which becomes a model of ours, but with the same promises: pictures in batches, each
encoded once for all its candidates, and draws keyed by (seed, picture, candidate, position), so that the
other pictures of a batch do not matter. A processor of logits sees to that: it leaves the token that was
drawn as the only one, whatever generator transformers draws with. Lengths count one opening token, and
neither prompt nor picture.

A folder's own Python code is never run.

Shapes: M pictures, N candidates of each, R = M * N rows, V vocabulary, L tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from models.batch import StepContext
from models.images import to_rgb
from models.inference.captioner import ROWS, draw_key, parts
from models.inference.generation import Beam, Nucleus, draw_nucleus
from models.inference.load import pick_device

#: what a picture becomes: the inputs of the model by name, a batch of one
Prepared = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ForeignCaptioner:
    """A loaded captioner of transformers.

    processor: of pictures, and of texts where it takes both. prompt_ids: what the decoder begins with; empty:
    as the model does by itself.
    """

    name: str
    model: Any
    processor: Any
    tokenizer: Any
    prompt: str | None

    def check(self, how: Beam | Nucleus) -> None:
        """Its own code has the last word."""

    def prepare(self, image: Image.Image) -> Prepared:
        """The picture, and the prompt in the way that this model wants it."""
        picture = to_rgb(image)
        if self.prompt is None:
            return dict(self._pictures(images=picture, return_tensors="pt"))
        kind = self.model.config.model_type
        if kind in ("git", "vision-encoder-decoder"):
            ids = self.tokenizer(self.prompt, add_special_tokens=False)["input_ids"]
            first = self.tokenizer.cls_token_id if kind == "git" else _start(self.model)
            name = "input_ids" if kind == "git" else "decoder_input_ids"
            pixels = self._pictures(images=picture, return_tensors="pt")["pixel_values"]
            return {"pixel_values": pixels, name: torch.tensor([[first, *ids]])}
        return dict(self.processor(images=picture, text=self.prompt, return_tensors="pt"))

    @property
    def _pictures(self) -> Any:
        return getattr(self.processor, "image_processor", self.processor)

    @torch.inference_mode()
    def write_prepared(
        self, pictures: Sequence[Prepared], *, how: Beam | Nucleus, keys: Sequence[str], rows: int = ROWS
    ) -> list[list[str]]:
        """As `models.inference.captioner.Captioner.write`.

        Raises:
            ValueError: pictures that this model does not take in one batch.
        """
        image_id_M = torch.tensor([draw_key(key) for key in keys], device=self.model.device)
        texts: list[list[str]] = [[] for _ in pictures]
        for which, part in parts(len(pictures), how, rows):
            given = self._batch(pictures[which])
            ids_RL = self._generate(given, image_id_M[which], how, part)
            found = [self._text(ids, given) for ids in ids_RL.tolist()]
            each = len(found) // len(pictures[which])
            for at, own in enumerate(texts[which]):
                own += found[at * each : (at + 1) * each]
        return texts

    def _batch(self, pictures: Sequence[Prepared]) -> Prepared:
        try:
            joined = {name: torch.cat([p[name] for p in pictures]) for name in pictures[0]}
        except (RuntimeError, KeyError) as error:
            raise ValueError(
                f"{self.name} prepares pictures in sizes of their own, which make no batch; "
                "use --batch_size 1"
            ) from error
        dtype = self.model.dtype
        return {
            name: value.to(self.model.device, dtype if value.is_floating_point() else None)
            for name, value in joined.items()
        }

    def _generate(self, given: Prepared, image_id_M: Tensor, how: Beam | Nucleus, part: slice) -> Tensor:
        """Token ids [R, L], the candidates of a picture side by side."""
        options: dict[str, Any] = {
            "min_new_tokens": max(0, how.min_length - 1), "max_new_tokens": how.max_length - 1,
            "repetition_penalty": how.repetition_penalty, "pad_token_id": _pad(self.tokenizer),
        }  # fmt: skip
        if isinstance(how, Beam):
            options |= {
                "num_beams": how.beams, "do_sample": False, "length_penalty": how.length_penalty,
                "num_return_sequences": 1,
            }  # fmt: skip
            return self.model.generate(**given, **options)
        from transformers import LogitsProcessorList

        candidates = range(how.candidates)[part]
        options |= {
            "do_sample": True, "num_beams": 1, "top_k": 0, "top_p": 1.0, "temperature": 1.0,
            "num_return_sequences": len(candidates),
            "logits_processor": LogitsProcessorList([KeyedNucleus(how, image_id_M, candidates)]),
        }  # fmt: skip
        with _EncodedOnce(self.model, len(candidates)):
            return self.model.generate(**given, **options)

    def _text(self, ids: list[int], given: Prepared) -> str:
        for name in ("input_ids", "decoder_input_ids"):
            if name in given:
                first = given[name][0].tolist()
                ids = ids[len(first) :] if ids[: len(first)] == first else ids
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


class KeyedNucleus:
    """A processor of logits for transformers' sampling that leaves one token: what `draw_nucleus` takes."""

    def __init__(self, how: Nucleus, image_id_M: Tensor, candidates: range) -> None:
        self.how, self.image_id_M, self.candidates = how, image_id_M, candidates
        self.length = 0

    def __call__(self, input_ids: Tensor, scores_RV: Tensor) -> Tensor:
        self.length += 1
        context = StepContext(seed=self.how.seed, step=self.length)
        uniform_MC = context.uniform("nucleus", self.image_id_M, self.how.candidates)
        uniform_1R = uniform_MC[:, self.candidates.start : self.candidates.stop].flatten()[None]
        token_1R = draw_nucleus(scores_RV.float()[None], uniform_1R, p=self.how.p, top_k=self.how.top_k)
        alone_RV = torch.full_like(scores_RV, -float("inf"))
        return alone_RV.scatter(1, token_1R[0][:, None], 0.0)


class _EncodedOnce:
    """While it is entered, GIT's picture tower sees each picture once, and its tokens are repeated: GIT gives
    it the picture of every candidate. The other models repeat what came out of their tower by themselves."""

    def __init__(self, model: Any, times: int) -> None:
        self.tower = getattr(getattr(model, "git", None), "image_encoder", None)
        self.times = times

    def __enter__(self) -> None:
        if self.tower is not None:
            self.hooks = [
                self.tower.register_forward_pre_hook(self._thin, with_kwargs=True),
                self.tower.register_forward_hook(self._repeat),
            ]

    def __exit__(self, *_: object) -> None:
        if self.tower is not None:
            for hook in self.hooks:
                hook.remove()

    def _thin(self, _: Any, args: tuple[Tensor, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return (args[0][:: self.times], *args[1:]), options

    def _repeat(self, _: Any, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.repeat_interleave(self.times, dim=0)
        return output


def load_foreign(
    folder: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    prompt: str | None = None,
) -> ForeignCaptioner:
    """The captioner of a folder of transformers, in evaluation mode.

    Raises:
        ValueError: it holds no captioner, or lacks weights, a tokenizer or a picture processor.
    """
    import transformers  # slow to import, and only needed here

    place, kind = pick_device(device), cast(Any, transformers.AutoModelForImageTextToText)
    if dtype is None:
        dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    try:
        model, told = kind.from_pretrained(
            str(folder), local_files_only=True, output_loading_info=True, dtype=dtype
        )
        processor, tokenizer = _processors(str(folder))
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        why = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder} holds no captioner that transformers reads here ({why})") from error
    if told["missing_keys"]:
        raise ValueError(
            f"{folder} lacks weights, such as {min(told['missing_keys'])}: random ones would stand there; "
            "download the model anew"
        )
    return ForeignCaptioner(
        name=f"{model.config.model_type} by transformers",
        model=model.eval().requires_grad_(False).to(place),
        processor=processor,
        tokenizer=tokenizer,
        prompt=prompt,
    )


def _processors(folder: str) -> tuple[Any, Any]:
    """What prepares pictures (and texts, where one class does both), and the tokenizer."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    try:
        both = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError):  # vision encoder-decoders have two
        both = None
    if getattr(both, "image_processor", None) is not None:
        return both, tokenizer
    return AutoImageProcessor.from_pretrained(folder, local_files_only=True), tokenizer


def _pad(tokenizer: Any) -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def _start(model: Any) -> int:
    """The token that opens the decoder's texts."""
    for config in (model.generation_config, model.config, getattr(model.config, "decoder", None)):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if getattr(config, name, None) is not None:
                return int(getattr(config, name))
    raise ValueError("the model says no decoder_start_token_id, and a prompt needs it")
