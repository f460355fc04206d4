"""The one file that knows Accelerate and DeepSpeed: processes, ZeRO, the optimizer step, engine state.

What it hides, found by running accelerate 1.15 with deepspeed 0.19:

- Accelerate reaches DeepSpeed on a CPU only with ACCELERATE_USE_DEEPSPEED set, `cpu=` left alone and gloo
  asked for; anything else silently trains unconnected copies. Both are asserted here.
- DeepSpeed compiles its shared-memory communication when it starts on a CPU (about a minute, and a
  compiler must be there). Only tensor-parallel inference uses it, so it is declared unavailable. AdamW is
  torch's own, which needs no compilation either.
- Parameters without dimensions (temperatures) break DeepSpeed twice: its first broadcast views them as
  bytes (`models.training.scalars`), and its clipping at stage 0 multiplies them by a vector: it is done here.
- DeepSpeed makes the float32 masters of bfloat16 weights from weights that it has rounded before. They are
  set to what the weights were.
- Offload wants DeepSpeed's own Adam for the CPU, which is compiled on first use. torch's fused AdamW steps on
  the CPU as well and needs no compiler.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.batch import Batch, StepContext
from models.training.combinations import TEACHERS
from models.training.config import TrainConfig, ZeroConfig, local_batch
from models.training.optim import SCALE, build_optimizer
from models.training.scalars import scalars_as_vectors
from models.training.stopping import TrainingError
from models.training.trackers import make_trackers
from models.training.universal import loading_universal, scalar_names, universal_info
from models.training.weights import WholeModel, masters, set_masters

log = logging.getLogger(__name__)

TAG = "engine"
NO_LIMIT = 2**62


class LossModule(nn.Module):
    """What DeepSpeed wraps: gives the loss alone a gradient, so that values for the log get no hooks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.universal_checkpoint_info = universal_info(self)  # DeepSpeed saves it with each checkpoint

    def forward(
        self, batch: Batch, context: StepContext, extras: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        losses = self.model(batch, context, extras)
        return losses["loss"], {name: value.detach() for name, value in losses.items()}


class Processes:
    """The connected processes of a run, before there is a model.

    Attributes: rank, world_size, is_main, device, bf16.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.world_size = int(os.environ["WORLD_SIZE"])
        self.config = config
        gpu = torch.cuda.is_available()
        self.bf16 = check_devices(config)
        self.accelerator = _connect(config, self.world_size, gpu=gpu, bf16=self.bf16)
        self.rank: int = self.accelerator.process_index
        self.is_main = self.rank == 0
        self.device: torch.device = self.accelerator.device
        # flags and counts travel over gloo, so that looking at them never waits for a GPU
        self.flags: Any = dist.new_group(backend="gloo") if gpu else dist.group.WORLD

    def barrier(self) -> None:
        dist.barrier(group=self.flags)

    def sum(self, values: list[float]) -> list[float]:
        """Sums over the processes, in float64."""
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.flags)
        return tensor.tolist()

    def broadcast(self, value: Any) -> Any:
        """The main process's value."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.flags)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value, group=self.flags)
        return found

    def start_trackers(self, *, first_step: int) -> None:
        """TensorBoard and Weights & Biases, as far as wanted; they go on after `first_step`."""
        self.accelerator.log_with = make_trackers(self.config, first_step=first_step)
        self.accelerator.init_trackers("pairmill")

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        self.accelerator.log(dict(values), step=step)

    def close(self) -> None:
        self.accelerator.end_training()
        if dist.is_initialized():
            dist.destroy_process_group()


class Engine:
    """A model with its optimizer, spread over the processes by DeepSpeed."""

    def __init__(self, processes: Processes, model: nn.Module, groups: list[dict[str, Any]]) -> None:
        """`groups` are those of `optim.parameter_groups`."""
        config = processes.config
        self.processes = processes
        self.accumulation = config.accumulation
        self.has_teacher = config.recipe in TEACHERS
        self.model = model
        self.clips_here = clips_here(processes.config, bf16=processes.bf16)
        self.norm: Tensor | None = None
        zero = processes.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        elements = sum(p.numel() for p in model.parameters() if p.requires_grad)
        for bucket in ("reduce_bucket_size", "allgather_bucket_size"):
            # DeepSpeed allocates whole buckets: half a billion elements by default, for any model; and it
            # wants an even number of them
            zero[bucket] = min(elements // 1024 + 1, 100_000) * 1024
        rounded = processes.bf16
        self.whole = WholeModel(model) if rounded or config.zero.stage == 3 else None
        initial = {name: p.detach().clone() for name, p in model.named_parameters()} if rounded else {}
        # the step runs where the optimizer's state is kept; torch has one kernel for either place
        optimizer = build_optimizer(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
        with scalars_as_vectors():
            self.engine, _ = processes.accelerator.prepare(LossModule(model), optimizer)
        if rounded:
            set_masters(model, self.engine, initial)

    def losses(
        self, batch: Batch, context: StepContext, extras: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and all values for the log, without gradient."""
        return self.engine(batch, context, extras)

    def backward_and_step(self, loss: Tensor) -> None:
        """Back-propagates; at the end of an accumulation also clips and steps."""
        self.engine.backward(loss)
        if self.clips_here and self.engine.is_gradient_accumulation_boundary():
            limit = self.processes.config.clip_grad or math.inf
            self.norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.engine.step()

    def set_learning_rate(self, lr: float) -> None:
        """Sets the step's rate; each group has its factor on it."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr * group[SCALE]

    @contextlib.contextmanager
    def whole_model(self) -> Iterator[nn.Module]:
        """The model with whole float32 weights, for a momentum teacher and for the export.

        Every process enters it. The model itself where its weights are whole and float32; otherwise a copy
        that exists for the time of the block.
        """
        if self.whole is None:
            yield self.model
        else:
            with torch.no_grad(), self.whole.filled(self.model, masters(self.model, self.engine)) as module:
                yield module

    def gradient_norm(self) -> float | None:
        """Of the last step, before clipping; None where DeepSpeed does not keep it."""
        norm = self.norm if self.clips_here else self.engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def save(self, folder: Path) -> None:
        """Every process writes its part into `folder/engine`."""
        self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)

    @property
    def scalars(self) -> list[str]:
        """Parameters without dimensions, by the names that the checkpoint has for them."""
        return [f"model.{name}" for name in scalar_names(self.model)]

    def load(self, folder: Path, *, step: int, universal: bool = False) -> None:
        """Loads what `save` wrote; every process calls it.

        Args:
            step: optimizer steps that the checkpoint must hold.
            universal: `folder` holds the form for any number of processes (`models.training.universal`).

        Raises:
            TrainingError: DeepSpeed finds nothing it can load, or another step. It says neither.
        """
        with loading_universal(self.engine) if universal else contextlib.nullcontext():
            loaded, _ = self.engine.load_checkpoint(str(folder), tag=TAG)
        if loaded is None or self.engine.global_steps != step:
            found = "nothing" if loaded is None else f"step {self.engine.global_steps}"
            raise TrainingError(
                f"{folder}: DeepSpeed loaded {found} instead of step {step}; delete this checkpoint to go "
                "back to the one before"
            )


def _connect(config: TrainConfig, world_size: int, *, gpu: bool, bf16: bool) -> Any:
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    if not gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed.ops
    from accelerate import Accelerator, DeepSpeedPlugin, DistributedType, InitProcessGroupKwargs

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not gpu:
        # looked up by DeepSpeed before it compiles an operator; an empty table says that none can be built
        vars(deepspeed.ops)["__compatible_ops__"] = {}
    plugin = DeepSpeedPlugin(hf_ds_config=deepspeed_config(config, world_size, bf16=bf16))
    accelerator = Accelerator(
        deepspeed_plugin=plugin,
        gradient_accumulation_steps=config.accumulation,
        mixed_precision="bf16" if bf16 else "no",
        project_dir=config.output,
        kwargs_handlers=[] if gpu else [InitProcessGroupKwargs(backend="gloo")],
    )
    assert accelerator.distributed_type is DistributedType.DEEPSPEED, accelerator.distributed_type
    assert accelerator.num_processes == world_size, (
        f"{accelerator.num_processes} connected, {world_size} started"
    )
    return accelerator


def check_devices(config: TrainConfig) -> bool:
    """Whether this machine computes in bfloat16, before anything is connected or built.

    Raises:
        ValueError: more processes than GPUs, or GPUs without bfloat16.
    """
    if not torch.cuda.is_available():
        return config.precision == "bf16"  # a CPU can, slowly: to see what rounding does to a curve
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if here > gpus:
        raise ValueError(
            f"processes {here}: this machine shows {gpus} GPUs, one for each process; use --processes {gpus}"
        )
    able = torch.cuda.is_bf16_supported(including_emulation=False)
    if config.precision == "bf16" and not able:
        raise ValueError(
            f"precision bf16: {torch.cuda.get_device_name()} has no bfloat16; use --precision fp32"
        )
    return able and config.precision != "fp32"


def clips_here(config: TrainConfig, *, bf16: bool) -> bool:
    """Whether gradients are whole and plain, so that torch clips them."""
    return config.zero.stage == 0 and not bf16


def deepspeed_config(config: TrainConfig, world_size: int, *, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's own configuration for this run."""
    return {
        "train_micro_batch_size_per_gpu": local_batch(config, world_size),
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": 0.0 if clips_here(config, bf16=bf16) else config.clip_grad,
        "zero_optimization": _zero_config(config.zero),
        "bf16": {"enabled": bf16},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": NO_LIMIT,
    }


def _zero_config(zero: ZeroConfig) -> dict[str, Any]:
    found: dict[str, Any] = {"stage": zero.stage, "overlap_comm": False, "contiguous_gradients": True}
    pinned = torch.cuda.is_available()
    if zero.offload_optimizer != "none":
        found["offload_optimizer"] = {"device": zero.offload_optimizer, "pin_memory": pinned}
    if zero.offload_parameters != "none":
        found["offload_param"] = {"device": zero.offload_parameters, "pin_memory": pinned}
    return found
