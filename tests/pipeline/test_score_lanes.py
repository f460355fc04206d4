"""Batches of several lanes: cut at fixed places, answers in the order of the rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pictures import Row
from pipeline.stages.score.kind import Judgement
from pipeline.stages.score.lanes import Asked, Lane, judged

LANES = ("a", "b")
#: of each row, for each of two answers: the lane that is asked, or none
asked_lanes = st.lists(st.tuples(*[st.sampled_from([*LANES, None])] * 2), max_size=40)


def doubling(log: list[list[int]]) -> Lane:
    def start(batch: list[int]) -> Callable[[], Sequence[int]]:
        log.append(batch)
        return lambda: [2 * piece for piece in batch]

    return Lane(lambda pieces: list(pieces), start)


def work(rows: list[tuple[str | None, ...]]) -> list[tuple[Row, Asked]]:
    return [
        (Row(f"{at}", None, ""), tuple(("no" if lane is None else (lane, at)) for lane in lanes))
        for at, lanes in enumerate(rows)
    ]


@given(rows=asked_lanes, size=st.integers(1, 5))
def test_every_row_has_its_answers_and_every_lane_its_own_batches(
    rows: list[tuple[str | None, ...]], size: int
) -> None:
    logs: dict[str, list[list[int]]] = {lane: [] for lane in LANES}
    found = list(judged(work(rows), {lane: doubling(logs[lane]) for lane in LANES}, batch_size=size))
    for at, (lanes, judgement) in enumerate(zip(rows, found, strict=True)):
        answers = tuple(None if lane is None else 2 * at for lane in lanes)
        nothing = not any(lanes)
        assert judgement == Judgement(f"{at}", None if nothing else answers, "no" if nothing else None)
    for lane in LANES:
        pieces = [at for at, lanes in enumerate(rows) for asked in lanes if asked == lane]
        assert logs[lane] == [pieces[i : i + size] for i in range(0, len(pieces), size)]


def test_the_next_batch_is_started_before_an_answer_is_waited_for() -> None:
    events: list[str] = []

    def start(batch: list[int]) -> Callable[[], Sequence[int]]:
        events.append(f"start {batch[0]}")

        def wait() -> Sequence[int]:
            events.append(f"wait {batch[0]}")
            return batch

        return wait

    lanes = {"a": Lane(lambda pieces: list(pieces), start)}
    assert len(list(judged(work([("a",)] * 3), lanes, batch_size=1))) == 3
    assert events == ["start 0", "start 1", "wait 0", "start 2", "wait 1", "wait 2"]


def test_few_rows_are_read_ahead_and_answers_come_as_they_are_ready() -> None:
    taken = 0

    def rows() -> Iterator[tuple[Row, Asked]]:
        nonlocal taken
        for row in work([("a",)] * 1000):
            taken += 1
            yield row

    found = judged(rows(), {"a": doubling([])}, batch_size=10)
    assert next(found).key == "0"
    assert taken <= 40
    found.close()  # type: ignore[attr-defined]


def test_an_error_in_a_thread_is_not_lost() -> None:
    def fails(pieces: list[int]) -> list[int]:
        time.sleep(0.01)
        raise OSError("no memory left")

    with pytest.raises(OSError, match="no memory left"):
        list(judged(work([("a",)] * 5), {"a": Lane(fails, lambda batch: lambda: batch)}, batch_size=2))
