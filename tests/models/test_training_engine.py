"""DeepSpeed's stages and gradient accumulation against plain torch, on a model whose answer is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.training.launch import free_port, worker_environment
from models.training.optim import build_optimizer, parameter_groups

ROOT = Path(__file__).resolve().parents[2]


def plain_torch() -> list[float]:
    """The same three steps, without Accelerate, DeepSpeed or accumulation."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(4, 1)
    scale = torch.nn.Parameter(torch.tensor(2.0))
    model = torch.nn.ParameterDict({"w": linear.weight, "b": linear.bias, "s": scale})
    groups = parameter_groups(model, weight_decay=0.1, multipliers={"b": 0.5})
    optimizer = build_optimizer(groups, lr=0.1, betas=(0.9, 0.98), fused=False)
    for step in range(3):
        pixels = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (step + 1) * group["lr_scale"]
        loss = (torch.nn.functional.linear(pixels, model["w"], model["b"]) * model["s"] - 1).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in (scale, linear.weight, linear.bias)]).tolist()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    result = subprocess.run(
        [sys.executable, "-m", "tests.models.accumulation_check", str(tmp_path_factory.mktemp("runs"))],
        env={**os.environ, **worker_environment(0, 1, free_port())},
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_stages_accumulation_and_offload_step_as_plain_torch_does(found: dict[str, list[float]]) -> None:
    full = {name: weights for name, weights in found.items() if name.endswith("fp32")}
    plain = {f"{stage}/{accumulation}//fp32" for stage in range(4) for accumulation in (1, 2)}
    offloaded = {f"{stage}/2/optimizer/fp32" for stage in (1, 2, 3)} | {"3/2/all/fp32"}
    assert set(full) == plain | offloaded
    expected = plain_torch()
    for name, weights in full.items():
        assert weights == pytest.approx(expected, abs=1e-6), name


def test_bfloat16_keeps_float32_masters_at_every_stage(found: dict[str, list[float]]) -> None:
    rounded = {name: weights for name, weights in found.items() if name.endswith("bf16")}
    assert {name.partition("/")[0] for name in rounded} == {"0", "1", "2", "3"}
    expected = plain_torch()
    for name, weights in rounded.items():
        # gradients are rounded to 8 bits of mantissa; the first step's size is 0.1 for each weight
        assert weights == pytest.approx(expected, abs=2e-3), name
        assert weights == pytest.approx(rounded["0/2//bf16"], abs=1e-6), name
        coarse = torch.tensor(weights).bfloat16().float().tolist()
        assert weights != coarse, f"{name}: the weights are those of bfloat16"
