"""Pack: applies a rule over the columns and writes the training shards, the public product (FORMAT.md)."""

from __future__ import annotations

from pipeline.stage import Stage
from pipeline.stages.pack.select import select_stages, verdicts_folder
from pipeline.stages.pack.stage import Pack, PackConfig, books_of

__all__ = ["Pack", "PackConfig", "books_of", "pack_stages", "select_stages", "verdicts_folder"]


def pack_stages(config: PackConfig, output: str) -> list[tuple[Stage, str]]:
    """All stages of pack with their output folders, in the order in which they are to be run; pack alone,
    where nothing is asked of all samples together.

    Raises:
        ConfigError: the rule cannot be read.
    """
    before = select_stages(
        config,
        output,
        input=config.input,
        columns=config.columns,
        books=books_of(config),
        seed=config.seed,
        buckets=config.buckets,
    )
    pack = Pack(config, verdicts=verdicts_folder(output) if before else None)
    return [*before, (pack, output)]
