"""Keeps one Ray over several stages of one process, since starting it takes seconds. Does not import it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

_shared = False


def is_shared() -> bool:
    """Whether a stage that ends should leave Ray running for the next one."""
    return _shared


def close() -> None:
    """Ends the Ray of this process, if a stage started one."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


@contextlib.contextmanager
def shared_session() -> Iterator[None]:
    """Stages inside the block run on one Ray; it ends with the block."""
    global _shared
    before, _shared = _shared, True
    try:
        yield
    finally:
        _shared = before
        if not before:
            close()
