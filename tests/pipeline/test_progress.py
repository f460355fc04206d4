"""The progress line, on a terminal and in a log file."""

from __future__ import annotations

import io

from pipeline.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_duration() -> None:
    assert [duration(s) for s in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]


def test_log_file_gets_whole_lines() -> None:
    stream = io.StringIO()
    progress = Progress("crawl", 4, first=1, stream=stream, every=0.0)
    progress.update(2, "in 10 out 9")
    progress.update(4)
    progress.close(4, "done")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "crawl" in lines[0]
    assert "2/4" in lines[0]
    assert lines[0].endswith("in 10 out 9")
    assert "[####################] 4/4 units" in lines[2]


def test_terminal_line_is_redrawn_and_left_standing() -> None:
    stream = Terminal()
    progress = Progress("crawl", 2, stream=stream, every=0.0)
    progress.update(1)
    progress.close(2)
    assert stream.getvalue().count("\r") == 2
    assert stream.getvalue().count("\n") == 1


def test_nothing_to_do_divides_by_nothing() -> None:
    stream = io.StringIO()
    Progress("crawl", 0, stream=stream).close(0, "nothing to do")
    assert "0/0" in stream.getvalue()
