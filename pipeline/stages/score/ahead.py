"""Work on rows in threads, ahead of the one who takes the results: decoding beside computing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipeline.stages.score.kind import Row

T = TypeVar("T")


def prepared(
    rows: Iterable[Row], prepare: Callable[[Row], T], *, threads: int, ahead: int
) -> Iterator[tuple[Row, T]]:
    """Each row with what `prepare` makes of it, in the order of `rows`.

    Args:
        prepare: called in `threads` threads at once.
        ahead: rows that may be prepared or waiting at a time; each holds its picture in memory.
    """
    under_way: deque[tuple[Row, Future[T]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for row in rows:
                under_way.append((row, pool.submit(prepare, row)))
                if len(under_way) > ahead:
                    done, future = under_way.popleft()
                    yield done, future.result()
            while under_way:
                done, future = under_way.popleft()
                yield done, future.result()
        finally:
            for _, future in under_way:
                future.cancel()
