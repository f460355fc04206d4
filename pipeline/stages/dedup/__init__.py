"""Dedup: exact duplicates over all image shards, or over all candidates, as three ordinary stages.

    sketch    input  -> OUTPUT/_sketch    a shard each: hashes of (url, caption) and of the image
    resolve   sketch -> OUTPUT/_resolve   a bucket of hashes each: who is a duplicate of whom
    mark      both   -> OUTPUT            a shard each: the columns duplicate_of and duplicate_reason

    for stage, folder in dedup_stages(DedupConfig(input="images"), "columns/dedup"):
        run_stage(stage, folder)

A shard is one of images, or a part of a candidates folder. Among rows with one hash the one with the smallest
key wins, so shards that come later never change what was said of earlier ones. Of images only successes take
part. A bucket holds all entries whose hash falls into it, so memory is bounded by rows / buckets.

A sample may be a duplicate by one hash of a sample that is itself one by the other: `duplicate_of` names the
direct winner, and following it always ends at a sample that is no duplicate.
"""

import dataclasses

from pipeline import candidates
from pipeline.stages.dedup.entries import default_kinds
from pipeline.stages.dedup.mark import Mark, MarkConfig
from pipeline.stages.dedup.resolve import Resolve, ResolveConfig
from pipeline.stages.dedup.sketch import DedupConfig, Sketch
from pipeline.storage import join

__all__ = ["DedupConfig", "Mark", "MarkConfig", "Resolve", "ResolveConfig", "Sketch", "dedup_stages"]


def dedup_stages(config: DedupConfig, output: str) -> list[tuple[Sketch | Resolve | Mark, str]]:
    """The three stages with their output folders, in the order in which they are to be run, each after the
    one before it is finished."""
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
