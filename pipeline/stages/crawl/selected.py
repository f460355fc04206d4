"""Which candidates are fetched: column folders joined to them, and a predicate over the columns of both.

    pairmill crawl --input candidates --with_columns '[columns/candidates-dedup, columns/language]' \
                   --where "duplicate_of IS NULL AND language = 'en'" --output images

A candidate that is not selected keeps its row and its key in `images/`, with `not_selected` as its reason
(`not_selected_null` where the predicate is null), and nothing is asked of the web. The sidecars' columns are
carried along like the candidates' own, so a language that was detected before the crawl is there for pack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline import candidates, columns
from pipeline.errors import ConfigError
from pipeline.predicate import NOT_SELECTED, Predicate
from pipeline.stage import Unit
from pipeline.stages.crawl.config import CrawlConfig

if TYPE_CHECKING:
    from pipeline.stages.crawl.sources import ListFile

#: what dedup writes: keys of candidates, which mean nothing among the keys of images; and dedup of the images
#: has columns of these names
NOT_CARRIED = ("duplicate_of", "duplicate_reason")


def add_sidecars(files: Sequence[ListFile], config: CrawlConfig) -> list[ListFile]:
    """The parts of a candidates folder, each with its sidecars among its inputs.

    Raises:
        ConfigError: the input is no candidates folder, a column folder lacks one of its parts, or the
            predicate cannot be asked of these columns.
    """
    folders = columns.open_folders(config.with_columns)
    found = []
    for file in files:
        if file.part is None:
            raise ConfigError(
                f"with_columns and where go with one candidates folder, whose rows have keys by their place; "
                f"{file.name!r} is a list of its own: leave them away, and say in pack what is kept"
            )
        sidecars = tuple(folder.shard(file.part) for folder in folders)
        found.append(dataclasses.replace(file, inputs=(*file.inputs, *sidecars)))
    urls = [i.url for i in found[0].inputs]
    schema = candidates.joined_schema(urls[0], urls[1:])
    if config.where is not None:
        Predicate(config.where).check(schema)
    return found


class Selected:
    """Joins pieces of candidates with their sidecars; used by one thread."""

    def __init__(self, config: CrawlConfig) -> None:
        """Raises ConfigError for a predicate that is not one expression."""
        self.config = config
        self.where = Predicate(config.where) if config.where is not None else None
        self._part: tuple[tuple[str, ...], list[pa.Table]] = ((), [])

    def join(self, unit: Unit, table: pa.Table) -> tuple[pa.Table, list[str | None]]:
        """The rows of a unit with what is carried along of their sidecars, and why each is not to be fetched;
        an empty list where all are.

        Raises:
            InputError: a sidecar is missing, damaged or was made from other candidates.
        """
        if not self.config.selects():
            return table, []
        part, (start, stop) = candidates.part_number(unit.source["file"]), unit.source["rows"]
        urls = tuple(i.url for i in unit.inputs[1:])
        sidecars = [
            candidates.same_rows(sidecar, part, start, stop, url).combine_chunks()
            for url, sidecar in zip(urls, self._read(urls), strict=True)
        ]
        refused: list[str | None] = []
        if self.where is not None:
            rows = candidates.with_keys(columns.normalise(table), part, start)
            joined = columns.join(rows, zip(urls, sidecars, strict=True))
            refused = self.where.refusals(joined, NOT_SELECTED).to_pylist()
        for sidecar in sidecars:
            for name in sidecar.column_names:
                if name != "key" and name not in NOT_CARRIED:
                    table = table.append_column(name, sidecar[name])
        return table, refused

    def _read(self, urls: tuple[str, ...]) -> list[pa.Table]:
        """The sidecars of one part; kept, since its pieces follow each other."""
        if self._part[0] != urls:
            self._part = (urls, [columns.read_column(url) for url in urls])
        return self._part[1]
