"""Web archives to candidates: one archive becomes one table of picture URLs and alt texts.

    pairmill discover --input 'crawl/*.warc.gz' --output candidates --rules laion5b

Reads WARC (the HTML of `response` records) and WAT (the JSON of `metadata` records). Each picture link that a
page holds is a candidate or is dropped for a reason:

* `no_url`: the tag says no address at all.
* `no_alt`: no alt text, or nothing left of it.
* `not_http` (data:, javascript:, ftp:), `bad_url`: no address that could be fetched. Relative ones are joined
  to the page's base before they are judged.
* `blocked_domain`: its host, or the page's where that is asked for, is on a block list.
* the reasons of the preset's rules that need no picture (`pipeline.rules`).
* `duplicate_in_page`: the page has the same URL with the same text already.
* `too_many_links`: it stands behind the first 20,000 pictures of its page.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import rules
from pipeline.errors import ConfigError, InputError
from pipeline.settings import location, operational, since
from pipeline.stage import Input, Output, Stage, Unit, append_units
from pipeline.stages.discover import blocked
from pipeline.stages.discover.archive import read_records
from pipeline.stages.discover.candidates import Candidates
from pipeline.stages.discover.sources import COMMON_CRAWL, archives
from pipeline.stages.discover.streams import ReadConfig, open_stream

#: new containers; the default is 700
COLLECT_AFTER = 200_000


@dataclass(frozen=True, kw_only=True)
class DiscoverConfig:
    """What discover reads and which rules it applies.

    Attributes:
        input: WARC or WAT archives, plain or gzip: paths, globs or URLs of any fsspec kind; or lists of them
            (`wat.paths.gz` and the like), a path a line.
        base_url: what the paths of such lists are relative to: a URL or a folder.
        rules: the preset whose rules are applied that need no picture: none, laion400m, laion5b, coyo
            or another of docs/presets.md.
        block_domains: lists of domains whose pictures are dropped, a domain a line, `#` comments, text or
            gzip; subdomains are meant too. Their content counts as an option that changes the output.
        block_pages: drop also the pictures that stand on pages of these domains.
        reading: how patiently remote archives are read.
    """

    input: list[str] | str = location(factory=list)
    base_url: str = location(COMMON_CRAWL)
    rules: str = "laion5b"
    block_domains: list[str] | str = location(factory=list)
    block_pages: bool = since(False)
    reading: ReadConfig = operational(factory=ReadConfig)


class DiscoverStage(Stage):
    """One unit is one archive; new archives are appended, and the old ones keep their numbers."""

    name = "discover"
    version = 2
    prefix = "part-"

    def __init__(self, config: DiscoverConfig) -> None:
        """Raises ConfigError when no input is named, the preset is unknown, or an option has no effect."""
        if not config.input:
            raise ConfigError(
                "discover has no input; give --input 'path/to/*.warc.gz' (paths, globs, URLs, wat.paths.gz)"
            )
        if config.block_pages and not config.block_domains:
            raise ConfigError(
                "block_pages says where a block list counts, but there is none; add --block_domains"
            )
        if config.reading.attempts < 1:
            raise ConfigError(f"reading.attempts {config.reading.attempts} must be at least 1")
        self.config = config
        self._preset = rules.get_preset(config.rules)
        self._blocked: dict[tuple[Input, ...], blocked.BlockedDomains] = {}

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        lists = self.config.block_domains
        marks = blocked.as_inputs([lists] if isinstance(lists, str) else lists)
        found = archives(self.config.input, self.config.base_url, self.config.reading)
        return append_units(planned, [({"archive": name}, (mark, *marks)) for name, mark in found])

    def start(self) -> None:
        """Lets the cycle collector run rarely: among texts it takes a tenth of the time and finds nothing."""
        gc.set_threshold(COLLECT_AFTER)

    def run(self, unit: Unit, scratch: Path) -> Output:
        """Raises InputError when the archive is missing, empty, no archive, damaged or cut off."""
        url, name = unit.inputs[0].url, unit.source["archive"]
        found = Candidates(
            name, self._preset, blocked=self._blocked_by(unit.inputs[1:]), block_pages=self.config.block_pages
        )
        try:
            with open_stream(url, self.config.reading) as stream:
                for record in read_records(stream, name):
                    found.add_record(record)
        except FileNotFoundError as error:
            raise InputError(f"archive {name}: {url} is not there any more; mend --input") from error
        return Output(parts={".parquet": found.table()}, counts=found.counts, notes=found.notes())

    def _blocked_by(self, lists: tuple[Input, ...]) -> blocked.BlockedDomains:
        """The block lists of a unit, read once a worker.

        Raises:
            InputError: a list was changed since the run was planned.
        """
        if lists not in self._blocked:
            domains: set[str] = set()
            for one in lists:
                read = blocked.read_domains(one.url)
                if blocked.fingerprint(read) != one.fingerprint:
                    raise InputError(f"block list {one.url} was changed since the run began; run again")
                domains |= read
            self._blocked[lists] = blocked.BlockedDomains(domains)
        return self._blocked[lists]
