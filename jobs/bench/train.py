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
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.training.config import TrainConfig, ZeroConfig, check
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from models.batch import Batch
    from models.training.engine import Processes

#: made-up batches that take turns, so that there is something to learn
BATCHES = 4


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
            figures = _measure(config, options)
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


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is measured. step: does one optimizer step and returns its loss; model: the recipe's Config."""

    step: Callable[[int], float]
    model: Any
    compiled: bool


def _measure(config: TrainConfig, options: argparse.Namespace) -> dict[str, Any]:
    from models.training.launch import free_port, worker_environment

    if "WORLD_SIZE" not in os.environ:
        alone = worker_environment(0, 1, free_port())
        os.environ.update({k: v for k, v in alone.items() if k not in ("PYTHONPATH", "PAIRMILL_LAUNCHER")})
    import torch

    from models.recipes import RECIPES
    from models.training.engine import Processes
    from models.training.flops import count_flops, peak_flops, seconds

    processes = Processes(config)
    device = processes.device
    try:
        work = (_fed if options.shards else _made_up)(config, processes)
        losses = [work.step(number) for number in range(options.warmup)]
        processes.barrier()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        clock, busy = time.perf_counter(), seconds(device)
        losses += [work.step(options.warmup + number) for number in range(options.steps)]
        busy, clock = seconds(device) - busy, time.perf_counter() - clock
        memory = _memory(device)
        if options.profile:
            _profile(lambda: work.step(len(losses)), Path(options.profile), device)
        dtype = torch.bfloat16 if processes.bf16 else torch.float32
        samples = options.steps * config.batch_size
        figures: dict[str, Any] = {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
            "processes": processes.world_size,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "recipe": config.recipe,
            "size": config.size,
            "image_size": work.model.image_size,
            "tokens": work.model.max_text_length,
            "batch_size": config.batch_size,
            "accumulation": config.accumulation,
            "precision": "bf16" if processes.bf16 else "fp32",
            "zero": config.zero.stage,
            "compiled": work.compiled,
            "recompute": config.recompute,
            "fed by": "loader" if options.shards else "memory",
            "steps": options.steps,
            "samples_per_s": samples / clock,
            "samples_per_busy_s": samples / busy,
            "memory_bytes": memory,
            "losses": losses,
        }
        if options.no_flops or not processes.is_main:
            return figures
        counted = count_flops(
            RECIPES[config.recipe], work.model, samples=min(4, config.batch_size),
            tokens=work.model.max_text_length, device=device,
        )  # fmt: skip
        peak, source = (options.peak * 1e12, "given") if options.peak else peak_flops(device, dtype)
        achieved = counted.total * samples / busy / processes.world_size
        return figures | {
            "flops_per_sample": {
                "teacher": counted.teacher, "forward": counted.forward, "backward": counted.backward,
                "total": counted.total,
            },
            "flops_per_s": achieved,
            "peak_flops_per_s": peak,
            "peak_source": source,
            "utilisation": achieved / peak,
        }  # fmt: skip
    finally:
        processes.close()


def _made_up(config: TrainConfig, processes: Processes) -> Work:
    """Steps over pairs of noise that lie on the device: the loader has no part in the figures."""
    import torch

    from models.batch import StepContext
    from models.recipes import RECIPES
    from models.training.assemble import resolve_model_config
    from models.training.compiling import compile_system
    from models.training.config import local_batch
    from models.training.engine import Engine
    from models.training.flops import made_up_batch
    from models.training.optim import parameter_groups
    from models.training.step import optimizer_step

    model = resolve_model_config(config, _AnyVocabulary())  # type: ignore[arg-type]
    torch.manual_seed(0)
    system = RECIPES[config.recipe].build(model)
    engine = Engine(processes, system.model, parameter_groups(system.model, weight_decay=config.weight_decay))
    compiled = compile_system(system, config, processes.device)
    system.to(processes.device)
    count = local_batch(config, processes.world_size)
    dtype = torch.bfloat16 if processes.bf16 else None

    def made_up(number: int) -> Batch:
        """One of a few batches; each process and micro batch has its own."""
        seed = (number % (BATCHES * config.accumulation)) * processes.world_size + processes.rank
        batch = made_up_batch(model, samples=count, tokens=model.max_text_length, seed=seed)
        apart = batch.image_id_B + seed * count
        return replace(batch, image_id_B=apart).to(processes.device, image_dtype=dtype)

    held = [made_up(number) for number in range(BATCHES * config.accumulation)]

    def step(number: int) -> float:
        context = StepContext(
            seed=0, step=number, epoch_steps=100, rank=processes.rank, world_size=processes.world_size
        )
        engine.set_learning_rate(config.lr)
        first = (number % BATCHES) * config.accumulation
        group = held[first : first + config.accumulation]
        values = optimizer_step(system, engine, group, context, contrast=config.contrast)
        return float(values["loss"])

    return Work(step=step, model=model, compiled=compiled)


class _AnyVocabulary:
    """In the place of a tokenizer: the vocabulary of the size itself."""

    def fit(self, config: Any) -> Any:
        return config


def _fed(config: TrainConfig, processes: Processes) -> Work:
    """The trainer's own steps, fed by its loader."""
    from models.training.stopping import StopRequest
    from models.training.trainer import Trainer

    folder = Path(processes.broadcast(config.output))
    config = replace(config, output=str(folder))
    trainer = Trainer(config, processes, StopRequest(folder, listen=False))
    batches: Iterator[Any] = iter(trainer._loader())
    compiled = config.compile == "on" or (config.compile == "auto" and processes.device.type == "cuda")
    return Work(
        step=lambda number: float(trainer.step(number, batches)[0]["loss"]),
        model=trainer.system.config,
        compiled=compiled,
    )


def _profile(step: Callable[[], float], path: Path, device: Any) -> None:
    """Writes torch's table of the dearest operations of one step."""
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, record_shapes=True) as found:
        step()
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    table = found.key_averages(group_by_input_shape=True).table(sort_by=order, row_limit=60)
    path.write_text(table, encoding="utf-8")


def _memory(device: Any) -> int:
    """Peak bytes: of the GPU in the measured steps, or of this process since it began."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "CPU"


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
