"""Pack: applies a rule over the columns and writes the training shards, the public product (FORMAT.md)."""

from pipeline.stages.pack.stage import Pack, PackConfig

__all__ = ["Pack", "PackConfig"]
