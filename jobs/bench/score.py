"""Pairs a second of the score stage (kind clip), beside the bare forward pass of the same model.

    pairmill bench score
    pairmill bench score --pretrained openai --device cuda --batch_size 256 --decode_threads 12
    pairmill bench score --pairs 64 --repeats 1 --json figures.json

Ours is the whole stage over shards of photo-like JPEGs with captions: reading the tar, decoding, resizing,
tokenising, both towers, the column committed. The bare pass is both towers alone, over a batch of the same
pictures and captions that is ready on the device. Both run in this one process, in turn, with the same model,
batch size, precision and number of threads; without --pretrained the weights are random, which no speed
depends on.

On a CPU the ratio is that of CPU time (user and system, of all threads): what decoding and tokenising take is
lost for the model, and other processes on the machine do not come in. Wall time is printed beside it; where
there are free cores it says better of ours, since decoding then has cores of its own. On a GPU, which works
while the CPU decodes, the ratio is that of wall time, and the machine must be idle.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.bench.loader import SIZES, WORDS
from jobs.bench.pictures import photograph
from pipeline.commit import run_and_commit
from pipeline.errors import ConfigError
from pipeline.planning import make_plan
from pipeline.shards.reader import Sample
from pipeline.shards.writer import ShardWriter
from pipeline.stages.score import ScoreConfig, ScoreStage

SIDES = ("ours", "bare")
NAMES = {"ours": "pairmill score", "bare": "bare forward"}
#: different pictures of each size
VARIANTS = 8
RANDOM_WEIGHTS = "random.pt"


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Seconds of one side over all pairs."""

    cpu: float
    wall: float


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns 0."""
    known = _parse(argv)
    with tempfile.TemporaryDirectory(prefix="pairmill-bench-") as scratch:
        folder = Path(scratch)
        if known.pretrained is None and not Path(known.model).is_dir():
            known.pretrained = _random_weights(known.model, folder / RANDOM_WEIGHTS)
        make_images(folder / "images", known.pairs, known.shards)
        config = ScoreConfig(
            input=str(folder / "images"), model=known.model, pretrained=known.pretrained,
            batch_size=known.batch_size, precision=known.precision, device=known.device,
            cpus=float(known.threads), decode_threads=known.decode_threads,
        )  # fmt: skip
        sides = make_sides(config, folder, known.pairs)
        facts = _facts(known)
        print("; ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
        spent = measure(sides, known.repeats)
    report = summarise(spent, known.pairs, by="wall" if known.device == "cuda" else "cpu")
    print(table(report))
    if known.json:
        seconds = {side: [asdict(s) for s in runs] for side, runs in spent.items()}
        Path(known.json).write_text(json.dumps({"facts": facts, "s": seconds, **report}, indent=1) + "\n")
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pairmill bench score", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="ViT-B-32", help="an open_clip name, or a model/ folder")
    parser.add_argument("--pretrained", help="its tag or checkpoint; random weights by default")
    parser.add_argument("--pairs", type=int, default=256, help="pairs that each side judges")
    parser.add_argument("--shards", type=int, default=2, help="shards that hold them")
    parser.add_argument("--batch_size", type=int, default=64, help="pairs of a batch")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads that compute")
    parser.add_argument("--decode_threads", type=int, default=2, help="threads that decode")
    parser.add_argument("--repeats", type=int, default=3, help="how often each side runs")
    parser.add_argument("--json", help="write all figures here")
    known = parser.parse_args(list(argv))
    if min(known.shards, known.batch_size, known.threads, known.decode_threads, known.repeats) < 1:
        raise ConfigError(
            "--shards, --batch_size, --threads, --decode_threads and --repeats must be at least 1"
        )
    if known.pairs < 1 or known.pairs % (known.shards * known.batch_size):
        raise ConfigError(
            f"--pairs {known.pairs} must be a multiple of shards x batch size, "
            f"{known.shards * known.batch_size}, so that all batches are full"
        )
    return known


def make_images(folder: Path, pairs: int, shards: int) -> None:
    """Shards as img2dataset writes them, of JPEGs whose shorter side is 256 to 384, as after a crawl."""
    folder.mkdir(parents=True)
    pictures = [_encode(*size, seed) for size in SIZES for seed in range(VARIANTS)]
    rng = np.random.default_rng(0)
    for shard, numbers in enumerate(np.array_split(np.arange(pairs), shards)):
        rows = []
        with ShardWriter(folder / f"{shard:05d}.tar") as writer:
            for number in numbers.tolist():
                key = f"{shard:05d}{number:07d}"
                caption = f"number {number} {' '.join(rng.choice(WORDS, 10))}"
                picture = pictures[int(rng.integers(len(pictures)))]
                writer.write(Sample(key, {"jpg": picture, "txt": caption.encode()}))
                url = f"http://pictures.example/{number}.jpg"
                rows.append({"key": key, "url": url, "caption": caption, "status": "success"})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard:05d}.parquet")


def _encode(width: int, height: int, seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(photograph(width, height, seed)).save(out, "JPEG", quality=95)
    return out.getvalue()


def _random_weights(model: str, path: Path) -> str:
    import open_clip
    import torch

    if model not in open_clip.list_models():
        raise ConfigError(f"--model {model!r} is neither a model/ folder nor a name that open_clip knows")
    torch.manual_seed(0)
    torch.save(open_clip.create_model(model).state_dict(), path)
    return str(path)


def make_sides(config: ScoreConfig, folder: Path, pairs: int) -> dict[str, Callable[[], None]]:
    """Each side, loaded and warm: what is called judges all pairs once."""
    stage = ScoreStage(config)
    stage.start()
    outputs = iter(range(1_000_000))

    def ours() -> None:
        output = str(folder / "columns" / str(next(outputs)))
        plan = make_plan(stage, output)
        judged = sum(run_and_commit(stage, unit, output)["counts"]["out"] for unit in plan.todo)
        if judged != pairs:
            raise RuntimeError(f"the stage judged {judged} of {pairs} pairs")

    return {"ours": ours, "bare": _bare(config, pairs)}


def _bare(config: ScoreConfig, pairs: int) -> Callable[[], None]:
    """Both towers of a second copy of the model, over one batch of the stage's own input."""
    from pipeline.pictures import rows_with_pictures
    from pipeline.stages.score.encoder import Encoder

    encoder = Encoder(config.model, config.pretrained, config)
    rows = list(
        rows_with_pictures(f"{config.input}/00000.tar", pq.read_table(f"{config.input}/00000.parquet"))
    )[: config.batch_size]
    pictures = [p for p in (encoder.picture(row.picture) for row in rows) if not isinstance(p, str)]
    place = encoder.scorer.device
    image_BCHW = encoder.pictures(pictures).to(place)
    tokens = [tuple(t.to(place) for t in part) for part in encoder.texts([row.caption for row in rows])]

    def bare() -> None:
        for _ in range(pairs // config.batch_size):
            last = encoder.encode_pictures(image_BCHW), encoder.encode_texts(tokens)
        for answer in last:
            answer()

    bare()
    return bare


def measure(sides: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, list[Spent]]:
    """The sides in turn, the other one first every second time."""
    spent: dict[str, list[Spent]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side in sides if repeat % 2 == 0 else reversed(list(sides)):
            cpu, wall = time.process_time(), time.perf_counter()
            sides[side]()
            found = Spent(cpu=time.process_time() - cpu, wall=time.perf_counter() - wall)
            spent[side].append(found)
            print(f"  {NAMES[side]}: CPU {found.cpu:.1f} s, wall {found.wall:.1f} s", flush=True)
    return spent


def summarise(spent: Mapping[str, Sequence[Spent]], pairs: int, *, by: str) -> dict[str, Any]:
    """Pairs a second of each side (medians), and ours as a share of the bare pass in each repetition."""
    rates = {
        clock: {side: median(pairs / getattr(s, clock) for s in runs) for side, runs in spent.items()}
        for clock in ("cpu", "wall")
    }
    both = zip(spent["ours"], spent["bare"], strict=True)
    ratios = [getattr(bare, by) / getattr(ours, by) for ours, bare in both]
    return {"by": by, "pairs_per_s": rates, "ratios": ratios, "ratio": median(ratios)}


def table(report: Mapping[str, Any]) -> str:
    """The figures as a Markdown table."""
    rows = ["| | pairs a CPU second | pairs a second (wall) |", "|---|---|---|"]
    rates = report["pairs_per_s"]
    rows += [f"| {NAMES[s]} | {rates['cpu'][s]:.2f} | {rates['wall'][s]:.2f} |" for s in SIDES]
    each = ", ".join(f"{ratio:.3f}" for ratio in report["ratios"])
    what = {"cpu": "CPU time", "wall": "wall time"}[report["by"]]
    return "\n".join([*rows, "", f"{100 * report['ratio']:.1f} % of the bare pass by {what} ({each})"])


def _facts(known: argparse.Namespace) -> dict[str, Any]:
    import open_clip
    import torch

    random = known.pretrained is not None and Path(known.pretrained).name == RANDOM_WEIGHTS
    weights = "random weights" if random else known.pretrained or "own weights"
    device = torch.cuda.get_device_name() if known.device == "cuda" else "CPU"
    return {
        "model": f"{known.model} ({weights})", "device": device, "pairs": known.pairs,
        "batch": known.batch_size, "precision": known.precision, "threads": known.threads,
        "decode threads": known.decode_threads, "torch": torch.__version__,
        "open_clip": open_clip.__version__, "load average": round(os.getloadavg()[0], 1),
    }  # fmt: skip
