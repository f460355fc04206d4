"""CPU of a training sample: our loader beside open_clip's over webdataset, on the same shards, in turn.

    pairmill bench loader
    pairmill bench loader --sizes 2048 4096 --repeats 1 --json figures.json

Photo-like JPEGs (shorter side 256 to 384) with captions in tars. Both sides read, decode, crop at random,
resize (bicubic, antialiased), normalise to float32 and tokenise with open_clip's tokenizer, in as many
workers; both deliver the batches to a main process, and it is checked that all came. open_clip runs as its
training calls it (`open_clip_train.data.get_wds_dataset`), with the newest webdataset that it allows. What is
reported is the marginal CPU between two numbers of samples.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from jobs.bench import environment
from jobs.bench.measure import Cost, measure
from jobs.bench.pictures import photograph
from pipeline.errors import ConfigError

#: open_clip 3.3 asks for webdataset <= 0.2.86
PEER = "webdataset==0.2.86"
SIDES = ("ours", "bytes", "peer")
NAMES = {"ours": "pairmill", "bytes": "pairmill, normalised on the device", "peer": "open_clip, webdataset"}
SIZES = ((384, 256), (340, 256), (512, 384), (256, 256), (320, 448), (288, 400))
VARIANTS, SHARDS = 12, 8
WORDS = ("red", "old", "house", "by", "the", "river", "dog", "runs", "over", "green", "field", "people")
_HOME = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a side has to load. braces: the shards as webdataset names them."""

    shards: str
    braces: str
    samples: int
    batch_size: int = 256
    workers: int = 2
    size: int = 224
    crop_scale: Sequence[float] = (0.9, 1.0)


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns 0."""
    known = _parse(argv)
    small, large = known.sizes
    with tempfile.TemporaryDirectory(prefix="pairmill-bench-") as scratch:
        folder = Path(scratch)
        facts = make_shards(folder / "shards", known.samples)
        work = Work(
            shards=str(folder / "shards"), braces=f"{folder}/shards/{{00000000..{SHARDS - 1:08d}}}.tar",
            samples=small, batch_size=known.batch, workers=known.workers, crop_scale=known.crop_scale,
        )  # fmt: skip
        overlay = environment.overlay(known.environments / "webdataset", [PEER])
        env = {"PYTHONPATH": os.pathsep.join([str(overlay), str(_HOME)])}
        for side in SIDES:
            check(side, work, folder, env)
        print(f"{facts}; {work.workers} workers, batches of {work.batch_size}, crops {work.crop_scale}")
        costs: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
        for repeat in range(known.repeats):
            for side in SIDES if repeat % 2 == 0 else reversed(SIDES):
                pair = tuple(_cost(side, replace(work, samples=n), folder, env).cpu for n in (small, large))
                costs[side].append((pair[0], pair[1]))
                print(f"  {NAMES[side]}: {pair[0]:.1f} s, {pair[1]:.1f} s", flush=True)
        report = summarise(costs, large - small)
        print(table(report))
        if known.json:
            facts_json = {"pictures": facts, "work": dataclasses.asdict(work), "sizes": [small, large]}
            Path(known.json).write_text(json.dumps({**facts_json, "cpu_s": costs, **report}, indent=1) + "\n")
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pairmill bench loader", description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs=2, default=(8192, 16384), help="samples to load")
    parser.add_argument("--samples", type=int, default=8192, help="samples in the shards")
    parser.add_argument("--batch", type=int, default=256, help="samples of a batch")
    parser.add_argument("--workers", type=int, default=2, help="loading processes")
    parser.add_argument("--crop_scale", type=float, nargs=2, default=(0.9, 1.0), help="areas of random crops")
    parser.add_argument("--repeats", type=int, default=3, help="how often each side loads each number")
    parser.add_argument("--json", help="write all figures here")
    parser.add_argument(
        "--environments", type=Path, default=environment.FOLDER, help="folder for the peer's packages"
    )
    known = parser.parse_args(list(argv))
    small, large = known.sizes
    step = known.batch * max(1, known.workers)
    if not 0 < small < large or small % step or large % step:
        raise ConfigError(f"--sizes {small} {large}: two rising multiples of batch x workers, {step}")
    if known.samples < max(known.batch, SHARDS) or not 0 < known.workers <= SHARDS or known.repeats < 1:
        raise ConfigError(
            f"--samples {known.samples} must be at least a batch, --workers {known.workers} 1 to {SHARDS}, "
            f"--repeats {known.repeats} 1 or more"
        )
    return known


def make_shards(folder: Path, samples: int) -> str:
    """Writes the shards and their sizes.json; returns what is in them, for people."""
    folder.mkdir(parents=True)
    pictures = [_encode(*size, seed) for size in SIZES for seed in range(VARIANTS)]
    rng = np.random.default_rng(0)
    sizes = {}
    for shard, numbers in enumerate(np.array_split(np.arange(samples), SHARDS)):
        name = f"{shard:08d}.tar"
        sizes[name] = len(numbers)
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in numbers.tolist():
                picture = pictures[rng.integers(len(pictures))]
                caption = f"number {number} {' '.join(rng.choice(WORDS, 10))}"
                meta = {"caption": caption, "sha256": hashlib.sha256(picture).hexdigest()}
                for suffix, data in (
                    ("jpg", picture), ("json", json.dumps(meta).encode()), ("txt", caption.encode())
                ):  # fmt: skip
                    member = tarfile.TarInfo(f"{number:012d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    (folder / "sizes.json").write_text(json.dumps(sizes))
    mean = sum(map(len, pictures)) / len(pictures) / 1000
    return f"{samples} JPEGs of {', '.join(f'{w}x{h}' for w, h in SIZES)}, {mean:.0f} KB on average"


def _encode(width: int, height: int, seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(photograph(width, height, seed)).save(out, "JPEG", quality=90)
    return out.getvalue()


def check(side: str, work: Work, folder: Path, env: Mapping[str, str]) -> dict[str, Any]:
    """Runs one side once; raises RuntimeError where not all samples came as they should."""
    done = subprocess.run(
        _command(side, work, folder), env={**os.environ, **_ENV, **env}, cwd=_HOME, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    kind = "torch.uint8" if side == "bytes" else "torch.float32"
    if found["samples"] != work.samples or found["shapes"] != [[kind, 3, work.size, work.size]]:
        raise RuntimeError(f"{side} was asked for {work.samples} samples and gave {found}")
    return found


#: a thread each, so that none waits in a loop
_ENV = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def _command(side: str, work: Work, folder: Path) -> list[str]:
    path = folder / f"work-{work.samples}.json"
    path.write_text(json.dumps(dataclasses.asdict(work)))
    return [sys.executable, "-m", "jobs.bench.loader_run", side, str(path)]


def _cost(side: str, work: Work, folder: Path, env: Mapping[str, str]) -> Cost:
    return measure(_command(side, work, folder), env={**_ENV, **env})


def summarise(costs: Mapping[str, Sequence[tuple[float, float]]], samples: int) -> dict[str, Any]:
    """CPU milliseconds a sample, samples a CPU second, how many times the peer's; medians of repeats."""
    cpu_ms = {side: [1000 * (b - a) / samples for a, b in pairs] for side, pairs in costs.items()}
    ratios = {
        side: [peer / own for peer, own in zip(cpu_ms["peer"], values, strict=True)]
        for side, values in cpu_ms.items()
    }
    middle = {side: median(values) for side, values in cpu_ms.items()}
    return {
        "cpu_ms": cpu_ms,
        "ratios": ratios,
        "median_cpu_ms": middle,
        "samples_per_cpu_s": {side: 1000 / value for side, value in middle.items()},
        "times_the_peer": {side: middle["peer"] / value for side, value in middle.items()},
    }


def table(report: Mapping[str, Any]) -> str:
    """The figures as a Markdown table."""
    rows = [
        "| | CPU ms a sample | samples a CPU second | times open_clip | by repeat |",
        "|---|---|---|---|---|",
    ]
    for side in SIDES:
        repeats = ", ".join(f"{r:.2f}" for r in report["ratios"][side])
        rows.append(
            f"| {NAMES[side]} | {report['median_cpu_ms'][side]:.2f} "
            f"| {report['samples_per_cpu_s'][side]:.0f} | {report['times_the_peer'][side]:.2f} | {repeats} |"
        )
    return "\n".join(rows)
