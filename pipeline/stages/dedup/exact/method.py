"""The stages of method exact."""

from __future__ import annotations

import dataclasses

from pipeline import candidates
from pipeline.stage import Stage
from pipeline.stages.dedup.config import DedupConfig
from pipeline.stages.dedup.exact.entries import default_kinds
from pipeline.stages.dedup.exact.mark import Mark, MarkConfig
from pipeline.stages.dedup.exact.resolve import Resolve, ResolveConfig
from pipeline.stages.dedup.exact.sketch import Sketch
from pipeline.stages.dedup.method import Method
from pipeline.storage import join


def exact_stages(config: DedupConfig, output: str) -> list[tuple[Stage, str]]:
    """Sketch, resolve and mark; `on` is settled here, since it depends on the input."""
    kinds = config.kinds()
    if config.on is None:
        kinds = default_kinds(of_candidates=candidates.is_candidates(config.input))
    config = dataclasses.replace(config, on=kinds)
    sketch, resolve = join(output, "_sketch"), join(output, "_resolve")
    return [
        (Sketch(config), sketch),
        (Resolve(ResolveConfig(input=sketch, buckets=config.buckets)), resolve),
        (Mark(MarkConfig(sketch=sketch, resolve=resolve, buckets=config.buckets)), output),
    ]


METHOD = Method(options=frozenset({"on", "buckets", "columns"}), stages=exact_stages)
