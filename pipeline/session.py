"""One Ray over several stages of a process, since starting it takes seconds, and its token. No Ray here."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_shared = False


def use_token() -> None:
    """Has to come before Ray is imported. `ray start` asks clients for a token where its user has one; a
    driver is told to send it by the environment, which Ray reads at its import and never again."""
    place = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if "ray" not in sys.modules and (os.environ.get("RAY_AUTH_TOKEN") or place.is_file()):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


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
