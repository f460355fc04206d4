"""Which input shards go into which output shard: a seeded permutation, cut into groups.

The order comes from a hash of (seed, number), not from a random generator: the same on every version and
machine, and taking one element away moves no other. So a group that loses a sample rewrites only itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from pipeline.errors import ConfigError
from pipeline.shards.format import shard_name
from pipeline.stage import Unit


def shuffled(names: Iterable[str], seed: int) -> list[str]:
    """Names in an order that is random, yet given by (seed, name) alone."""
    return sorted(names, key=lambda name: (hashlib.sha256(f"{seed}:{name}".encode()).digest(), name))


def plan_groups(
    planned: Sequence[Unit], numbers: Sequence[int], *, group: int, seed: int, view: bool = False
) -> list[dict]:
    """The source of each group, in order: those of `planned` first and unchanged, then new ones for the
    shards that no group holds yet.

    Raises:
        ConfigError: the planned groups were cut otherwise, or hold shards that are gone.
    """
    sources = [dict(unit.source) for unit in planned]
    kind = {"view": True} if view else {}
    for source in sources:
        if source.get("view", False) != view:
            raise ConfigError(
                f"the output holds {'copies of pictures' if view else 'a view'}, and the two do not go into "
                "one folder; choose another --output"
            )
        if (source["group"], source["seed"]) != (group, seed):
            raise ConfigError(
                f"the output was packed with group {source['group']} and seed {source['seed']}, not group "
                f"{group} and seed {seed}: all of its shards would change; choose another --output"
            )
    held = {number for source in sources for number in source["shards"]}
    gone = sorted(held - set(numbers))
    if gone:
        raise ConfigError(
            f"the output was packed from shards that the input no longer has, such as {shard_name(gone[0])} "
            f"({len(gone)} in all); bring them back, or choose another --output"
        )
    fresh = [int(name) for name in shuffled((str(n) for n in numbers if n not in held), seed)]
    for start in range(0, len(fresh), group):
        sources.append({"shards": fresh[start : start + group], "group": group, "seed": seed, **kind})
    return sources
