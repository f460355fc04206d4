"""What a run of several processes came to, from what each has told."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.training import verdicts


@pytest.fixture
def tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """tell(rank, code, why): as that process would."""
    monkeypatch.setenv(verdicts.VARIABLE, str(tmp_path))

    def as_rank(rank: int, code: int, why: str = "") -> None:
        monkeypatch.setenv("RANK", str(rank))
        verdicts.tell(code, why)

    return as_rank


@pytest.mark.parametrize(
    ("codes", "comes_to"),
    [
        ([0, 0, 0], 0),
        ([75, 75, 75], 75),
        ([0, 75, 75], 75),
        ([1, 70, 70], 1),
        ([70, 70, 1], 1),
        ([70, 2, 1], 2),
        ([70, 0, 0], 70),
        ([None, 0, 0], 70),
        ([None, 70, 75], 70),
        ([None, 1, 70], 1),
        ([None, None, None], 70),
    ],
)
def test_an_error_of_one_counts_for_all_and_silence_is_a_crash(
    tmp_path: Path, tell, codes: list[int | None], comes_to: int
) -> None:
    for rank, code in enumerate(codes):
        if code is not None:
            tell(rank, code)
    found = verdicts.read(tmp_path, processes=len(codes))
    assert found.code == comes_to
    silent = [rank for rank, code in enumerate(codes) if code is None]
    assert list(found.silent) == (silent if comes_to != 0 else [])


def test_the_reason_is_that_of_who_told_the_error(tmp_path: Path, tell) -> None:
    tell(0, 70, "RuntimeError: connection reset")
    tell(1, 1, "the disk\n  is full")
    tell(2, 1)
    found = verdicts.read(tmp_path, processes=3)
    assert (found.code, found.why, list(found.ranks)) == (1, "the disk is full", [1, 2])


def test_a_process_that_was_killed_is_the_cause(tmp_path: Path, tell) -> None:
    tell(0, 70, "RuntimeError: connection reset")
    verdicts.tell_of(1, "ended by SIGKILL")
    found = verdicts.read(tmp_path, processes=3)
    assert (found.code, found.why, list(found.ranks)) == (70, "ended by SIGKILL", [1])
    assert list(found.silent) == [2]


def test_the_first_word_of_a_process_stands_and_is_short(tmp_path: Path, tell) -> None:
    tell(0, 1, "tensor " * 1000)
    tell(0, 0)
    found = verdicts.read(tmp_path, processes=1)
    assert found.code == 1
    assert len(found.why) == verdicts.LONGEST


def test_half_a_verdict_is_none(tmp_path: Path, tell) -> None:
    """What a kill in the middle of the writing leaves."""
    tell(0, 0)
    (tmp_path / ".rank-1.pairmill-tmp-00").write_bytes(b"{")
    assert list(verdicts.read(tmp_path, processes=2).silent) == [1]


def test_exit_codes_are_torchruns_only_where_somebody_reads_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(verdicts.VARIABLE, raising=False)
    verdicts.tell(1)  # to nobody
    assert [verdicts.exit_code(code) for code in (0, 1, 2, 70, 75)] == [0, 1, 2, 1, 75]
    monkeypatch.setenv(verdicts.VARIABLE, str(tmp_path))
    assert [verdicts.exit_code(code) for code in (0, 1, 2, 70, 75)] == [0, 1, 2, 1, 0]
