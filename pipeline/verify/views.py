"""The checks of a view: whether the pictures that it names are still where it says."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from pipeline import inputs, manifest, storage
from pipeline.errors import ConfigError, InputError
from pipeline.shards.format import shard_name
from pipeline.shards.view import TEXTS, View, ViewShard, open_view


def is_view_unit(record: Mapping[str, Any]) -> bool:
    return any(name.endswith(TEXTS) for name in record["files"])


class ViewImages:
    """The images of a view: opened once, asked of every unit."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def faults(self, record: Mapping[str, Any], *, quick: bool) -> list[str]:
        """What is wrong with the pictures of one unit: shards that have other content than when the view was
        made (where a stage of ours wrote them), and, unless `quick`, pictures that are not in their place."""
        try:
            view = self._view
            tars = {i["name"]: i["fingerprint"] for i in record["inputs"] if i["name"].endswith(".tar")}
            wrong = [
                f"{name}: the images changed since the view was made; run its `pairmill pack` again with "
                "--overwrite"
                for name, mark in tars.items()
                if self._marks.get(name, mark) != mark
            ]
            if not wrong and not quick:
                with view.open(storage.join(self.folder, f"{shard_name(record['unit'])}.parquet")) as shard:
                    wrong += _misplaced(shard)
        except (InputError, ConfigError, OSError) as error:
            return [str(error)]
        return wrong

    @cached_property
    def _view(self) -> View:
        return open_view(self.folder)

    @cached_property
    def _marks(self) -> dict[str, str]:
        """Name of a tar -> its content mark; nothing of foreign images, whose marks go with their place."""
        if not manifest.is_output(self._view.images):
            return {}
        found = inputs.shards(self._view.images, ".tar")
        return {storage.basename(s.input.url): s.input.fingerprint for s in found}


def _misplaced(shard: ViewShard) -> list[str]:
    """The first picture that is not in its place."""
    for place in range(len(shard)):
        try:
            shard.read(place)
        except InputError as error:
            return [str(error)]
    return []
