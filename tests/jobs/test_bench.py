"""The benchmark's own instruments: what they count, and that both sides get the same work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobs.bench import main
from jobs.bench.measure import Cost, marginal, measure
from jobs.bench.pictures import MIX, make_pictures
from jobs.cli import main as command
from pipeline.stages.crawl.images import read_header

#: burns half a second of CPU in a grandchild that nobody waits for
_ORPHAN = """
import subprocess, sys
burn = "import time; b = bytearray(80 << 20)\\nwhile time.process_time() < 0.6: pass"
subprocess.Popen([sys.executable, "-c", burn], start_new_session=True)
"""


def test_the_time_and_memory_of_an_orphan_are_counted() -> None:
    cost = measure([sys.executable, "-c", _ORPHAN])
    assert 0.5 < cost.cpu < 2.0
    assert cost.process > 80 << 20
    idle = measure([sys.executable, "-c", "import time; time.sleep(0.5)"])
    assert idle.cpu < 0.4


def test_a_command_that_fails_is_an_error_with_its_output() -> None:
    with pytest.raises(RuntimeError, match="no luck"):
        measure([sys.executable, "-c", "import sys; sys.exit('no luck')"])


def test_marginal_cost_leaves_the_start_out() -> None:
    def costs(*seconds: float) -> list[Cost]:
        return [Cost(cpu=s, process=0, tree=0) for s in seconds]

    assert marginal(costs(5.0, 5.1, 9.0), costs(7.0, 7.1, 7.2), 1000) == pytest.approx(0.002)


def test_pictures_are_the_mix_and_the_same_every_time() -> None:
    pictures = make_pictures("640x480")
    assert pictures == make_pictures("640x480")
    assert len(set(pictures)) == 8
    header = read_header(pictures[0])
    assert header is not None
    assert (header.format, header.width, header.height) == ("jpeg", 640, 480)
    assert sum(e.share for e in MIX) == 100


def test_unknown_benchmarks_and_sizes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["bench", "nothing"]) == 2
    assert "crawl, discover" in capsys.readouterr().err
    assert command(["bench", "crawl", "--sizes", "10", "5"]) == 2
    assert command(["bench", "crawl", "--only", "1x1"]) == 2
    assert main([]) == 0


@pytest.mark.prove
def test_bench_crawl_runs_both_sides(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "environments")
    assert command(["bench", "crawl", "--sizes", "20", "60", "--repeat", "1", "--environments", folder]) == 0
    text = capfd.readouterr().out
    assert "img2dataset / pairmill" in text
    assert text.count("all processes, MB") == 2
