"""Web archives to candidates: one archive becomes one table of picture URLs and alt texts.

    pairmill discover --input 'crawl/*.warc.gz' --output candidates --rules laion5b

Reads WARC (the HTML of `response` records) and WAT (the JSON of `metadata` records). Each picture link that a
page holds is a candidate or is dropped for a reason:

* `no_url`: the tag says no address at all.
* `no_alt`: no alt text, or nothing left of it.
* `not_http` (data:, javascript:, ftp:), `bad_url`: no address that could be fetched. Relative ones are joined
  to the page's base before they are judged.
* the reasons of the preset's rules that need no picture (`pipeline.rules`).
* `duplicate_in_page`: the page has the same URL with the same text already.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import inputs, rules, storage
from pipeline.errors import ConfigError, InputError
from pipeline.settings import location
from pipeline.stage import Input, Output, Stage, Unit, append_units
from pipeline.stages.discover.archive import read_records
from pipeline.stages.discover.candidates import Candidates

#: new containers; the default is 700
COLLECT_AFTER = 200_000


@dataclass(frozen=True, kw_only=True)
class DiscoverConfig:
    """What discover reads and which rules it applies.

    Attributes:
        input: WARC or WAT archives, plain or gzip: paths, globs or URLs of any fsspec kind.
        rules: the preset whose rules are applied that need no picture: none, laion400m, laion5b, coyo,
            datacomp-basic.
    """

    input: list[str] | str = location(factory=list)
    rules: str = "laion5b"


class DiscoverStage(Stage):
    """One unit is one archive; new archives are appended, and the old ones keep their numbers."""

    name = "discover"
    prefix = "part-"

    def __init__(self, config: DiscoverConfig) -> None:
        """Raises ConfigError when no input is named or the preset is unknown."""
        if not config.input:
            raise ConfigError(
                "discover has no input; give --input 'path/to/*.warc.gz' (paths, globs or URLs)"
            )
        self.config = config
        rules.get_preset(config.rules)

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        pieces = []
        for name, info in inputs.files(self.config.input):
            mark = Input(url=info.url, fingerprint=inputs.file_fingerprint(info))
            pieces.append(({"archive": name}, (mark,)))
        return append_units(planned, pieces)

    def start(self) -> None:
        """Lets the cycle collector run rarely: among texts it takes a tenth of the time and finds nothing."""
        gc.set_threshold(COLLECT_AFTER)

    def run(self, unit: Unit, scratch: Path) -> Output:
        """Raises InputError when the archive is missing, empty, no archive, damaged or cut off."""
        url, name = unit.inputs[0].url, unit.source["archive"]
        found = Candidates(name, rules.get_preset(self.config.rules))
        try:
            with storage.open_read(url) as stream:
                for record in read_records(stream, name):
                    found.add_record(record)
        except FileNotFoundError as error:
            raise InputError(f"archive {name}: {url} is not there any more; mend --input") from error
        return Output(parts={".parquet": found.table()}, counts=found.counts, notes=dict(found.notes))
