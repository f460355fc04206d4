"""What a kind of judgement is. A new one is a file here with a `Kind` and, where it has options of its own, a
frozen dataclass of them; a line in `stage.KINDS`, and one in `config.ScoreConfig` for the options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import pyarrow as pa

from pipeline.pictures import NO_CAPTION, NO_PICTURE, UNDECODABLE, Row
from pipeline.stage import Input

if TYPE_CHECKING:  # config imports the kinds, whose options it holds
    from pipeline.stages.score.config import ScoreConfig

__all__ = ["NO_CAPTION", "NO_PICTURE", "UNDECODABLE", "Judge", "Judgement", "Kind", "Row"]


class Judgement(NamedTuple):
    """values: one for each of the kind's columns; None where there is no judgement, and `reason` says why."""

    key: str
    values: tuple[Any, ...] | None
    reason: str | None = None


class Judge(Protocol):
    """A kind with its model loaded; used by one thread. `name` goes into the manifest."""

    name: str

    def judge(self, rows: Iterable[Row]) -> Iterator[Judgement]:
        """A judgement of each row, in their order."""
        ...


class Kind(ABC):
    """One kind of judgement. Its module is imported where stages are planned: heavy imports go into `load`.

    Attributes:
        column: its column's name unless `name` gives another.
        pictures: whether it looks at pictures. Kinds that do not can judge candidates too, and open no tar.
        options: the fields of ScoreConfig, beside those of all kinds, that mean something to it.
        uses: columns that each row brings where the input has them.
    """

    column: ClassVar[str]
    pictures: ClassVar[bool]
    options: ClassVar[frozenset[str]] = frozenset()
    uses: ClassVar[tuple[str, ...]] = ()

    def check(self, config: ScoreConfig) -> None:  # noqa: B027 - most values are right by their type
        """Raises ConfigError for values that no worker could start with."""

    def sees(self, config: ScoreConfig) -> bool:
        """Whether it looks at pictures with these options."""
        return self.pictures

    def needs(self, config: ScoreConfig) -> tuple[str, ...]:
        """Columns of the input, or of `config.columns`, that each row must bring beside its caption."""
        return ()

    def check_input(self, schema: pa.Schema, config: ScoreConfig) -> None:  # noqa: B027
        """Raises ConfigError where a column of `needs`, all of which `schema` has, is not of its type."""

    @abstractmethod
    def schema(self, name: str) -> pa.Schema:
        """The columns it writes beside `key`."""

    def columns(self, name: str, config: ScoreConfig, judge: Judge | None = None) -> pa.Schema:
        """The same where options add to them. `judge` is there once it is loaded, and knows what no option
        says, such as the length of an embedding."""
        return self.schema(name)

    def notes(self, judge: Judge) -> dict[str, Any]:
        """Small facts for the manifest of each unit, as JSON values."""
        return {"model": judge.name}

    def inputs(self, config: ScoreConfig) -> tuple[Input, ...]:
        """What every unit depends on beside its rows, such as the content of a model.

        Raises:
            ConfigError: it is not there.
        """
        return ()

    @abstractmethod
    def load(self, config: ScoreConfig) -> Judge:
        """Loads what it judges with, once a worker.

        Raises:
            ConfigError: it cannot be loaded.
        """
