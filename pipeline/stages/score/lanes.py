"""Batches for one or several models, cut at fixed places, with the answers in the order of the rows.

A lane is one thing that computes a batch at a time: a model, or one tower of it. Each row asks pieces of
lanes. A lane's batch is cut after every `batch_size` of its own pieces, so which pieces share a batch follows
from the rows alone: not from threads, nor from what other lanes do.

While one batch is computed the next one is being prepared (stacked, tokenised) and the rows after it are
being decoded; the answers of a batch are waited for when the next one has been started, so that a GPU does
not stand still in between. In memory are the batch that is computed, the next one, one of each lane that is
filling, and the rows that are being decoded; of rows that wait for a rarer lane only the answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from pipeline.pictures import Row, prepared
from pipeline.stages.score.kind import Judgement


class Lane(NamedTuple):
    """prepare: makes a batch of pieces; called in a thread of its own, one batch after the other.
    start: starts computing it; what it returns waits for the answers, one a piece.
    """

    prepare: Callable[[list[Any]], Any]
    start: Callable[[Any], Callable[[], Sequence[Any]]]


#: for each of a row's answers (lane, piece), or why it cannot be asked
Asked: TypeAlias = "tuple[tuple[str, Any] | str, ...]"


class _Open:
    """A row that waits for its answers."""

    def __init__(self, key: str, asked: Asked) -> None:
        reasons = [piece for piece in asked if isinstance(piece, str)]
        self.key = key
        self.answers: list[Any] = [None] * len(asked)
        self.missing = len(asked) - len(reasons)
        self.reason = None if self.missing else reasons[0]


@dataclass
class _Batch:
    """Pieces of one lane, and whose answers they are: row and column."""

    lane: str
    pieces: list[Any] = field(default_factory=list)
    places: list[tuple[_Open, int]] = field(default_factory=list)


def judged(
    rows: Iterable[tuple[Row, Asked]], lanes: Mapping[str, Lane], *, batch_size: int
) -> Iterator[Judgement]:
    """A judgement of each row, in their order: the answers to its pieces, None where one could not be asked.
    A row for which none could is not judged, for the first reason."""
    waiting: deque[_Open] = deque()
    started: deque[tuple[_Batch, Callable[[], Sequence[Any]]]] = deque()

    def prepare(batch: _Batch) -> Any:
        made = lanes[batch.lane].prepare(batch.pieces)
        batch.pieces.clear()  # a batch of pictures is large: not twice
        return made

    for batch, made in prepared(_batches(rows, lanes, batch_size, waiting), prepare, threads=1, ahead=1):
        started.append((batch, lanes[batch.lane].start(made)))
        if len(started) > 1:
            _fill(*started.popleft())
        yield from _ready(waiting)
    while started:
        _fill(*started.popleft())
    yield from _ready(waiting)


def _batches(
    rows: Iterable[tuple[Row, Asked]], lanes: Iterable[str], batch_size: int, waiting: deque[_Open]
) -> Iterator[_Batch]:
    filling = {lane: _Batch(lane) for lane in lanes}
    for row, asked in rows:
        place = _Open(row.key, asked)
        waiting.append(place)
        for at, piece in enumerate(asked):
            if isinstance(piece, str):
                continue
            batch = filling[piece[0]]
            batch.pieces.append(piece[1])
            batch.places.append((place, at))
            if len(batch.pieces) == batch_size:
                filling[batch.lane] = _Batch(batch.lane)
                yield batch
    for batch in filling.values():
        if batch.pieces:
            yield batch


def _fill(batch: _Batch, answers: Callable[[], Sequence[Any]]) -> None:
    for (place, at), answer in zip(batch.places, answers(), strict=True):
        place.answers[at] = answer
        place.missing -= 1


def _ready(waiting: deque[_Open]) -> Iterator[Judgement]:
    while waiting and not waiting[0].missing:
        done = waiting.popleft()
        yield Judgement(done.key, None if done.reason else tuple(done.answers), done.reason)
