"""Compacting changes how manifests lie, and nothing of what they say, wherever it is killed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import commit, compacted, manifest, storage
from pipeline.compact import compact
from pipeline.errors import ConfigError, InputError
from pipeline.planning import make_plan
from pipeline.verify import verify
from tests.pipeline import folders
from tests.pipeline.object_store import s3_bucket
from tests.pipeline.toy_stage import ToyConfig, ToyStage


class Crash(BaseException):
    """Ends a compaction where it stands, as SIGKILL would."""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket("merged") as url:
        yield url


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (
        str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    )


NAMES = tuple("abcdefg")


@pytest.fixture(autouse=True)
def _thousands_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compacted, "THOUSAND", 3)


def stage(names: tuple[str, ...] = NAMES, factor: int = 2) -> ToyStage:
    return ToyStage(ToyConfig(names=names, factor=factor))


def told(folder: str) -> list[dict[str, Any]]:
    """What the manifests say, of all units."""
    return manifest.read_all(folder)


def shape(folder: str) -> tuple[int, int, int]:
    """How many loose manifests, marks and merged objects there are."""
    listing = manifest.list_folder(folder)
    return len(listing.loose), len(listing.void), sum(map(len, listing.compacted.values()))


def redo(folder: str, number: int, *, factor: int = 2) -> None:
    """Runs one unit again, as the runner does."""
    plan = make_plan(stage(factor=factor), folder, redo={number}, overwrite=True)
    for unit in plan.todo:
        commit.run_and_commit(stage(factor=factor), unit, folder, stale=plan.stale[unit.number])


def test_everything_sees_compacted_units_as_before(place: str) -> None:
    folders.run_here(stage(), place)
    before, done = told(place), manifest.list_done(place)
    result = compact(place)
    assert (result.merged, result.objects, result.damaged) == (7, 3, [])
    assert shape(place) == (0, 0, 3)
    assert told(place) == before
    assert [manifest.read(d) for d in manifest.list_done(place).values()] == before
    assert [(d.digest, d.content, d.url) for d in manifest.list_done(place).values()] == [
        (d.digest, d.content, d.url) for d in done.values()
    ]
    assert manifest.is_output(place)
    assert make_plan(stage(), place).todo == []
    assert verify(place).clean
    # again: nothing to do, nothing written
    names = storage.list_names(manifest.manifest_folder(place))
    assert compact(place).objects == 0
    assert storage.list_names(manifest.manifest_folder(place)) == names


def test_a_compacted_unit_is_redone_replaced_and_refused_as_any_other(place: str) -> None:
    folders.run_here(stage(), place)
    compact(place)
    with pytest.raises(ConfigError, match="factor 2 -> 3"):
        make_plan(stage(factor=3), place)
    redo(place, 4, factor=3)
    assert shape(place) == (1, 0, 3)
    assert [m["config"]["factor"] for m in told(place)] == [2, 2, 2, 2, 3, 2, 2]
    storage.remove(storage.join(place, "00000005.parquet"))
    assert [u.number for u in make_plan(stage(), place, overwrite=True).todo] == [4, 5]
    redo(place, 5)
    more = stage((*NAMES, "h"))
    plan = make_plan(more, place, overwrite=True)
    assert [u.number for u in plan.todo] == [4, 7]
    commit.run_and_commit(more, plan.todo[1], place)
    assert shape(place) == (3, 0, 3)
    before = told(place)
    assert (compact(place).merged, shape(place)) == (3, (0, 0, 3))
    assert told(place) == before
    assert verify(place).clean


STEPS = ("write_bytes", "remove", "move", "remove_folder")


def crash_at(step: int, monkeypatch: pytest.MonkeyPatch, action: Any) -> bool:
    """Does something and crashes before its n-th change of the storage; whether it got that far."""
    count = 0

    def counted(function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count > step:
                raise Crash
            return function(*args, **kwargs)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(compacted, "THREADS", 1)
        for name in STEPS:
            patch.setattr(storage, name, counted(getattr(storage, name)))
        try:
            action()
        except Crash:
            return True
    return False


def prepare(folder: str) -> list[dict[str, Any]]:
    """Seven units, five of them compacted, of which one was redone since and one is void."""
    folders.run_here(stage(NAMES[:5]), folder)
    compact(folder)
    folders.run_here(stage(), folder)
    redo(folder, 1, factor=3)
    [gone] = [d for d in manifest.list_manifests(folder) if d.number == 3]
    manifest.withdraw(folder, storage.basename(gone.url))
    assert shape(folder) == (3, 1, 2)
    return told(folder)


def test_a_crash_at_every_step_of_a_compaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(100):
        folder = str(tmp_path / str(step))
        before = prepare(folder)
        assert [m["unit"] for m in before] == [0, 1, 2, 4, 5, 6]
        crashed = crash_at(step, monkeypatch, lambda folder=folder: compact(folder))
        assert told(folder) == before, f"after a crash at step {step}"
        assert [m.number for m in manifest.list_manifests(folder)] == [0, 1, 2, 4, 5, 6]
        compact(folder)
        assert told(folder) == before
        assert shape(folder) == (0, 0, 3)
        if not crashed:
            break
    assert 6 < step < 99


def test_a_crash_at_every_step_of_a_redo_of_a_compacted_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never the old manifest over new parts; the next run, or a compaction, finishes the redo."""
    seen = []
    for step in range(100):
        folder = str(tmp_path / str(step))
        folders.run_here(stage(), folder)
        compact(folder)
        crashed = crash_at(step, monkeypatch, lambda folder=folder: redo(folder, 4, factor=3))
        for record in told(folder):
            for name, facts in record["files"].items():
                if not facts.get("volatile"):
                    found = storage.sha256_file(Path(folder) / name)
                    assert found == facts["sha256"], (step, name)
        for lock in Path(folder).glob("_pairmill/locks/*"):
            lock.unlink()  # the one who held it is dead
        compact(folder)
        assert len(told(folder)) == 7
        assert verify(folder).clean
        seen.append(told(folder)[4]["config"]["factor"])
        if not crashed:
            break
    assert seen == sorted(seen)
    assert {2, 3} == set(seen)


@pytest.mark.parametrize("moment", ["after listing", "after reading"])
def test_two_compactions_at_once_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The second one starts, and ends, within the first one; a unit is redone in between as well."""
    folder = str(tmp_path)
    units = [m["unit"] for m in prepare(folder)]
    module, name = (manifest, "standing_rows") if moment == "after listing" else (compacted, "encode")
    function = getattr(module, name)

    def interrupted(*args: Any) -> Any:
        encoded = function(*args) if name == "encode" else None
        monkeypatch.setattr(module, name, function)
        time.sleep(1.1)  # manifests say when they were made in whole seconds
        redo(folder, 0, factor=5)
        compact(folder)
        return encoded or function(*args)

    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(InputError, match="another compaction"):
        compact(folder)
    now = told(folder)
    assert [m["unit"] for m in now] == units
    assert [m["config"]["factor"] for m in now][:2] == [5, 3]
    compact(folder)
    assert told(folder) == now
    assert shape(folder) == (0, 0, 3)


def test_who_listed_before_a_compaction_reads_after_it(tmp_path: Path) -> None:
    folder = str(tmp_path)
    folders.run_here(stage(), folder)
    before, loose = told(folder), manifest.list_manifests(folder)
    compact(folder)
    assert [manifest.read(d) for d in loose] == before
    merged = manifest.list_manifests(folder)
    redo(folder, 4)
    compact(folder)
    compacted.read_manifests_cached.cache_clear()
    assert [manifest.read(d) for d in merged if d.number != 4] == [m for m in before if m["unit"] != 4]


def test_damaged_manifests_are_left_and_damaged_objects_refused(tmp_path: Path) -> None:
    folder = str(tmp_path)
    folders.run_here(stage(), folder)
    done = manifest.list_done(folder)
    Path(done[1].url).write_text("{")
    Path(done[2].url).write_bytes(Path(done[3].url).read_bytes())
    result = compact(folder)
    assert result.damaged == [done[1].url, done[2].url]
    assert shape(folder) == (2, 0, 3)
    assert [d.unit for d in verify(folder).damaged] == [1, 2]
    [url] = manifest.list_folder(folder).compacted[2]
    data = bytearray(Path(url).read_bytes())
    data[len(data) // 2] ^= 1
    Path(url).write_bytes(data)
    # its copy is used, and mends it
    assert len(manifest.list_done(folder)) == 7
    assert [text.split(":")[0] for text in verify(folder).indexes] == [Path(url).name]
    compacted.mend(url)
    assert verify(folder).indexes == []
    Path(url).unlink()
    assert (len(manifest.list_done(folder)), verify(folder).clean) == (6, False)
    assert compact(folder).objects == 0
    assert len(manifest.list_done(folder)) == 7
    copy = Path(compacted.copy_url(url))
    copy.write_bytes(bytes(data))
    assert [text.split(":")[0] for text in verify(folder).indexes] == [copy.name]
    Path(url).write_bytes(bytes(data))
    with pytest.raises(InputError, match="and so is the copy"):
        manifest.list_done(folder)
    with pytest.raises(InputError, match="and so is the copy"):
        compacted.mend(url)
    with pytest.raises(ConfigError, match="no manifests"):
        compact(str(tmp_path / "nothing"))


def test_one_unit_is_listed_as_all_are(place: str) -> None:
    def agree() -> None:
        every = manifest.list_manifests(place)
        for number in range(9):
            assert manifest.list_unit(place, number) == [d for d in every if d.number == number]

    folders.run_here(stage(), place)
    agree()
    compact(place)
    agree()
    redo(place, 1, factor=3)
    manifest.withdraw(place, storage.basename(manifest.list_done(place)[5].url))
    assert [d.number for d in manifest.list_manifests(place)] == [0, 1, 2, 3, 4, 6]
    agree()
