"""Whether a job goes on in a requeued one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from jobs.slurm.again import CRASHED, MAX_RESTARTS, Verdict, judge, parse_cap
from jobs.slurm.books import End
from pipeline.errors import ConfigError


def end(code: int, mark: str, *, seconds: float = 0.0) -> End:
    return End(
        job="1",
        restart=0,
        verb="train",
        code=code,
        requeued=True,
        why="",
        mark=mark,
        began=0,
        ended=seconds,
        node="",
    )


def ask(
    code: int, *, cancelled: bool = False, told: bool = True, restart: int = 0, mark: str = "step_2",
    before: Sequence[End] = (),
) -> Verdict:  # fmt: skip
    return judge(code, cancelled=cancelled, told=told, restart=restart, cap=3, mark=mark, before=before)


@pytest.mark.parametrize(
    ("given", "requeue", "code", "why"),
    [
        ({"code": 0}, False, 0, "done"),
        ({"code": 1}, False, 1, "failed"),
        ({"code": 2}, False, 2, "failed"),
        ({"code": 75}, True, 75, "goes on"),
        ({"code": 75, "told": False}, False, 75, "file STOP"),
        ({"code": 75, "cancelled": True}, False, 75, "asked to end"),
        ({"code": CRASHED}, True, CRASHED, "goes on from what is saved"),
        ({"code": CRASHED, "told": False}, True, CRASHED, "goes on from what is saved"),
        ({"code": CRASHED, "cancelled": True}, False, 75, "asked to end"),
        ({"code": 75, "restart": 3}, False, 75, "requeued 3 times, which is the limit"),
        ({"code": CRASHED, "restart": 3}, False, 1, "requeued 3 times, which is the limit"),
        ({"code": 0, "restart": 3}, False, 0, "done"),
    ],
)
def test_what_follows(given: dict, requeue: bool, code: int, why: str) -> None:
    verdict = ask(**given)
    assert (verdict.requeue, verdict.code) == (requeue, code)
    assert why in verdict.why


@pytest.mark.parametrize(
    ("before", "requeue"),
    [
        ([], True),
        ([end(CRASHED, "step_2")], True),
        ([end(CRASHED, "step_2"), end(CRASHED, "step_2")], False),
        ([end(CRASHED, "step_1"), end(CRASHED, "step_2")], True),
        ([end(CRASHED, "step_2"), end(75, "step_2")], True),
        ([end(CRASHED, "step_2"), end(75, "step_2"), end(CRASHED, "step_2")], False),
        ([end(CRASHED, "step_2"), end(CRASHED, "step_1"), end(CRASHED, "step_2")], True),
    ],
)
def test_three_crashes_in_a_row_at_one_place_are_no_accident(before: list[End], requeue: bool) -> None:
    verdict = ask(CRASHED, before=before)
    assert verdict.requeue is requeue
    if not requeue:
        assert verdict.code == 1
        assert "crashed 3 times at the same place (step_2)" in verdict.why


@pytest.mark.parametrize(
    ("lengths", "requeue"), [((3600, 3600), False), ((3600, 60), True), ((60, 60, 60, 60), True)]
)
def test_time_that_never_suffices_is_not_spent_for_ever(lengths: Sequence[float], requeue: bool) -> None:
    before = [end(75, "8 units", seconds=seconds) for seconds in lengths]
    verdict = judge(
        75, cancelled=False, restart=1, cap=50, mark="8 units", before=before, seconds=3600
    )  # fmt: skip
    assert verdict.requeue is requeue
    assert requeue or "give it more time" in verdict.why
    assert judge(75, cancelled=False, restart=1, cap=50, mark="9 units", before=before, seconds=3600).requeue


def test_the_start_is_a_place_as_well() -> None:
    verdict = ask(CRASHED, mark="", before=[end(CRASHED, ""), end(CRASHED, "")])
    assert "crashed 3 times at the same place (the start)" in verdict.why


def test_the_cap_is_a_number() -> None:
    assert (parse_cap(""), parse_cap("0"), parse_cap("7")) == (MAX_RESTARTS, 0, 7)
    with pytest.raises(ConfigError, match=r"PAIRMILL_MAX_RESTARTS '-1' must be a number"):
        parse_cap("-1")
