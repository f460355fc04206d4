"""The order of samples and the mixture of datasets are functions of (seed, step), from counts alone."""

from __future__ import annotations

import itertools
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import draws
from models.training.mixture import PAIRS, TEXTS, BatchPlan, Source
from models.training.order import ShardOrder


def plan(*counts: list[int], batch: int = 12, seed: int = 5, window: int = 2, **weights: list) -> BatchPlan:
    shares, kinds = weights.get("shares", [1.0] * len(counts)), weights.get("kinds", [PAIRS] * len(counts))
    sources = [
        Source(ShardOrder(np.array(c), seed, window, n), share, kind)
        for n, (c, share, kind) in enumerate(zip(counts, shares, kinds, strict=True))
    ]
    return BatchPlan(sources, batch, seed)


def places(order: ShardOrder, first: int, count: int) -> list[tuple[int, int]]:
    return list(zip(*(column.tolist() for column in order.locate(first, count)), strict=True))


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
    st.integers(1, 9),
    st.integers(0, 40),
    st.integers(0, 30),
)
@settings(max_examples=200, deadline=None)
def test_every_epoch_is_every_sample_once_and_any_position_is_found_at_once(
    counts: list[int], window: int, first: int, count: int
) -> None:
    order = ShardOrder(np.array(counts), 3, window)
    everything = {(s, p) for s, n in enumerate(counts) for p in range(n)}
    total = len(everything)
    whole = places(order, 0, 3 * total)
    for epoch in range(3):
        assert set(whole[epoch * total : (epoch + 1) * total]) == everything
    fresh = places(ShardOrder(np.array(counts), 3, window), first, count)
    longer = places(order, 0, first + count)
    assert fresh == longer[first:]


def test_reading_touches_a_window_of_shards_at_a_time_and_epochs_seeds_and_datasets_differ() -> None:
    order = ShardOrder(np.full(60, 50), 1, 4)
    shards = [s for s, _ in places(order, 0, 3000)]
    for start in range(0, 3000, 200):
        assert len(set(shards[start : start + 200])) == 4
    # mixed: neighbours seldom come from one shard (1 in 4 by chance)
    assert np.mean([a == b for a, b in itertools.pairwise(shards)]) < 0.35
    first = places(order, 0, 3000)
    assert first != places(order, 3000, 3000)
    assert first != places(ShardOrder(np.full(60, 50), 2, 4), 0, 3000)
    assert first != places(ShardOrder(np.full(60, 50), 1, 4, stream=1), 0, 3000)


def test_the_order_is_pinned() -> None:
    """A change of the order would make runs go on with other samples than they began with."""
    found = places(ShardOrder(np.array([3, 2, 4]), 1, 2), 0, 9)
    assert found == [(1, 0), (2, 1), (2, 2), (2, 3), (1, 1), (2, 0), (0, 1), (0, 2), (0, 0)]
    assert draws.permutation(draws.key(1, 2), 6).tolist() == [2, 3, 1, 5, 0, 4]
    # splitmix64's published first output for the state 0
    assert draws.key(0) == 0xE220A8397B1DCDAF
    numbers = draws.Draws(1, 2, 3)
    assert [round(numbers.random(), 6) for _ in range(2)] == [0.130086, 0.437318]


@given(st.integers(1, 4), st.sampled_from([1, 2, 3, 4, 6]), st.integers(0, 200))
@settings(max_examples=60, deadline=None)
def test_ranks_and_micro_batches_make_up_the_global_batch(world: int, accumulation: int, step: int) -> None:
    made = plan([40, 33], batch=world * accumulation * 2)
    rows = [made.micro_rows(rank, world, accumulation) for rank in range(world)]
    parts = [rows[rank][micro] for micro in range(accumulation) for rank in range(world)]
    assert np.concatenate(parts).tolist() == list(range(made.batch_size))
    assert len(made.rows(step).shard_G) == made.batch_size


def test_steps_follow_each_other_without_a_gap() -> None:
    made = plan([7, 9, 10], batch=8)
    seen = [
        (int(s), int(p))
        for step in range(13)  # 4 epochs of 26
        for s, p in zip(made.rows(step).shard_G, made.rows(step).place_G, strict=True)
    ]
    for epoch in range(4):
        assert len(set(seen[26 * epoch : 26 * epoch + 26])) == 26
    assert made.epoch_steps == 3
    assert made.steps(4) == 13
    with pytest.raises(ValueError, match="batch_size 30"):
        plan([7, 9, 10], batch=30).check()


@given(st.lists(st.floats(0.05, 5), min_size=1, max_size=5), st.integers(1, 64), st.integers(0, 10**6))
@settings(max_examples=12, deadline=None)
def test_a_dataset_stays_within_a_few_rows_of_its_share(shares: list[float], batch: int, seed: int) -> None:
    made = plan(*[[1000]] * len(shares), batch=batch, seed=seed, shares=shares)
    steps = 150
    counts = np.array([np.bincount(made.rows(s).dataset_G, minlength=len(shares)) for s in range(steps)])
    share = np.array(shares) / sum(shares)
    assert (counts.sum(axis=1) == batch).all()
    assert (np.abs(counts - batch * share) < 2).all()
    off = np.abs(counts.cumsum(axis=0) - batch * share * np.arange(1, steps + 1)[:, None])
    assert off.max() < 5


def test_each_dataset_of_a_mixture_goes_through_its_own_epochs_from_any_step_on() -> None:
    counts, shares = [[10, 11], [200, 5], [300]], [0.3, 0.1, 0.6]
    whole, fresh = (plan(*counts, batch=20, shares=shares) for _ in range(2))
    taken = [0, 0, 0]
    for step in range(40):
        rows = whole.rows(step)
        assert len(set(rows.dataset_G[:10])) > 1  # spread over the batch, not one after the other
        for dataset, source in enumerate(whole.sources):
            mine = rows.dataset_G == dataset
            drawn = zip(rows.shard_G[mine].tolist(), rows.place_G[mine].tolist(), strict=True)
            assert sorted(drawn) == sorted(places(source.order, taken[dataset], int(mine.sum())))
            taken[dataset] += int(mine.sum())
    assert taken[0] > 10 * 21  # epochs of its own
    late = fresh.rows(39)
    assert np.array_equal(late.place_G, whole.rows(39).place_G)
    assert np.array_equal(fresh.rows(3).place_G, whole.rows(3).place_G)  # and back again
    with pytest.raises(ValueError, match="dataset 1 of the mix"):
        plan([3], [500], batch=20, shares=[1, 1]).check()


@pytest.mark.parametrize("share", [0.0, 0.25, 0.4, 1.0])
def test_a_step_is_wholly_texts_or_wholly_pairs(share: float) -> None:
    shares, kinds = [0.6 * (1 - share), 0.4 * (1 - share), share], [PAIRS, PAIRS, TEXTS]
    kept = [n for n in range(3) if shares[n] > 0]
    made = plan(
        *[[500]] * len(kept), batch=10, shares=[shares[n] for n in kept], kinds=[kinds[n] for n in kept]
    )
    rows = [made.rows(step) for step in range(200)]
    for found in rows:
        assert {made.sources[d].kind for d in found.dataset_G.tolist()} == {found.kind}
    texts = np.cumsum([found.kind == TEXTS for found in rows])
    assert np.abs(texts - share * np.arange(1, 201)).max() <= 0.5 + 1e-9
    if 0 < share < 1:
        pairs = np.concatenate([r.dataset_G for r in rows if r.kind == PAIRS])
        assert np.mean(pairs == 0) == pytest.approx(0.6, abs=0.01)


def test_a_billion_samples_cost_no_more_than_their_shards() -> None:
    """1e9 samples in 1e5 shards: a step far away is found in seconds, in memory that knows no samples."""
    counts = np.random.default_rng(0).integers(9000, 11001, 100_000)
    tracemalloc.start()
    began = time.process_time()
    made = BatchPlan([Source(ShardOrder(counts, 0, 32))], 4096, 0)
    made.check()
    for step in (0, 1, made.epoch_steps - 1, made.epoch_steps, 3 * made.epoch_steps + 12345):
        rows = made.rows(step)
        assert len(rows.place_G) == 4096
        assert (rows.place_G < counts[rows.shard_G]).all()
        assert len(set(rows.shard_G.tolist())) <= 64
    spent, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert spent < 5
    assert peak < 100 << 20
    mixed = BatchPlan([Source(ShardOrder(counts, 0, 32, n), w) for n, w in enumerate((1, 2.5))], 4096, 0)
    began = time.process_time()
    mixed.rows(1_000_000)
    assert time.process_time() - began < 5
