"""The models of the caption stage as inputs of its units, found on the driver without loading them."""

from __future__ import annotations

from models.inference.folders import Described, describe, local_folder
from pipeline.errors import ConfigError
from pipeline.stage import Input
from pipeline.stages.caption.config import CaptionConfig
from pipeline.weights import model_fingerprint


def model_inputs(config: CaptionConfig) -> tuple[Input, ...]:
    """One input for each model that is given; its mark says what it is for and what it holds.

    Raises:
        ConfigError: there is no such model, or it cannot do what it is for.
    """
    found = []
    if config.captioner:
        found.append(_folder("captioner", config.captioner))
    if config.filter:
        found.append(_folder("filter", config.filter))
    for name in ("clip", "clip2"):
        model, pretrained = getattr(config, name), getattr(config, f"{name}_pretrained")
        if model:
            mark = model_fingerprint(model, pretrained)
            found.append(Input(url=model, fingerprint=f"{name}:{mark}"))
    return tuple(found)


def _folder(use: str, model: str) -> Input:
    try:
        folder = local_folder(model)
        known = describe(folder)
    except ValueError as error:
        raise ConfigError(f"{use}: {error}") from error
    _check(use, model, known)
    return Input(url=model, fingerprint=f"{use}:{model_fingerprint(str(folder), None)}")


def _check(use: str, model: str, known: Described) -> None:
    trained = f" trained for {', '.join(known.objectives)}" if known.objectives else ""
    if use == "captioner" and not known.writes:
        raise ConfigError(
            f"captioner {model!r} is a {known.kind}{trained}, which does not write; give a blip with "
            "objective lm, or a captioner of transformers"
        )
    if use == "filter" and not known.matches:
        raise ConfigError(
            f"filter {model!r} is a {known.kind}{trained}, which has no matching head; give a blip or albef "
            "with objective itm, or a BlipForImageTextRetrieval"
        )
