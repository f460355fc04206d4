"""The crawl's test site in a process of its own, so that a killed crawler leaves it alone:

    python -m tests.prove.web

prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def serving_apart() -> Iterator[int]:
    """The site on loopback while the block runs; yields its port."""
    command = [sys.executable, "-m", "tests.prove.web"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait(timeout=10)


def main() -> None:
    from tests.pipeline.crawl_server import Site, serving

    site = Site()
    site.jitter = 0.05
    with serving(site):
        print(site.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
