"""Scratch folders: gone with their block, and swept when their owner was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline import scratch

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, time
from pipeline import scratch
with scratch.folder() as folder:
    (folder / "half.tar").write_bytes(bytes(1000))
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _own_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_folder_is_gone_with_its_block(tmp_path: Path) -> None:
    def fill() -> None:
        with scratch.folder() as folder:
            assert not list(folder.iterdir())
            (folder / "x").mkdir()
            raise KeyError

    with pytest.raises(KeyError):
        fill()
    assert not list(tmp_path.iterdir())


def test_what_killed_owners_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "pairmill-bench-1").mkdir()  # begins alike, and is not ours to judge
    with subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().decode().strip())
        with scratch.folder() as mine:
            assert scratch.sweep() == 0
            assert (left / "half.tar").exists()
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert scratch.sweep() == 1
            assert mine.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["pairmill-bench-1"]


def test_a_folder_that_goes_while_another_process_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([tmp_path / f"{scratch.PREFIX}gone"]))
    assert scratch.sweep() == 0
