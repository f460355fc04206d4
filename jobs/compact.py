"""Merges the manifests of finished folders by the thousand: `pairmill compact images columns/clip shards`.

Planning, status and reading then cost one object for a thousand units, which counts on object stores. What is
added or redone afterwards is merged by the next `compact`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipeline import storage
from pipeline.compact import compact
from pipeline.progress import Progress
from pipeline.summary import EXIT_DONE, EXIT_FAILED


def main(argv: Sequence[str]) -> int:
    """Compacts folders; returns 0, or 1 where a damaged manifest was left where it is."""
    parser = argparse.ArgumentParser(
        prog="pairmill compact", description="Merge the manifests of finished units by the thousand."
    )
    parser.add_argument("folder", nargs="+", help="output folders of stages")
    code = EXIT_DONE
    for folder in parser.parse_args(list(argv)).folder:
        if not _compact_one(folder):
            code = EXIT_FAILED
    return code


def _compact_one(folder: str) -> bool:
    progress: list[Progress] = []

    def tell(done: int, total: int) -> None:
        if not progress:
            progress.append(Progress("compact", total, unit="thousands"))
        progress[0].update(done, folder)

    result = compact(storage.absolute(folder), tell=tell)
    progress[0].close(progress[0].total, folder)
    print(f"{folder}: {result.merged:,} manifests merged, {result.objects:,} objects written")
    for url in result.damaged:
        print(f"{url}: damaged, left as it is; run `pairmill verify {folder} --fix`", file=sys.stderr)
    return not result.damaged
