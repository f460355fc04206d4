"""The stages of method near."""

from __future__ import annotations

from pipeline.errors import ConfigError
from pipeline.stage import Stage
from pipeline.stages.dedup.config import DedupConfig
from pipeline.stages.dedup.method import Method
from pipeline.stages.dedup.near.mark import NearMark, NearMarkConfig
from pipeline.stages.dedup.near.resolve import NearResolve, NearResolveConfig
from pipeline.stages.dedup.near.sketch import NearSketch, NearSketchConfig
from pipeline.storage import join


def near_stages(config: DedupConfig, output: str) -> list[tuple[Stage, str]]:
    """Sketch, resolve and mark.

    Raises:
        ConfigError: no columns are given, or an option has a value that cannot be.
    """
    options = config.near
    options.check()
    if not config.columns:
        raise ConfigError(
            "method near compares hashes: give --columns the output of `score --kind hash`; none is given"
        )
    sketch, resolve = join(output, "_sketch"), join(output, "_resolve")
    return [
        (
            NearSketch(
                NearSketchConfig(
                    input=config.input,
                    columns=config.columns,
                    bands=options.bands,
                    band_bits=options.band_bits,
                    buckets=config.buckets,
                )
            ),
            sketch,
        ),
        (
            NearResolve(
                NearResolveConfig(
                    input=sketch, buckets=config.buckets, distance=options.distance, most=options.most
                )
            ),
            resolve,
        ),
        (NearMark(NearMarkConfig(sketch=sketch, resolve=resolve, buckets=config.buckets)), output),
    ]


METHOD = Method(options=frozenset({"buckets", "columns", "near"}), stages=near_stages)
