"""Memory of workers and of plans: what the defaults of glibc and of Python's collector cost.

glibc gives large blocks back to the kernel at each `free`. A decoded picture is such a block: asked for
again, every one of its pages is faulted in anew and zeroed, 1.1 of 5.5 ms of CPU a picture in the crawl's
threads. Arenas of their own for threads make it worse, and keep more memory than they use. So workers keep up
to `KEPT_BYTES` of what was freed, in one arena.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator

# malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
KEPT_BYTES = 32 << 20
#: larger blocks still go straight to the kernel and back: the most that glibc takes
DIRECT_BYTES = 32 << 20


def keep_freed() -> None:
    """To be called once in a worker, before its threads start. Nothing happens without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, DIRECT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No search for cycles inside the block, which makes hundreds of thousands of objects that have none: the
    searches go over all of them again and again (a third of the time to plan 100,000 units)."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
