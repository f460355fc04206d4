"""A SLURM that only notes what it is told, and a chain over two shards."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import cli, remaining
from jobs.chain import load_chain
from tests.jobs.submitting.chains import NAMES, STEPS, Write
from tests.pipeline.folders import crawled, make_images, run_here
from tests.slurm.fake import FakeSlurm, install


@pytest.fixture(scope="module", autouse=True)
def quick_parsers() -> Iterator[None]:
    """Building a parser takes most of the time that a chain takes to be read; here each is built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "build_parser", functools.lru_cache(cli.build_parser))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images` of two shards, and beside them what dedup and pack make of these."""
    folder = tmp_path_factory.mktemp("made")
    make_images(folder / "images", {n: [crawled(n, i) for i in range(2)] for n in range(2)})
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump({"root": str(folder), "steps": {n: STEPS[n] for n in ("dedup", "pack")}}))
    for step in load_chain(str(path)):
        for stage, place in remaining.stages_of(step):
            run_here(stage, place)
        Path(step.output).rename(folder / step.name)
        Path(step.output).symlink_to(folder / step.name)
    return folder


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return install(tmp_path / "fake", monkeypatch)


@pytest.fixture
def write(made: Path, tmp_path: Path) -> Write:
    """Writes a chain of some of STEPS over the images, and returns its path."""
    root = tmp_path / "root"
    shutil.copytree(made / "images", root / "images")

    def write_chain(steps: list[str] | None = None, slurm: Any = None, **changes: dict[str, Any]) -> str:
        chosen = {name: {**STEPS.get(name, {}), **changes.get(name, {})} for name in steps or NAMES}
        path = root / "chain.yaml"
        document = {"root": str(root), "steps": chosen, **({"slurm": slurm} if slurm is not None else {})}
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return str(path)

    return write_chain


@pytest.fixture
def run_step(made: Path) -> Callable[[str, str], None]:
    """What the job of dedup or pack would do."""

    def run(chain: str, name: str) -> None:
        (step,) = (s for s in load_chain(chain) if s.name == name)
        shutil.copytree(made / name, step.output)

    return run
