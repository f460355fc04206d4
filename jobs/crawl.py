"""Fetches pictures: `pairmill crawl`, or `python -m jobs.crawl`; with `--fused.floor` it scores them on the
way and stores only those above the floor.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pyarrow as pa
import yaml

from jobs.saved import name_stage, portable
from jobs.stages import run_stages
from jobs.verb import Request, Verb
from pipeline import fused, manifest, storage
from pipeline.errors import ConfigError
from pipeline.settings import location, since
from pipeline.stage import Stage
from pipeline.stages.crawl.rows import SCHEMA
from pipeline.stages.crawl.stage import CrawlConfig, CrawlStage
from pipeline.stages.score.config import ScoreConfig
from pipeline.stages.score.stage import ScoreStage
from pipeline.tombstones import with_book


@dataclass(frozen=True, kw_only=True)
class FusedOptions:
    """Crawl, score and a floor as one step.

    Attributes:
        floor: store only pictures for which this SQL expression over the crawl's columns and the score's is
            true, such as `clip_score >= 0.2`; empty: crawl alone.
        output: the column folder of the score.
        score: options of `pairmill score`; its input and output follow from here.
    """

    floor: str = ""
    output: str = location("")
    score: ScoreConfig = field(default_factory=ScoreConfig)


NOT_FUSED = FusedOptions()


@dataclass(frozen=True, kw_only=True)
class CrawlOptions(CrawlConfig):
    """What is crawled, and what becomes of the pictures.

    Attributes:
        fused: score the pictures of each shard before it is stored, and leave out those below a floor.
    """

    fused: FusedOptions = since(NOT_FUSED)

    @property
    def crawl(self) -> CrawlConfig:
        """The options of the crawl alone."""
        names = [f.name for f in dataclasses.fields(CrawlConfig)]
        return CrawlConfig(**{name: getattr(self, name) for name in names})


def stages(config: CrawlOptions, output: str) -> list[tuple[Stage, str]]:
    crawl = CrawlStage(with_book(config.crawl, output))
    return [(crawl if config.fused == NOT_FUSED else _fused(config, crawl, output), output)]


def _fused(config: CrawlOptions, crawl: CrawlStage, output: str) -> fused.Fused:
    """Raises ConfigError where an option of the fused part is missing, or makes no sense."""
    options = config.fused
    if not options.floor:
        raise ConfigError("fused.floor is empty; give an expression such as clip_score >= 0.2")
    if options.score.input or options.score.columns:
        raise ConfigError("fused.score.input and fused.score.columns follow from the crawl; leave them away")
    fused.check_folders(output, [options.output])
    score = ScoreStage(_score_config(config, output))
    return fused.Fused(
        config,
        first=crawl,
        columns=[fused.Column(stage=score, output=storage.absolute(options.output))],
        floor=options.floor,
        schema=pa.schema([*SCHEMA, *score.schema]),
    )


def _score_config(config: CrawlOptions, output: str) -> ScoreConfig:
    return dataclasses.replace(config.fused.score, input=storage.absolute(output))


def run(config: CrawlOptions, request: Request) -> int:
    found = stages(config, request.output)
    if isinstance(found[0][0], fused.Fused):
        _save_score(config, found[0][0], request.output)
    return run_stages(found, request)


def _save_score(config: CrawlOptions, stage: fused.Fused, output: str) -> None:
    """The column folder's own configuration: the score that would make it of these images."""
    score = _score_config(config, output)
    (column,) = stage.columns
    dumped = yaml.safe_dump({**dataclasses.asdict(score), "output": column.output})
    manifest.write_config(column.output, name_stage(portable("score", score, dumped), column.stage))


VERB = Verb(config=CrawlOptions, run=run, stage=True, stages=stages)

if __name__ == "__main__":
    from jobs.cli import entry

    entry("crawl")
