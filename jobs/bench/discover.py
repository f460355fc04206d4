"""CPU of a thousand WAT records: `pairmill discover` beside cc2dataset, on the same file, in turn.

    pairmill bench discover
    pairmill bench discover --pages 8000 --repeats 7 --folder wat-files

A WAT is made up in the proportions of Common Crawl's (`jobs.bench.webarchive`), in two sizes. Each side
reads a file in a process of its own, from the compressed bytes to its rows in memory: cc2dataset by
`process_wat`, which Spark calls for every file, and ours by the stage's `run`, which Ray calls. Neither
writes its rows nor looks at languages; both leave out links without text and addresses that are not http.
cc2dataset also takes an md5 of every pair (it de-duplicates by it later); ours also cleans the texts, checks
the addresses and leaves out duplicates in a page. What is reported is the marginal CPU between the two
sizes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.bench import environment
from jobs.bench.measure import Cost, marginal, measure
from jobs.bench.webarchive import make
from pipeline.errors import ConfigError

PEER = "cc2dataset==1.5.0"
#: what runs in the environment of the peer
_PEER_CODE = """
import json, sys
from loguru import logger
from cc2dataset.main import process_wat
logger.remove()
print(json.dumps({"rows": sum(1 for _ in process_wat(sys.argv[1], "image"))}))
"""
#: fewer take less time than the samples of it can tell
MIN_PAGES = 600
#: what both sides have to do before any work of their own
_FLOOR_CODE = """
import json, sys
from fastwarc.warc import ArchiveIterator
with open(sys.argv[1], "rb") as stream:
    found = (b'"IMG@' in record.reader.read() for record in ArchiveIterator(stream, parse_http=False))
    print(json.dumps({"rows": sum(found)}))
"""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One thing that is measured: its name, and its command but for the file at its end."""

    name: str
    command: tuple[str, ...]

    def rows(self, path: Path) -> dict[str, int]:
        """What it says of a file: its last line of output."""
        done = subprocess.run(
            [*self.command, str(path)], capture_output=True, text=True, check=False, cwd=_HOME
        )
        if done.returncode:
            raise RuntimeError(f"{self.name} failed:\n{done.stderr[-3000:]}")
        return dict(json.loads(done.stdout.splitlines()[-1]))


_HOME = Path(__file__).resolve().parents[2]


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns 0."""
    known = _parse(argv)
    with tempfile.TemporaryDirectory(prefix="pairmill-bench-") as scratch:
        folder = Path(known.folder or scratch).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        return _run(folder, known.pages, known.repeats, known.seed, known.environments / "cc2dataset")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pairmill bench discover", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--pages", type=int, default=6000, help="pages of the large file; a third in the small"
    )
    parser.add_argument("--repeats", type=int, default=5, help="how often each side reads each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="keep the WAT files here instead of a temporary folder")
    parser.add_argument(
        "--environments", type=Path, default=environment.FOLDER, help="folder for the peer's environment"
    )
    known = parser.parse_args(list(argv))
    if known.pages < MIN_PAGES or known.repeats < 1:
        raise ConfigError(
            f"--pages {known.pages} must be {MIN_PAGES} or more, --repeats {known.repeats} 1 or more"
        )
    return known


def _run(folder: Path, pages: int, repeats: int, seed: int, home: Path) -> int:
    peer = environment.ensure(home, [PEER])
    small, large = folder / "small.warc.wat.gz", folder / "large.warc.wat.gz"
    make(small, pages // 3, seed=seed)
    facts = make(large, pages, seed=seed)
    records = len(facts.pages) + len(facts.others) - 3 * (pages // 3)
    print(facts.describe(large.stat().st_size), flush=True)
    sides = (
        Side(
            name=f"cc2dataset {environment.version(peer, 'cc2dataset')}",
            command=(str(peer), "-c", _PEER_CODE),
        ),
        Side(name="pairmill", command=(sys.executable, "-m", "jobs.bench.discover_run")),
        Side(name="floor: inflate, iterate, byte test", command=(sys.executable, "-c", _FLOOR_CODE)),
    )
    print(
        f"\nFastWARC {environment.version(Path(sys.executable), 'fastwarc')} here, "
        f"{environment.version(peer, 'fastwarc')} there; {repeats} repetitions in turn, two sizes"
    )
    costs: dict[tuple[str, Path], list[Cost]] = {}
    for _ in range(repeats):
        for side in sides:
            for path in (small, large):
                costs.setdefault((side.name, path), []).append(measure([*side.command, str(path)]))
    first = 0.0
    print(f"\n{'':36}  ms CPU / 1000 records   times less CPU   peak MB   of the large file")
    for side in sides:
        each = 1e6 * marginal(costs[side.name, small], costs[side.name, large], records)
        first = first or each
        peak = max(cost.process for cost in costs[side.name, large]) / 1e6
        found = ", ".join(f"{count:,} {what}" for what, count in side.rows(large).items())
        print(f"{side.name:36}  {each:21.1f}   {first / each:14.2f}   {peak:7.0f}   {found}")
    return 0
