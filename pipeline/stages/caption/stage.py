"""The caption stage: synthetic captions of every picture of a shard, each with its scores, and the scores of
the web's caption; one row for every success.

    pairmill caption --input images --output columns/caption --captioner runs/captioner/model \
                     --filter runs/filter/model --candidates 10
    pairmill caption --input images --output columns/caption --captioner hf:OWNER/NAME \
                     --where "clip_score < 0.3" --columns columns/clip

CapFilt (BLIP, arXiv 2201.12086) writes one caption a picture by nucleus sampling, and lets a filter judge it
and the web's. LAION-COCO writes 40, keeps the 5 best by a CLIP and the best of them by a larger one. Both are
choices among these columns, made when shards are packed: all candidates and all scores are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from pipeline import candidates
from pipeline.asked import Asked
from pipeline.errors import ConfigError
from pipeline.pictures import rows_with_pictures
from pipeline.stage import Counts, Input, Output, Resources, Stage, Unit
from pipeline.stages.caption.captioned import Captioned, sidecar
from pipeline.stages.caption.config import CaptionConfig, check
from pipeline.stages.caption.models import model_inputs

if TYPE_CHECKING:
    from pipeline.stages.caption.worker import CaptionWorker


class CaptionStage(Stage):
    """Image shard -> synthetic captions and scores."""

    name = "caption"

    def __init__(self, config: CaptionConfig) -> None:
        """Raises ConfigError for values that no worker could start with."""
        check(config)
        self.config = config
        self.asked = Asked(
            input=config.input, columns=config.columns, where=config.where, needs=("key", "caption")
        )
        self._worker: CaptionWorker | None = None
        self._found: tuple[Input, ...] | None = None

    @property
    def resources(self) -> Resources:
        return Resources(cpus=self.config.cpus, gpus=self.config.gpus)

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        if candidates.is_candidates(self.config.input):
            raise ConfigError(
                f"input {self.config.input!r} holds candidates, and captions are written about pictures; "
                "crawl them first, and give the crawl's output"
            )
        return self.asked.units(self._models())

    def _models(self) -> tuple[Input, ...]:
        """Found once: it hashes all weights."""
        if self._found is None:
            self._found = model_inputs(self.config)
        return self._found

    def start(self) -> None:
        # torch and the models are slow to import, and only workers need them
        from pipeline.stages.caption.worker import CaptionWorker

        self._worker = CaptionWorker(self.config)

    def run(self, unit: Unit, scratch: Path) -> Output:
        assert self._worker is not None, "start() loads the models"
        table, refused = self.asked.read(unit)
        dropped = Counter(reason for reason in refused.to_pylist() if reason is not None)
        rows = rows_with_pictures(unit.inputs[0].url, table.filter(pc.is_null(refused)))
        found: dict[str, Captioned] = {}
        for key, said in self._worker.work(rows):
            if isinstance(said, str):
                dropped[said] += 1
            else:
                found[key] = said
        return Output(
            parts={".parquet": sidecar(table["key"].to_pylist(), found)},
            counts=Counts(len(table), len(found), dropped),
            notes=self._worker.names,
        )
