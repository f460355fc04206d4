"""The stages of method semantic.

    centroids   embeddings -> OUTPUT/_centroids   once: k-means on a sample
    assign      embeddings -> OUTPUT/_assign      a group of shards each: clusters, vectors by bucket
    resolve     assign     -> OUTPUT/_resolve     a bucket of clusters each: who means the same as whom
    collect     resolve    -> OUTPUT/_collect     a group of shards each
    mark        collect    -> OUTPUT              a shard each: the columns

as SemDeDup (arXiv 2303.09540); `pairs` has the definition.
"""

from __future__ import annotations

from typing import Any

from pipeline.errors import ConfigError
from pipeline.stage import Stage
from pipeline.stages.dedup.config import DedupConfig
from pipeline.stages.dedup.method import Method
from pipeline.stages.dedup.semantic.assign import Assign, AssignConfig
from pipeline.stages.dedup.semantic.centroids import Centroids, CentroidsConfig, check_options
from pipeline.stages.dedup.semantic.collect import Collect, CollectConfig
from pipeline.stages.dedup.semantic.config import KEEP
from pipeline.stages.dedup.semantic.mark import SemanticMark, SemanticMarkConfig
from pipeline.stages.dedup.semantic.resolve import SemanticResolve, SemanticResolveConfig
from pipeline.storage import join


def semantic_stages(config: DedupConfig, output: str) -> list[tuple[Stage, str]]:
    """Centroids, assign, resolve, collect and mark.

    Raises:
        ConfigError: no columns are given, or an option has a value that cannot be.
    """
    options = config.semantic
    check_options(options)
    if options.keep not in KEEP:
        raise ConfigError(f"semantic.keep {options.keep!r} must be one of {', '.join(KEEP)}")
    if not 1 <= config.buckets <= 100_000:
        raise ConfigError(f"buckets {config.buckets} must be in 1..100000")
    if not config.columns:
        raise ConfigError(
            "method semantic compares embeddings: give --columns the output of `score --kind embedding`"
        )
    folders = [join(output, name) for name in ("_centroids", "_assign", "_resolve", "_collect")]
    centroids, assigned, resolved, collected = folders
    # what is read, which is the same for all stages that read it
    read: dict[str, Any] = {
        "input": config.input,
        "columns": config.columns,
        "embedding": options.embedding,
        "where": options.where,
    }
    buckets = config.buckets
    stages: list[Stage] = [
        Centroids(
            CentroidsConfig(
                **read,
                clusters=options.clusters,
                sample=options.sample,
                iterations=options.iterations,
                split=options.split,
                seed=options.seed,
                threads=options.threads,
            )
        ),
        Assign(AssignConfig(**read, centroids=centroids, group=options.group, buckets=buckets)),
        SemanticResolve(
            SemanticResolveConfig(assigned=assigned, buckets=buckets, eps=options.eps, keep=options.keep)
        ),
        Collect(CollectConfig(assigned=assigned, resolved=resolved, buckets=buckets)),
        SemanticMark(SemanticMarkConfig(**read, collected=collected, group=options.group)),
    ]
    return list(zip(stages, [*folders, output], strict=True))


METHOD = Method(options=frozenset({"columns", "buckets", "semantic"}), stages=semantic_stages)
