"""Servers of the tests on this machine."""

from __future__ import annotations

import contextlib
import socket
import time


def await_port(port: int, what: str, *, seconds: float = 60) -> None:
    """Waits until somebody answers on a port of loopback."""
    limit = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < limit, f"{what} does not answer on port {port}"
        time.sleep(0.05)
