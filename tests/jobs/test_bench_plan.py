"""The plan of a large run: its sums against sums by hand, and how they grow."""

from __future__ import annotations

import math

import pytest

from jobs.bench import plan
from jobs.bench.plan_assumptions import ASSUMPTIONS, with_values
from jobs.bench.plan_stages import Cost, stages
from jobs.cli import main as command
from pipeline.stages.dedup.semantic import centroids


def _costs(**changes: float) -> dict[str, Cost]:
    return {cost.name.split(",")[0]: cost for cost in stages(with_values(changes))}


def test_sums_by_hand() -> None:
    found = _costs(
        pairs=1e8, fetched=0.5, selected=0.5, shard_rows=10_000, pairs_per_wat=1e6, wat_bytes=120e6,
        crawl_us=3600, picture_bytes=30e3, row_bytes=100, exact_memory=250, bucket_memory=1e9, open_us=3600,
        open_gets=4, unit_writes=5, gpu_images=1000, chunk=50e6,
    )  # fmt: skip
    discover, crawl = found["discover"], found["crawl"]
    assert discover.units == 400
    assert discover.taken == 400 * 120e6
    assert discover.reads == 400 * (1 + 3)
    assert crawl.units == 10_000
    assert crawl.objects == 40_000  # tar, parquet, stats, manifest
    assert crawl.cores == pytest.approx(1e8 * 3.6e-3 / 3600)
    # a tar of 300 MB: a multipart upload of 6 pieces and 2 requests; two small parts; 5 of every unit
    assert crawl.writes == 10_000 * (8 + 2 + 5)
    assert crawl.given == 10_000 * (300e6 + 20_000 * 100 + 300)
    assert found["score clip"].gpus == pytest.approx(1e8 / 1000 / 3600)
    resolve, mark = found["dedup exact: resolve"], found["dedup exact: mark"]
    assert resolve.units == 50  # 2e8 entries of 250 bytes
    assert resolve.reads == mark.reads - 10_000 * 2 == 10_000 * 50 * 4
    assert resolve.cores == pytest.approx(10_000 * 50 * 3.6e-3 / 3600)
    assert resolve.memory == pytest.approx(1e9 + ASSUMPTIONS["base_memory"].value)
    assert _costs(pairs=1e8, bucket_memory=2e9)["dedup exact: resolve"].units == 25


def test_groups_keep_the_openings_of_semantic_down() -> None:
    one, many = _costs(group=1), _costs(group=64)
    name = "dedup semantic: resolve"
    assert one[name].reads / many[name].reads == pytest.approx(64, rel=0.01)
    assert many[name].memory == one[name].memory
    assert many["dedup semantic: assign"].memory > one["dedup semantic: assign"].memory


def test_as_many_clusters_as_the_stage_takes() -> None:
    """Assigning and comparing cost the same operations where clusters are as many as by default."""
    found = _costs(pairs=2e8, semantic_us=1e-9, open_us=1e-9, shard_rows=10_000, core_flops=1e10)
    assert f"{centroids._automatic(200_000_000):,}" == "10,000"
    expected = 2 * 2e8 * 1e4 * 512 / 1e10 / 3600
    assert found["dedup semantic: assign"].cores == pytest.approx(expected)
    assert found["dedup semantic: resolve"].cores == pytest.approx(expected)


def test_growth_with_the_pairs() -> None:
    """What opens every shard once a bucket grows with the square, at one memory of a bucket."""
    small, large = _costs(pairs=1e9), _costs(pairs=4e9)
    for name in ("discover", "crawl", "score hash", "dedup exact: sketch", "pack"):
        assert large[name].cores == pytest.approx(4 * small[name].cores, rel=0.01), name
        assert large[name].memory == small[name].memory
    assert large["dedup exact: resolve"].reads == pytest.approx(
        16 * small["dedup exact: resolve"].reads, rel=0.02
    )


def test_prices_and_the_sum() -> None:
    free = {"core_hour": 1e-30, "gpu_hour": 1e-30, "read_price": 1e-30, "write_price": 1e-30}
    values = with_values({**free, "core_hour": 2.0})
    costs = stages(values)
    hours = sum(cost.cores for cost in costs)
    line = next(line for line in plan.table(costs, values).splitlines() if "**all**" in line)
    assert float(line.split("|")[-2].replace(",", "")) == pytest.approx(2 * hours, rel=0.01)
    values = with_values({**free, "read_price": 1.0})
    costs = stages(values)
    line = next(line for line in plan.table(costs, values).splitlines() if "**all**" in line)
    assert float(line.split("|")[-2]) == pytest.approx(sum(cost.reads for cost in costs), rel=0.01)


def test_every_figure_is_finite_and_every_assumption_matters() -> None:
    costs = stages(with_values({}))
    for cost in costs:
        assert all(math.isfinite(v) and v >= 0 for v in vars(cost).values() if not isinstance(v, str))
    before = plan.table(costs, with_values({}))
    for name, known in ASSUMPTIONS.items():
        values = with_values({name: known.value * (0.5 if known.value <= 1 else 3.0)})
        assert plan.table(stages(values), values) != before, name


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["bench", "plan", "--pairs", "5e9"]) == 0
    assert "| crawl | 500,000 |" in capsys.readouterr().out
    assert command(["bench", "plan", "--assumptions", "--core_hour", "0.01"]) == 0
    text = capsys.readouterr().out
    assert "| core_hour | 0.01 | $ a core and hour | given |" in text
    assert text.count("\n") == len(ASSUMPTIONS) + 2
    for options in (["--pairs", "0"], ["--pairs", "nan"], ["--fetched", "1.5"]):
        assert command(["bench", "plan", *options]) == 2
