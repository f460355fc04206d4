"""A stage whose units die, hang, hold the interpreter's lock or take their time; for the proofs."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import re
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.runner import run_stage
from pipeline.settings import operational
from pipeline.stage import Counts, Output, Stage, Unit

__all__ = ["BadConfig", "BadStage", "run_stage"]


@dataclass(frozen=True, kw_only=True)
class BadConfig:
    """mode: unit number (or `start`) -> what happens. log: file that notes what was begun. seconds: a unit
    sleeps up to so long, at random. size: bytes of one sample; salt: makes the bytes others, volatile_salt in
    every run."""

    units: int = operational(6)
    mode: dict[str, str] = operational(factory=dict)
    log: str = operational("")
    seconds: float = operational(0.0)
    size: int = 2000
    salt: str = ""
    volatile_salt: bool = operational(False)


class BadStage(Stage):
    name = "bad"
    suffixes = (".tar", ".parquet", "_stats.json")

    def __init__(self, config: BadConfig) -> None:
        self.config = config

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        return [Unit(number=n, source={"n": n}, inputs=()) for n in range(self.config.units)]

    def start(self) -> None:
        self._misbehave(self.config.mode.get("start", ""), "start")

    def run(self, unit: Unit, scratch: Path) -> Output:
        self._misbehave(self.config.mode.get(str(unit.number), ""), str(unit.number))
        rng = random.Random()
        rows, target = 5, scratch / "x.tar"
        with tarfile.open(target, "w") as tar:  # not the ShardWriter: it takes seconds to import
            for row in range(rows):
                time.sleep(rng.uniform(0, self.config.seconds / rows))
                data = self._bytes(unit.number, row)
                member = tarfile.TarInfo(f"{unit.number:08d}{row:04d}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        counts = Counts()
        counts.keep(rows)
        table = pa.table({"key": [f"{unit.number:08d}{row:04d}" for row in range(rows)]})
        stats = {"at": time.time()}
        return Output(
            parts={".tar": target, ".parquet": table, "_stats.json": stats},
            counts=counts,
            volatile=frozenset({"_stats.json"}),
        )

    def _bytes(self, number: int, row: int) -> bytes:
        salt = str(time.time()) if self.config.volatile_salt else self.config.salt
        return random.Random(f"{number} {row} {salt}").randbytes(self.config.size)

    def _misbehave(self, mode: str, what: str) -> None:
        if self.config.log:
            with Path(self.config.log).open("a") as log:
                log.write(f"{what} {mode}\n")
        if mode == "die":
            os._exit(1)
        if mode == "fail":
            raise OSError("this does not work")
        if mode == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if mode == "hang":
            time.sleep(600)
        if mode == "hold":  # C code that does not let go of the lock, for hours
            re.match(r"(a+)+b", "a" * 60)
        if mode == "busy":  # C code that lets go of it
            hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2**31 - 1)
