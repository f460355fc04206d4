"""What `pairmill bench train` measures, in one of the connected processes of a run."""

from __future__ import annotations

import resource
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from models.batch import Batch, StepContext
from models.recipes import RECIPES
from models.training.assemble import resolve_model_config
from models.training.compiling import compile_system
from models.training.config import TrainConfig, local_batch
from models.training.engine import Engine, Processes
from models.training.flops import count_flops, made_up_batch, peak_flops, seconds
from models.training.optim import parameter_groups
from models.training.step import optimizer_step
from models.training.stopping import StopRequest
from models.training.trainer import Trainer

#: made-up batches that take turns, so that there is something to learn
BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is measured. step: does one optimizer step and returns its loss; model: the recipe's Config."""

    step: Callable[[int], float]
    model: Any
    compiled: bool


def measure(config: TrainConfig, options: Namespace) -> dict[str, Any]:
    """Runs the steps; the figures of the main process are whole."""
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
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "CPU"
