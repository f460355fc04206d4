"""The books of a run folder, where ids of jobs come back."""

from __future__ import annotations

from pathlib import Path

from jobs.slurm import books
from jobs.slurm.books import End, Submitted


def test_an_id_stands_for_the_last_job_that_had_it(tmp_path: Path) -> None:
    for step, job, time in (("crawl", 1, 10.0), ("score", 2, 11.0), ("pack", 1, 99.0)):
        books.note_submitted(tmp_path, Submitted(step=step, verb=step, job=job, time=time))
    found = books.read_submitted(tmp_path)
    assert [(job.step, job.job) for job in found] == [("score", 2), ("pack", 1)]
    assert books.times(found) == {2: 11.0, 1: 99.0}


def test_a_line_that_a_crash_has_cut_off_costs_no_other(tmp_path: Path) -> None:
    books.note_submitted(tmp_path, Submitted(step="crawl", verb="crawl", job=1))
    with (tmp_path / books.SUBMITTED).open("a") as stream:
        stream.write('{"step": "sco')
    assert [job.step for job in books.read_submitted(tmp_path)] == ["crawl"]


def test_ends_of_an_older_job_are_forgotten(tmp_path: Path) -> None:
    for job in ("1", "1_0"):
        end = End(
            job=job, restart=0, verb="crawl", code=0, requeued=False, why="", mark="", began=0, ended=1,
            node="",
        )  # fmt: skip
        books.note_end(tmp_path, end)
    books.forget_ends(tmp_path, "1")
    assert books.read_ends(tmp_path, "1") == []
    assert len(books.read_ends(tmp_path, "1_0")) == 1
