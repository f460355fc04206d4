"""How many floating point operations a sample costs, counted by running the model, and what a device can do.

Model FLOPs: matrix products and convolutions of forward and backward pass (two for a product and a sum), as
the losses ask for them; what is computed twice to save memory counts once. Attention counts whole score
matrices, causal or not. The teacher has a forward pass only. Utilisation is these, per second, over the peak.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.batch import Batch, StepContext

#: dense bfloat16 peak by a part of the device's name, FLOP/s; the data sheets of the makers. Longest first.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "A40": 149.7e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations of one sample: the teacher's forward pass, the student's forward and backward pass."""

    teacher: float
    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.teacher + self.forward + self.backward


def count_flops(recipe: ModuleType, config: Any, *, samples: int, tokens: int, device: torch.device) -> Flops:
    """Counts one step of a fresh model on made-up pairs; takes as long as that step does.

    Args:
        samples: batch that is counted; a queue counts as full.
        tokens: tokens of each text.
    """
    if hasattr(config, "gradient_checkpointing"):
        config = replace(config, gradient_checkpointing=False)
    system = recipe.build(config)
    system.model.to(device)
    system.to(device)
    if hasattr(system, "queue"):
        system.queue.filled = system.queue.length
    batch = made_up_batch(config, samples=samples, tokens=tokens, seed=0).to(device)
    context = StepContext(seed=0, step=1)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels are known to the counter on some devices only
        with FlopCounterMode(display=False) as teacher, torch.no_grad():
            [extras] = system.prepare([batch], context)
        with FlopCounterMode(display=False) as forward:
            loss = system.model(batch, context, extras)["loss"]
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    parts = (counter.get_total_flops() / samples for counter in (teacher, forward, backward))
    return Flops(**dict(zip(("teacher", "forward", "backward"), parts, strict=True)))


def made_up_batch(config: Any, *, samples: int, tokens: int, seed: int) -> Batch:
    """Pairs of noise that all differ: full texts of `tokens` random ids that are no special ones."""
    g = torch.Generator().manual_seed(seed)
    first = min(config.vocab_size - 1, 1000) if config.vocab_size > 2000 else 5
    size = config.image_size
    return Batch(
        image_BCHW=torch.randn(samples, 3, size, size, generator=g),
        text_ids_BT=torch.randint(first, config.vocab_size, (samples, tokens), generator=g),
        text_mask_BT=torch.ones(samples, tokens, dtype=torch.int64),
        image_id_B=torch.arange(samples),
    )


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """(FLOP/s, where it is from): the data sheet for bfloat16 on a known GPU, else a measured product."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part in sorted(PEAKS, key=len, reverse=True):
            if part in name:
                return PEAKS[part], f"data sheet of {part}"
    return measured_peak(device, dtype), "largest measured matrix product"


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of several; on a CPU by CPU time of all threads together.

    CPU time, because a shared machine stretches the clock; it is that of one core times the threads.
    """
    cuda = device.type == "cuda"
    size = 8192 if cuda else 1536
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(10 if cuda else 4):
        before = seconds(device)
        for _ in range(10 if cuda else 1):
            a @ b
        best = max(best, (10 if cuda else 1) * 2.0 * size**3 / (seconds(device) - before))
    return best


def seconds(device: torch.device) -> float:
    """The clock, once a GPU has done what it was given; of a CPU the time that its threads were busy, per
    thread."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()
