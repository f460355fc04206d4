"""Proofs: each kind of fault with fixed seeds, 3 in CI, 20 in `make prove`, and their figures at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline import session
from pipeline.runner import run_stage
from pipeline.runner_options import RunOptions
from tests.prove.checks import Damage
from tests.prove.web import serving_apart
from tests.prove.world import STAGES, World, make_model, write_archives

CI_SEEDS, ALL_SEEDS = 3, 20


@dataclass
class Line:
    """One line of the table: a proof, and what all its runs came to."""

    runs: int = 0
    seconds: float = 0.0
    damage: Damage = field(default_factory=Damage)


_table: dict[str, Line] = {}


@dataclass
class Figures:
    """Collects what the runs of a proof came to."""

    def note(self, proof: str, damage: Damage, seconds: float, *, runs: int = 1) -> None:
        line = _table.setdefault(proof, Line())
        line.runs += runs
        line.seconds += seconds
        line.damage.add(damage)


@pytest.fixture
def figures() -> Figures:
    return Figures()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes a `seed` runs once for each; CI has the first ones."""
    if "seed" in metafunc.fixturenames:
        seeds = [
            pytest.param(n, marks=[pytest.mark.prove_ci] if n < CI_SEEDS else []) for n in range(ALL_SEEDS)
        ]
        metafunc.parametrize("seed", seeds)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _table:
        return
    head = ("proof", "runs", "lost", "duplicated", "unreadable", "differing", "left over", "seconds")
    rows = [head]
    for name, line in _table.items():
        d = line.damage
        numbers = (line.runs, d.lost, d.duplicated, d.unreadable, d.differing, d.left, round(line.seconds))
        rows.append((name, *map(str, numbers)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    terminalreporter.write_sep("=", "what the proofs came to")
    for row in rows:
        cells = [
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        terminalreporter.write_line("  ".join(cells))


@pytest.fixture(scope="session")
def one_ray() -> Iterator[None]:
    """One Ray for all proofs that do not need their own: its start takes longer than they do."""
    with session.shared_session():
        yield


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, one_ray: None) -> Iterator[World]:
    """The world with every stage done in peace."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with serving_apart() as port:
        world = World(root=str(folder), port=port, model=make_model(folder / "clip"))
        write_archives(world)
        for name in STAGES:
            assert run_stage(world.stage(name), world.place(name), RunOptions(workers=2)).exit_code == 0
        yield world


@pytest.fixture
def clock() -> float:
    """When the test began."""
    return time.monotonic()


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "output")
