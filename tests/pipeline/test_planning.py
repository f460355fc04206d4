"""Planning many units: what is shared is computed once, and the time grows with the units and no faster."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import manifest, storage
from pipeline.compact import compact
from pipeline.errors import ConfigError
from pipeline.planning import make_plan
from pipeline.shards.format import shard_name
from pipeline.stage import Counts, Input, Unit, append_units, digester
from pipeline.stages.crawl import sources
from pipeline.stages.crawl.config import CrawlConfig
from pipeline.stages.crawl.stage import CrawlStage
from tests.pipeline.toy_stage import ToyConfig, ToyStage

_JSON = st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=8), max_size=4)


@given(source=_JSON, marks=st.lists(st.text(max_size=12), max_size=3))
def test_digests_of_many_are_those_of_one(source: dict, marks: list[str]) -> None:
    unit = Unit(number=1, source=source, inputs=tuple(Input(url="", fingerprint=m) for m in marks))
    for stage in (ToyStage(ToyConfig()), CrawlStage(CrawlConfig(input="x"))):
        assert digester(stage)(unit) == unit.digest(stage)


class Many(ToyStage):
    """So many units with the config of a crawl, whose fields are many."""

    def __init__(self, count: int) -> None:
        self.config = CrawlConfig(input="x")  # type: ignore[assignment]
        self.count = count

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        pieces = [
            (
                {"file": f"part-{n:08d}.parquet", "rows": [0, 10_000]},
                (Input(url=f"{n}", fingerprint=f"{n:012x}"),),
            )
            for n in range(self.count)
        ]
        return append_units(planned, pieces)


def records(stage: Many) -> list[tuple[str, dict]]:
    """(name, manifest) of every unit, as a finished run leaves them."""
    digest = digester(stage)
    made = []
    for unit in stage.plan([]):
        stem = shard_name(unit.number)
        files = {f"{stem}{s}": {"sha256": f"{unit.number:064x}", "size": 1} for s in stage.suffixes}
        record = {
            "stage": stage.name, "version": stage.version, "unit": unit.number, "digest": digest(unit),
            "config": {}, "source": dict(unit.source), "inputs": [], "counts": Counts(1, 1).to_json(),
            "notes": {}, "seconds": 1.0, "finished": "2026-01-01T00:00:00Z", "host": "x", "files": files,
        }  # fmt: skip
        made.append((f"{stem}.{record['digest']}-{manifest.content_mark(files)}.json", record))
    return made


def fill(folder: Path, stage: Many) -> None:
    """Lays a finished folder down without running anything: empty parts, whole manifests."""
    books = folder / "_pairmill/manifests"
    books.mkdir(parents=True)
    for name, record in records(stage):
        (books / name).write_text(json.dumps(record))
        for part in record["files"]:
            (folder / part).touch()
    manifest.write_units(str(folder), stage.plan([]))


def seconds_of_plan(folder: Path, stage: Many) -> float:
    """CPU seconds of planning a finished folder."""
    began = time.process_time()
    plan = make_plan(stage, str(folder))
    assert (plan.todo, plan.done) == ([], stage.count)
    return time.process_time() - began


MEMORY = """
import sys
from pathlib import Path
from pipeline.planning import make_plan
from tests.pipeline.test_planning import Many
def peak():  # of this process alone; that of getrusage begins with its parent's
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
stage = Many(int(sys.argv[2]))
before = peak()
assert make_plan(stage, sys.argv[1]).todo == []
print((peak() - before) // 1024)
"""


def mebibytes_of_plan(folder: Path, stage: Many) -> int:
    """Peak memory of planning a finished folder, in a process of its own."""
    command = [sys.executable, "-c", MEMORY, str(folder), str(stage.count)]
    return int(subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2]).stdout)


def test_two_thousand_units_loose_and_compacted(tmp_path: Path) -> None:
    stage = Many(2_500)
    fill(tmp_path, stage)
    before = manifest.list_manifests(str(tmp_path))
    assert seconds_of_plan(tmp_path, stage) < 5
    assert compact(str(tmp_path)).merged == 2_500
    assert len(storage.list_names(manifest.manifest_folder(str(tmp_path)))) == 6
    assert seconds_of_plan(tmp_path, stage) < 5
    after = manifest.list_manifests(str(tmp_path))
    assert [(d.number, d.digest, d.content, d.url) for d in after] == [
        (d.number, d.digest, d.content, d.url) for d in before
    ]
    grown = Many(2_501)
    assert [u.number for u in make_plan(grown, str(tmp_path)).todo] == [2_500]


@pytest.mark.prove
@pytest.mark.prove_ci
def test_a_hundred_thousand_units(tmp_path: Path) -> None:
    """Planning grows as the units do (10 times the units, at most 15 times the time), takes seconds, and
    little memory; compacted, no longer."""
    small, large = Many(10_000), Many(100_000)
    fill(tmp_path / "small", small)
    fill(tmp_path / "large", large)
    quick = min(seconds_of_plan(tmp_path / "small", small) for _ in range(3))
    slow = min(seconds_of_plan(tmp_path / "large", large) for _ in range(2))
    memory = mebibytes_of_plan(tmp_path / "large", large)
    compact(str(tmp_path / "large"))
    merged = min(seconds_of_plan(tmp_path / "large", large) for _ in range(2))
    memory = max(memory, mebibytes_of_plan(tmp_path / "large", large))
    print(
        f"\nplanning: 10,000 units {quick:.2f} s, 100,000 units {slow:.2f} s and {memory:.0f} MiB, "
        f"compacted {merged:.2f} s"
    )
    assert slow <= 15 * quick
    assert slow < 15
    assert merged < 15
    assert 10 < memory < 500


def test_a_planned_crawl_does_not_count_its_lists_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        (tmp_path / f"{n}.csv").write_text("url,caption\n" + f"http://site.example/{n}.jpg,text\n" * 5)
    config = CrawlConfig(input=f"{tmp_path}/*.csv", shard_size=2)
    output = str(tmp_path / "out")
    before = make_plan(CrawlStage(config), output).units
    assert len(before) == 9
    opened = []
    count = sources._count
    monkeypatch.setattr(sources, "_count", lambda file, c: opened.append(file.name) or count(file, c))
    assert make_plan(CrawlStage(config), output).units == before
    assert opened == ["0.csv"]
    # a list that has changed is counted, and its rows are not those that were planned
    (tmp_path / "2.csv").write_text("url,caption\nhttp://site.example/2.jpg,text\n")
    with pytest.raises(ConfigError, match="which the input no longer has"):
        make_plan(CrawlStage(config), output)
    assert opened[1:] == ["0.csv", "2.csv"]
