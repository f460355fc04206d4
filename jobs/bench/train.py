"""`pairmill bench train`: samples a second, FLOPs, utilisation and memory of a training step.

    pairmill bench train --recipe albef --size base --image_size 224 --batch_size 128      # one GPU
    pairmill bench train --recipe albef --size tiny --batch_size 16 --steps 5              # any CPU
    pairmill bench train ... --shards shards --workers 8     # fed by the loader instead of from memory
    pairmill bench train ... --profile profile.txt           # where the time of a step goes
    pairmill bench train ... --compare_precision             # the curves of float32 and bfloat16

The steps are the trainer's own: teacher, both passes, gradient clipping, optimizer. Under torchrun, every
process takes part and the figures are those of all. On a CPU seconds are those in which its threads were
busy, because a machine that others use stretches the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.training.config import TrainConfig, ZeroConfig, check
from models.training.launch import free_port, worker_environment
from pipeline.errors import ConfigError


def main(argv: Sequence[str]) -> int:
    """Prints one table; returns 0."""
    options = _parser().parse_args(list(argv))
    if options.steps < 1 or options.warmup < 0:
        raise ConfigError(
            f"--steps {options.steps} must be at least 1, and --warmup {options.warmup} at least 0"
        )
    try:
        if options.compare_precision:
            return _compare(list(argv), options)
        with tempfile.TemporaryDirectory(prefix="pairmill-bench-") as folder:
            config = _config(options, folder)
            check(config)
            _stand_alone()
            from jobs.bench.train_run import measure  # imports torch, so not before

            figures = measure(config, options)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if int(os.environ["RANK"]) == 0:
        print(_table(figures))
        if options.json:
            Path(options.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pairmill bench train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--recipe", default="albef")
    add("--size", default="tiny")
    add("--model", type=json.loads, default={}, help="dimensions to change, as JSON")
    add("--image_size", type=int, help="pixels of a side, instead of the size's own")
    add("--tokens", type=int, help="tokens of a text, instead of the size's max_text_length")
    add("--batch_size", type=int, default=16, help="pairs in one step, over all processes")
    add("--accumulation", type=int, default=1)
    add("--contrast", default="micro", help="micro or step")
    add("--steps", type=int, default=10)
    add("--warmup", type=int, default=2, help="steps before the measured ones (compilation falls here)")
    add("--precision", default="auto", help="fp32, bf16, or auto: bf16 on a GPU")
    add("--stage", type=int, default=2, help="DeepSpeed ZeRO")
    add("--offload_optimizer", default="none")
    add("--offload_parameters", default="none")
    add("--recompute", action="store_true")
    add("--compile", default="auto", help="auto, on or off")
    add("--lr", type=float, default=1e-4)
    add("--shards", help="feed the steps from these shards, by the trainer's loader")
    add("--tokenizer", default="train", help="with --shards: a tokenizer folder, or train")
    add("--vocab_size", type=int, default=30522, help="with --shards: of a trained tokenizer")
    add("--workers", type=int, default=0, help="with --shards: loader processes")
    add("--peak", type=float, help="peak of the device in TFLOP/s, instead of what is known or measured")
    add("--no_flops", action="store_true", help="do not count operations (a step more, without compilation)")
    add("--profile", help="file for the profiler's table of one more step")
    add("--compare_precision", action="store_true", help="run in float32 and in bfloat16")
    add("--json", help="file for the figures as JSON")
    return parser


def _config(options: argparse.Namespace, folder: str) -> TrainConfig:
    model = dict(options.model)
    if options.image_size:
        model["image_size"] = options.image_size
    if options.tokens:
        model["max_text_length"] = options.tokens
    return TrainConfig(
        shards=options.shards or "-", output=folder, recipe=options.recipe, size=options.size, model=model,
        tokenizer=options.tokenizer, vocab_size=options.vocab_size, batch_size=options.batch_size,
        accumulation=options.accumulation, contrast=options.contrast,
        steps=options.warmup + options.steps + bool(options.profile), lr=options.lr, min_lr=0.0,
        warmup_steps=0, precision=options.precision, recompute=options.recompute, compile=options.compile,
        zero=ZeroConfig(
            stage=options.stage, offload_optimizer=options.offload_optimizer,
            offload_parameters=options.offload_parameters,
        ),
        processes=int(os.environ.get("WORLD_SIZE", 1)), workers=options.workers,
    )  # fmt: skip


def _stand_alone() -> None:
    """The only process of its run, unless torchrun says otherwise."""
    if "WORLD_SIZE" not in os.environ:
        alone = worker_environment(0, 1, free_port())
        os.environ.update({k: v for k, v in alone.items() if k not in ("PYTHONPATH", "PAIRMILL_LAUNCHER")})


def _compare(argv: list[str], options: argparse.Namespace) -> int:
    """The same run in both precisions, each in a process of its own."""
    words = [word for word in argv if word != "--compare_precision"]
    curves: dict[str, list[float]] = {}
    for precision in ("fp32", "bf16"):
        with tempfile.TemporaryDirectory(prefix="pairmill-bench-") as folder:
            result = Path(folder) / "figures.json"
            command = [*words, "--precision", precision, "--json", str(result), "--no_flops"]
            home = str(Path(__file__).resolve().parents[2])
            done = subprocess.run(
                [sys.executable, "-m", "jobs.cli", "bench", "train", *command], cwd=home, check=False
            )
            if done.returncode:
                return done.returncode
            curves[precision] = json.loads(result.read_text())["losses"]
    rows = ["", f"{'step':>6}  {'fp32':>9}  {'bf16':>9}  {'difference':>10}"]
    pairs = list(zip(curves["fp32"], curves["bf16"], strict=True))
    rows += [f"{n:>6}  {a:>9.4f}  {b:>9.4f}  {b - a:>10.4f}" for n, (a, b) in enumerate(pairs, start=1)]
    largest = max(abs(b - a) / abs(a) for a, b in pairs)
    print("\n".join([*rows, f"largest difference {100 * largest:.2f} % of the loss"]))
    if options.json:
        Path(options.json).write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    return 0


def _table(f: dict[str, Any]) -> str:
    rows = [
        ("device", f"{f['device']}, {f['processes']} process(es) of {f['threads']} thread(s)"),
        ("model", f"{f['recipe']} {f['size']}, {f['image_size']} px, {f['tokens']} tokens"),
        (
            "step",
            f"{f['batch_size']} pairs in {f['accumulation']} micro batch(es), {f['precision']}, "
            f"ZeRO {f['zero']}, {'' if f['compiled'] else 'not '}compiled, fed by {f['fed by']}",
        ),
        (
            "samples/s",
            f"{f['samples_per_s']:.2f} by the clock, {f['samples_per_busy_s']:.2f} by busy seconds",
        ),
        ("memory", f"{f['memory_bytes'] / 2**30:.2f} GiB at most"),
        ("loss", f"{f['losses'][0]:.4f} to {f['losses'][-1]:.4f} over {len(f['losses'])} steps"),
    ]
    if "utilisation" in f:
        per = {name: value / 1e9 for name, value in f["flops_per_sample"].items()}
        rows += [
            (
                "GFLOP/sample",
                f"{per['total']:.2f}: teacher {per['teacher']:.2f}, forward {per['forward']:.2f}, backward "
                f"{per['backward']:.2f}",
            ),
            ("TFLOP/s", f"{f['flops_per_s'] / 1e12:.4f} a device"),
            ("peak", f"{f['peak_flops_per_s'] / 1e12:.4f} TFLOP/s ({f['peak_source']})"),
            ("utilisation", f"{100 * f['utilisation']:.1f} %"),
        ]
    return "\n".join(f"{name:<13} {value}" for name, value in rows)
