"""Whether what a stage chooses from is all there: a choice among some of the rows would be another one."""

from __future__ import annotations

from pipeline import inputs
from pipeline.errors import ConfigError
from pipeline.inputs import Shard


def all_shards(folder: str, images: str) -> list[Shard]:
    """The shards of a folder that has one for each image shard.

    Raises:
        ConfigError: some are not made yet.
    """
    found = inputs.shards(folder, ".parquet")
    wanted = {s.number for s in inputs.shards(images, ".tar")}
    if missing := wanted - {s.number for s in found}:
        raise ConfigError(
            f"{folder}: {len(missing)} of {len(wanted)} image shards are not done yet, and what is chosen "
            "among all samples needs all; run pack again over all tasks, where it runs as several"
        )
    return [s for s in found if s.number in wanted]
