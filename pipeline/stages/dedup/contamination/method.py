"""The stages of method contamination.

benchmarks   the sets -> OUTPUT/_benchmarks   a thousand pictures, a shard or a list each: their hashes
compare      hashes   -> OUTPUT               a shard each: the columns
"""

from __future__ import annotations

from pipeline.errors import ConfigError
from pipeline.stage import Stage
from pipeline.stages.dedup.config import DedupConfig
from pipeline.stages.dedup.contamination.benchmarks import Benchmarks, BenchmarksConfig
from pipeline.stages.dedup.contamination.compare import Compare, CompareConfig
from pipeline.stages.dedup.method import Method
from pipeline.storage import join


def contamination_stages(config: DedupConfig, output: str) -> list[tuple[Stage, str]]:
    """Benchmarks and compare.

    Raises:
        ConfigError: no columns or no sets are given, or an option has a value that cannot be.
    """
    options = config.contamination
    options.check()
    if not config.columns:
        raise ConfigError(
            "method contamination compares hashes: give --columns the output of `score --kind hash`"
        )
    folder = join(output, "_benchmarks")
    compare = CompareConfig(
        input=config.input,
        columns=config.columns,
        benchmarks=folder,
        distance=options.distance,
        short_distance=options.short_distance,
    )
    return [(Benchmarks(BenchmarksConfig(against=config.against)), folder), (Compare(compare), output)]


METHOD = Method(options=frozenset({"columns", "against", "contamination"}), stages=contamination_stages)
