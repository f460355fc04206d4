"""A stage for the runner's tests: each unit writes a table; units fail, die, hang or are slow on demand."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.errors import ConfigError, InputError
from pipeline.settings import operational
from pipeline.stage import Counts, Input, Output, Stage, Unit, append_units


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """names: one unit each. mode: name -> what happens to it. log: file that notes each run of a unit."""

    factor: int = 2
    names: tuple[str, ...] = operational(("a", "b", "c"))
    mode: dict[str, str] = operational(factory=dict)
    log: str = operational("")
    seconds: float = operational(0.0)
    global_stage: bool = operational(False)


class ToyStage(Stage):
    name = "toy"
    suffixes = (".parquet", "_stats.json")

    def __init__(self, config: ToyConfig) -> None:
        self.config = config
        self.redo_on_new_inputs = config.global_stage  # type: ignore[misc]

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        mark = ",".join(self.config.names) if self.config.global_stage else ""
        pieces = [({"name": n}, (Input(url=n, fingerprint=n + mark),)) for n in self.config.names]
        return append_units(planned, pieces)

    def run(self, unit: Unit, scratch: Path) -> Output:
        name = unit.source["name"]
        if self.config.log:
            with Path(self.config.log).open("a") as log:
                log.write(f"{name}\n")
        self._misbehave(self.config.mode.get(name, ""))
        time.sleep(self.config.seconds)
        counts = Counts()
        counts.keep(2)
        counts.drop("odd")
        table = pa.table({"value": [ord(name[0]) * self.config.factor]})
        stats = {"time": time.time()}
        parts = {".parquet": table, "_stats.json": stats}
        return Output(parts=parts, counts=counts, volatile=frozenset({"_stats.json"}))

    def _misbehave(self, mode: str) -> None:
        if mode == "die":
            os._exit(1)
        if mode == "fail":
            raise InputError("this unit cannot be read")
        if mode == "config":
            raise ConfigError("no such model")
        if mode == "hang":
            time.sleep(600)
        if mode.startswith("once:"):
            flag = Path(mode.removeprefix("once:"))
            if not flag.exists():
                flag.touch()
                os._exit(1)

    def finish(self, output: str) -> None:
        if self.config.log:
            with Path(self.config.log).open("a") as log:
                log.write("finish\n")
