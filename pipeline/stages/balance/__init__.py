"""Balance: MetaCLIP's curation (arXiv:2309.16671), as three ordinary stages.

    match   input         -> OUTPUT/_match   a shard each: the entries that each caption holds
    count   match         -> OUTPUT/_count   one unit: how many captions hold each entry
    mark    both          -> OUTPUT          a shard each: the columns metaclip_matches and metaclip_keep

A caption without an entry is not kept. One with entries is kept when the draw of any of them says so: that of
an entry with probability min(1, cap / count). So the tail stays whole, and a head entry keeps about `cap`.
Draws are a hash of (seed, uid, entry): a pair has the same fate in any order, on any number of workers.
"""

from pipeline.stages.balance.config import BalanceConfig
from pipeline.stages.balance.count import Count, CountConfig
from pipeline.stages.balance.mark import Mark, MarkConfig
from pipeline.stages.balance.match import Match, MatchConfig
from pipeline.storage import join

__all__ = ["BalanceConfig", "Count", "Mark", "Match", "balance_stages"]


def balance_stages(config: BalanceConfig, output: str) -> list[tuple[Match | Count | Mark, str]]:
    """The three stages with their output folders, in the order in which they are to be run.

    Raises:
        ConfigError: a value makes no sense.
    """
    config.check()
    match, count = join(output, "_match"), join(output, "_count")
    asked = MatchConfig(
        input=config.input,
        entries=config.entries,
        lower=config.lower,
        columns=config.columns,
        where=config.where,
    )
    return [
        (Match(asked), match),
        (Count(CountConfig(input=match)), count),
        (Mark(MarkConfig(match=match, count=count, cap=config.cap, seed=config.seed)), output),
    ]
