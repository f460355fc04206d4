"""The work of `pairmill evaluate`: reads a pool of pictures, asks the model, returns the numbers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.evaluate import EvaluateConfig
from models.evaluation.captions import WriteCaptions, evaluate_captions
from models.evaluation.itm import evaluate_itm
from models.evaluation.mlm import evaluate_mlm
from models.evaluation.pool import Pool, encode_pool
from models.evaluation.retrieval import evaluate_retrieval
from models.images import CorruptImageError, decode
from models.inference.captioner import captioner_of
from models.inference.load import LoadedModel, load_exported
from models.training.stopping import TrainingError
from models.training.table import SampleTable, build_table, find_shards
from pipeline.errors import ConfigError, InputError
from pipeline.progress import Progress

log = logging.getLogger(__name__)


def run_evaluation(config: EvaluateConfig, folder: Path, words: dict[str, list[str]]) -> dict[str, Any]:
    """The results by name, as JSON values."""
    try:
        loaded = load_exported(folder, device=config.device)
        table = build_table(find_shards(config.shards))
    except TrainingError as error:
        raise InputError(str(error)) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    pool, facts = build_pool(config, table, loaded)
    model: Any = loaded.model
    show = _Shown("evaluate")
    seeds, device = tuple(config.seeds), loaded.device
    if words and not hasattr(model, "mlm_logits"):
        raise ConfigError(f"mlm_words: {type(model).__name__} predicts no masked words; leave them out")
    encoded = encode_pool(model, pool, device=device, report=show)
    results: dict[str, Any] = {}
    matches = encoded.fuses and learnt(loaded, "itm")
    top_k = config.top_k if matches else 0
    if learnt(loaded, "itc"):
        results["retrieval"] = evaluate_retrieval(
            model, pool, top_k=top_k, seed=config.seed, device=device, encoded=encoded, report=show
        ).to_json()
    if matches:
        results["itm"] = evaluate_itm(
            model, pool, seeds=seeds, device=device, encoded=encoded, report=show
        ).to_json()
    if words:
        try:
            results["mlm"] = evaluate_mlm(
                model, pool, tokenizer=loaded.tokenizer, words=words, seeds=seeds, device=device,
                encoded=encoded, report=show,
            ).to_json()  # fmt: skip
        except ValueError as error:
            raise ConfigError(f"mlm_words: {error}") from error
    write = find_captioner(loaded) if config.caption_pictures else None
    if write is not None:
        few = pool.first(config.caption_pictures)
        results["captions"] = evaluate_captions(write, few, seed=config.seed, report=show).to_json()
    show.close()
    return {name: {**result, **facts} for name, result in results.items()}


def learnt(loaded: LoadedModel, objective: str) -> bool:
    """Whether the model was trained with an objective, as far as its configuration chooses among them."""
    return objective in getattr(loaded.config, "objectives", (objective,))


def find_captioner(loaded: LoadedModel) -> WriteCaptions | None:
    """What writes this model's captions, by beam search; None where it writes none."""
    captioner = captioner_of(loaded)
    if captioner is None:
        return None
    return lambda image_BCHW: [texts[0] for texts in captioner.write(image_BCHW)]


def build_pool(
    config: EvaluateConfig, table: SampleTable, loaded: LoadedModel
) -> tuple[Pool, dict[str, Any]]:
    """The first `pool` readable pictures (0: all) of a seeded order, each with all its captions.

    Raises:
        ConfigError: fewer pictures than asked for.
    """
    wanted = config.pool or len(table)
    place: dict[int, int] = {}
    pixels, captions, owner = [], [], []
    corrupt = 0
    show = _Shown("evaluate")
    for index in np.random.default_rng(config.seed).permutation(len(table)):
        try:
            sample = table.read(int(index))
            if sample.image_id not in place:
                if len(place) == wanted:
                    continue
                pixels.append(loaded.exported.transform(decode(sample.image)))
                place[sample.image_id] = len(place)
                show("reading the pool", len(place), wanted)
        except (CorruptImageError, ValueError) as error:
            corrupt += 1
            log.warning("sample %s cannot be read (%s); left out of the pool", table.keys[index], error)
            continue
        captions.append(sample.caption)
        owner.append(place[sample.image_id])
    show.close()
    if not place or len(place) < config.pool:
        raise ConfigError(
            f"pool {config.pool}: the shards hold {len(place)} readable pictures; "
            f"add shards, or pass --pool {len(place)}"
        )
    ids_PT, mask_PT = loaded.tokenizer.encode(captions, loaded.exported.max_text_tokens)
    pool = Pool(
        images=[
            torch.stack(pixels[i : i + config.batch_size]) for i in range(0, len(pixels), config.batch_size)
        ],
        pictures=len(place),
        text_ids_PT=ids_PT,
        text_mask_PT=mask_PT,
        text_image_P=torch.tensor(owner),
        captions=captions,
    )
    return pool, {"seed": config.seed, "corrupt": corrupt, "training": loaded.exported.training}


class _Shown:
    """Draws the progress of one piece of work after another."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.what, self.done = "", 0
        self.line: Progress | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self.what:
            self.close()
            self.what, self.line = what, Progress(f"{self.label} {what}", total, unit="")
        assert self.line is not None
        self.done = done
        self.line.update(done)

    def close(self) -> None:
        if self.line is not None:
            self.line.close(self.done)
        self.what, self.line = "", None
