"""A column is made again alone: nothing else of the chain is touched, nothing beside it is redone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import session
from pipeline.runner import run_stage
from pipeline.runner_options import RunOptions
from pipeline.stage import Stage
from pipeline.stages.dedup import DedupConfig, dedup_stages
from pipeline.stages.pack import PackConfig, pack_stages
from pipeline.stages.score import ScoreConfig, ScoreStage
from tests.pipeline.folders import crawled, make_images


@pytest.fixture(scope="module", autouse=True)
def _one_ray() -> Iterator[None]:
    with session.shared_session():
        yield


def chain(root: Path, where: str | None = None) -> dict[str, list[tuple[Stage, str]]]:
    images, columns = str(root / "images"), root / "columns"
    score = {
        kind: [(ScoreStage(ScoreConfig(input=images, kind=kind)), str(columns / kind))]
        for kind in ("language", "hash")
    }
    near = DedupConfig(input=images, method="near", columns=[str(columns / "hash")])
    pack = PackConfig(input=images, columns=(str(columns / "near"),), where="near_duplicate_of IS NULL")
    return {
        **score,
        "quality": [
            (ScoreStage(ScoreConfig(input=images, kind="quality", where=where)), str(columns / "quality"))
        ],
        "near": dedup_stages(near, str(columns / "near")),
        "pack": pack_stages(pack, str(root / "shards")),
    }


def run(stages: list[tuple[Stage, str]], *, overwrite: bool = False) -> None:
    for stage, output in stages:
        assert run_stage(stage, output, RunOptions(workers=1, overwrite=overwrite)).exit_code == 0


def times(root: Path) -> dict[str, int]:
    return {
        str(p.relative_to(root)): p.stat().st_mtime_ns
        for p in sorted(root.rglob("*"))
        if p.is_file() and p.name != "config.yaml"
    }


def test_one_score_is_made_again_alone(tmp_path: Path) -> None:
    make_images(tmp_path / "images", {n: [crawled(n, i) for i in range(3)] for n in range(2)})
    for stages in chain(tmp_path).values():
        run(stages)
    before = times(tmp_path)
    changed = chain(tmp_path, "width > 10")
    run(changed["quality"], overwrite=True)
    after = times(tmp_path)
    touched = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert touched
    assert all(name.startswith("columns/quality/") for name in touched), touched
    for name in ("language", "hash", "near", "pack"):  # and the rest has nothing to do
        run(changed[name])
    assert {k: v for k, v in times(tmp_path).items() if k in after} == after
