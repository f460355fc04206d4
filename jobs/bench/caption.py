"""Captions a second of the caption stage's captioner, beside transformers writing about a picture at a time.

    pairmill bench caption
    pairmill bench caption --size small --candidates 10 --repeats 1 --json figures.json

Both sides hold the same BLIP of random weights (transformers reads what `pairmill convert` writes of it),
get the same pictures, and write N captions of each by nucleus sampling with the same settings, the encoding
of the picture and the decoding of the text included. The end of a text is forbidden up to its greatest
length, so that both write the same number of tokens. transformers runs `generate(do_sample=True,
num_return_sequences=N)` on one picture after the other, ours takes all pictures as the stage does. The sides
run in turn, with as many threads; CPU time (user and system) is what is compared, for the machine may be
shared.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from jobs.bench.caption_model import Sides, make_sides
from pipeline.errors import ConfigError

SIZES = ("tiny", "small", "base", "large")


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns 0."""
    known = _parse(argv)
    with tempfile.TemporaryDirectory(prefix="pairmill-bench-") as scratch:
        sides = make_sides(
            Path(scratch), size=known.size, image_size=known.image_size, pictures=known.pictures,
            tokens=known.tokens, threads=known.threads, device=known.device,
        )  # fmt: skip
        print(
            f"BLIP {known.size} at {sides.image_size} px, {known.pictures} pictures, {known.tokens} tokens, "
            f"{known.threads} threads, batches of {known.batch_size}",
            flush=True,
        )
        report = [_compare(sides, n, known) for n in known.candidates]
    print(table(report))
    if known.json:
        Path(known.json).write_text(json.dumps({"options": vars(known), "figures": report}, indent=1) + "\n")
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pairmill bench caption", description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="base", help="size of the BLIP")
    parser.add_argument("--image_size", type=int, help="pixels of a side; the size's own by default")
    parser.add_argument(
        "--candidates", type=int, nargs="+", default=(1, 4, 10, 40), help="captions a picture"
    )
    parser.add_argument("--pictures", type=int, default=4, help="pictures that each side captions")
    parser.add_argument(
        "--tokens", type=int, default=20, help="tokens of a caption, the opening one included"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="pictures that ours sees at once")
    parser.add_argument("--rows", type=int, default=256, help="texts that ours writes at once")
    parser.add_argument("--threads", type=int, default=1, help="threads of each side")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; on cuda wall time is compared")
    parser.add_argument("--repeats", type=int, default=3, help="how often each side writes")
    parser.add_argument("--json", help="write all figures here")
    known = parser.parse_args(list(argv))
    numbers = ("pictures", "batch_size", "rows", "threads", "repeats")
    if min(getattr(known, name) for name in numbers) < 1 or min(known.candidates) < 1 or known.tokens < 2:
        raise ConfigError(
            f"--{', --'.join(numbers)} and --candidates must be at least 1, --tokens at least 2"
        )
    return known


def _compare(sides: Sides, candidates: int, known: argparse.Namespace) -> dict[str, Any]:
    """The seconds of each side, repeat by repeat, and the ratio of their medians."""
    runs: dict[str, Callable[[], list[list[str]]]] = {
        "pairmill": lambda: sides.ours(candidates, batch_size=known.batch_size, rows=known.rows),
        "transformers": lambda: sides.theirs(candidates),
    }
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    wall: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(known.repeats):
        for name in runs if repeat % 2 == 0 else reversed(runs):
            began, spent = time.perf_counter(), time.process_time()
            texts = runs[name]()
            cpu[name].append(time.process_time() - spent)
            wall[name].append(time.perf_counter() - began)
            if [len(own) for own in texts] != [candidates] * known.pictures:
                raise RuntimeError(
                    f"{name} wrote {[len(own) for own in texts]} captions, not {candidates} each"
                )
        print(f"  N={candidates}: " + ", ".join(f"{n} {v[-1]:.1f} s" for n, v in cpu.items()), flush=True)
    captions = candidates * known.pictures
    seconds = {name: median(values) for name, values in (cpu if known.device == "cpu" else wall).items()}
    return {
        "candidates": candidates,
        "cpu_s": cpu,
        "wall_s": wall,
        "captions_per_s": {name: captions / value for name, value in seconds.items()},
        "captions_per_wall_s": {name: captions / median(values) for name, values in wall.items()},
        "times": seconds["transformers"] / seconds["pairmill"],
        "times_by_repeat": [
            b / a
            for a, b in zip(
                *((cpu if known.device == "cpu" else wall)[n] for n in ("pairmill", "transformers")),
                strict=True,
            )
        ],
    }


def table(report: Sequence[dict[str, Any]]) -> str:
    """The figures as a Markdown table."""
    rows = [
        "| captions a picture | pairmill, captions a CPU second | transformers | times | by repeat "
        "| wall: pairmill | transformers |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in report:
        rate, wall = found["captions_per_s"], found["captions_per_wall_s"]
        repeats = ", ".join(f"{r:.2f}" for r in found["times_by_repeat"])
        rows.append(
            f"| {found['candidates']} | {rate['pairmill']:.2f} | {rate['transformers']:.2f} "
            f"| {found['times']:.2f} | {repeats} | {wall['pairmill']:.2f} | {wall['transformers']:.2f} |"
        )
    return "\n".join(rows)
