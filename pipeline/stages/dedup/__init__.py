"""Dedup: marks rows that are the same as others, as a few ordinary stages that run one after the other.

    for stage, folder in dedup_stages(DedupConfig(input="images"), "columns/dedup"):
        run_stage(stage, folder)

`method` says what is the same; each method writes columns of its own:

    exact          the same URL, caption or file     duplicate_of, duplicate_reason
    near           pictures that look alike          near_duplicate_of, near_distance
    contamination  like a benchmark's picture        contaminated_by, contamination_distance
    semantic       embeddings close to each other    semantic_duplicate_of, ..._similarity, ..._cluster

A method over all shards has three kinds of stages, so that memory is bounded and every one resumes alone:

    sketch    input  -> OUTPUT/_sketch    a shard each: what is compared, sorted by bucket
    resolve   sketch -> OUTPUT/_resolve   a bucket each: who loses to whom
    mark      both   -> OUTPUT            a shard each: the columns

Among rows that are the same the one with the smallest key wins, so shards that come later never change what
was said of earlier ones, and following a mark always ends at a sample that is kept.

A new method is a package here with

* `config.py`: a frozen dataclass of its own options, which imports nothing heavy. DedupConfig holds it in a
  field `NAME: NameOptions = since(NameOptions())`, and the command line has `--NAME.option`;
* `method.py`: `METHOD`, which names the options that mean something to it (`pipeline.stages.dedup.method`;
  all others are refused) and builds its stages; a line in METHODS here;
* stages with names and configs of their own, so that no option of one method is in the digest of another.
  `pipeline.stages.dedup.whole` and `pipeline.ranges` have what they share: stages over a bucket or over all
  losers, tables of which a range is read.

Its `__init__.py` imports nothing, since DedupConfig is built from all methods' options.
"""

from pipeline.errors import ConfigError
from pipeline.stage import Stage
from pipeline.stages.dedup.config import DedupConfig
from pipeline.stages.dedup.contamination.method import METHOD as CONTAMINATION
from pipeline.stages.dedup.exact.method import METHOD as EXACT
from pipeline.stages.dedup.method import Method
from pipeline.stages.dedup.near.method import METHOD as NEAR
from pipeline.stages.dedup.semantic.method import METHOD as SEMANTIC

__all__ = ["METHODS", "DedupConfig", "dedup_stages"]

METHODS: dict[str, Method] = {
    "exact": EXACT,
    "near": NEAR,
    "contamination": CONTAMINATION,
    "semantic": SEMANTIC,
}


def dedup_stages(config: DedupConfig, output: str) -> list[tuple[Stage, str]]:
    """The stages of a method with their output folders, in the order in which they are to be run, each after
    the one before it is finished.

    Raises:
        ConfigError: no such method, or options that mean nothing to it.
    """
    if config.method not in METHODS:
        raise ConfigError(f"method {config.method!r} must be one of {', '.join(METHODS)}")
    method = METHODS[config.method]
    method.refuse_options_of_others(config)
    return method.stages(config, output)
