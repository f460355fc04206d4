"""The million-row benchmark in small: its world says truly what is planted, and a wrong mark is seen."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.bench import rows, rows_folders, rows_world
from jobs.bench.measure import Cost
from jobs.bench.rows import check
from jobs.bench.rows_folders import make_folders
from jobs.bench.rows_world import FILE, MEANING, NEAR, ORIGINAL, PAIR, World
from jobs.cli import main as command
from pipeline.stages.dedup import DedupConfig, dedup_stages
from pipeline.stages.dedup.semantic.config import SemanticOptions
from tests.pipeline.folders import run_here

WORLD = World(rows=1200, seed=3)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_world, "ROWS_PER_SHARD", 300)
        patch.setattr(rows_folders, "ROWS_PER_SHARD", 300)
        return make_folders(str(tmp_path_factory.mktemp("rows")), WORLD, 32)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rows, rows_folders, rows_world):
        monkeypatch.setattr(module, "ROWS_PER_SHARD", 300)


def _table(folder: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(p) for p in sorted(Path(folder).glob("*.parquet"))])


def test_what_is_planted_stands_in_the_tables(places: dict[str, str]) -> None:
    images = _table(places["images"])
    assert len(images) == 1200
    good = [row for row in images.to_pylist() if row["status"] == "success"]
    assert len(good) == WORLD.successes()
    pairs = Counter((row["url"], row["caption"]) for row in good)
    assert sum(n - 1 for n in pairs.values()) == WORLD.repeated((ORIGINAL, PAIR))
    files = Counter(row["sha256"] for row in good)
    assert sum(n - 1 for n in files.values()) == WORLD.repeated((ORIGINAL, PAIR, FILE)) > 60
    hashes = _table(places["hash"])
    assert hashes["key"].to_pylist() == [row["key"] for row in good]
    data = b"".join(bytes.fromhex(text) for text in hashes["phash_long"].to_pylist())
    bits = np.unpackbits(np.frombuffer(data, np.uint8)).reshape(-1, 256).astype(np.float32)
    apart = bits @ (1 - bits).T + (1 - bits) @ bits.T
    number = np.flatnonzero(WORLD.fetched(np.arange(1200)))
    kinds, roots = WORLD.kinds(number), WORLD.roots(number)
    same = (roots[:, None] == roots[None]) & ~(np.isin(kinds, [MEANING])[:, None] | (kinds == MEANING)[None])
    np.fill_diagonal(same, True)
    assert apart[same].max() <= 2 * rows_world.NEAR_BITS
    assert apart[~same].min() > 60
    vectors = np.stack(_table(places["embedding"])["image_embedding"].to_pylist()).astype(np.float32)
    cosines = vectors @ vectors.T
    assert cosines[roots[:, None] != roots[None]].max() < 0.9
    original = {int(n): at for at, n in enumerate(number) if kinds[at] == ORIGINAL}
    for kind, cosine in ((FILE, 1.0), (NEAR, 0.99), (MEANING, 0.97)):
        found = [
            cosines[at, original[r]] for at, r in enumerate(roots) if kinds[at] == kind and int(r) in original
        ]
        assert np.allclose(found, cosine, atol=2e-3)


def test_every_planted_duplicate_is_found_and_nothing_else(places: dict[str, str], tmp_path: Path) -> None:
    exact = DedupConfig(input=places["images"], buckets=3)
    semantic = DedupConfig(
        input=places["images"],
        method="semantic",
        columns=[places["embedding"]],
        buckets=3,
        semantic=SemanticOptions(clusters=1),  # one cluster misses nothing
    )
    for name, config in (("exact", exact), ("semantic", semantic)):
        step, output = rows.STEPS[name], str(tmp_path / name)
        for stage, folder in dedup_stages(config, output):
            run_here(stage, folder)
        found = check(output, step.column, WORLD, step.kinds)
        assert found["marked"] == found["planted"] > 50
        assert found["wrong"] == 0
    # marks that do not belong to the kinds asked for, or that name another original, are seen
    kinds = (ORIGINAL, PAIR)
    exact_marks = str(tmp_path / "exact")
    assert check(exact_marks, "duplicate_of", WORLD, kinds)["wrong"] > 20
    path = Path(exact_marks) / "00000003.parquet"
    table = pq.read_table(path)
    other = pa.array([None if of is None else "000000000000" for of in table["duplicate_of"].to_pylist()])
    pq.write_table(table.set_column(1, "duplicate_of", other), path)
    assert check(exact_marks, "duplicate_of", WORLD, rows.STEPS["exact"].kinds)["wrong"] > 10
    pq.write_table(table.slice(1), path)
    with pytest.raises(RuntimeError, match="were fetched"):
        check(exact_marks, "duplicate_of", WORLD, kinds)


def test_pack_is_checked_by_a_query_of_its_own(places: dict[str, str], tmp_path: Path) -> None:
    told = tmp_path / "pack.json"
    told.write_text(json.dumps({"rules": [{"kept": 3}]}))
    with pytest.raises(RuntimeError, match="would keep 3 rows"):
        rows._check_kept(str(told), places)


def test_figures_are_of_a_row_and_of_thirds_of_the_time() -> None:
    cost = Cost(
        cpu=5.0, work=3.0, process=300, tree=900, wall=30.0, workers=[(1, 10), (9, 50), (15, 20), (29, 40)]
    )
    found = rows._figures(cost, 1_000_000)
    assert found["work_us_per_row"] == pytest.approx(3.0)
    assert found["worker_thirds"] == [50 / 1e6, 20 / 1e6, 40 / 1e6]
    assert found["worker"] == 50 / 1e6
    text = rows.table({"1000000": {"exact": {**found, "planted": 5, "marked": 5, "wrong": 0}}})
    assert "| 1,000,000 | exact | 3.0 | 3.0 | 5.0 | 30 |" in text


def test_impossible_sizes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--rows", "5"], ["--workers", "0"], ["--dimensions", "1"]):
        assert command(["bench", "rows", *options]) == 2
    assert "--rows 5 must be" in capsys.readouterr().err


@pytest.mark.prove
def test_bench_rows_runs_every_step(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--rows", "10000", "20000", "--json", str(tmp_path / "x.json")]
    assert command(["bench", "rows", *options]) == 0
    assert "| 20,000 | pack |" in capfd.readouterr().out
    for steps in json.loads((tmp_path / "x.json").read_text()).values():
        assert steps["exact"]["marked"] == steps["exact"]["planted"] > 500
        assert all(found.get("wrong", 0) == 0 for found in steps.values())
