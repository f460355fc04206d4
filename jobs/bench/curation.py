"""Planted truths: how much of what is wrong with a set of pairs each stage finds, on photographs.

    pairmill bench curation
    pairmill bench curation --pictures coco/train2017 coco/val2017 \
                            --captions coco/annotations/captions_train2017.json ...

Photographs are those that installed packages carry, and those of the folders that are named. Of each there is
a copy: the same file, or one whose geometry is stated. Every other photograph is in a benchmark set. Alt
texts are in six languages. And a small CLIP learns all captions but one of every picture; the last one is
judged, with two in five captions at a wrong picture. The stages are the ordinary commands.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jobs.bench.curation_judge import judge, table, to_json
from jobs.bench.curation_pictures import photographs
from jobs.bench.curation_plan import plant
from jobs.chain import load_chain, run_chain


def main(argv: Sequence[str]) -> int:
    """Plants, runs the chain, prints the table; returns the chain's exit code."""
    known = _parser().parse_args(list(argv))
    with tempfile.TemporaryDirectory(prefix="pairmill-curation-") as temporary:
        root = Path(known.folder or temporary).absolute()
        found = photographs(tuple(known.pictures), tuple(known.captions), quarters=not known.no_quarters)
        print(
            f"{len(found)} photographs, {sum(len(p.captions) > 1 for p in found)} with captions", flush=True
        )
        planted = plant(root, found, seed=known.seed)
        code = run_chain(load_chain(str(planted.chain)))
        if code:
            return code
        figures = judge(root, planted)
    print(f"\n{table(figures)}")
    if known.json:
        Path(known.json).write_text(json.dumps(to_json(figures), indent=1))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pairmill bench curation", description="precision and recall of each stage on planted truths"
    )
    parser.add_argument("--pictures", nargs="*", default=[], help="folders of further photographs")
    parser.add_argument("--captions", nargs="*", default=[], help="their captions, in COCO's format")
    parser.add_argument(
        "--no_quarters", action="store_true", help="leave away the quarters of the packages' large pictures"
    )
    parser.add_argument("--folder", help="where it works; kept, and gone on with. Else a temporary one")
    parser.add_argument("--seed", type=int, default=0, help="of what is exchanged")
    parser.add_argument("--json", help="file for the figures")
    return parser
