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
from models.training.optim import build_optimizer

ROOT = Path(__file__).resolve().parents[2]


def plain_torch() -> list[float]:
    """The same three steps, without Accelerate, DeepSpeed or accumulation."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(4, 1)
    scale = torch.nn.Parameter(torch.tensor(2.0))
    model = torch.nn.ParameterDict({"w": linear.weight, "b": linear.bias, "s": scale})
    optimizer = build_optimizer(model, lr=0.1, weight_decay=0.1, betas=(0.9, 0.98), fused=False)
    for step in range(3):
        pixels = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (step + 1)
        loss = (torch.nn.functional.linear(pixels, model["w"], model["b"]) * model["s"] - 1).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in (scale, linear.weight, linear.bias)]).tolist()


def test_stages_and_accumulation_step_as_plain_torch_does(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.models.accumulation_check", str(tmp_path)],
        env={**os.environ, **worker_environment(0, 1, free_port())},
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    expected = plain_torch()
    assert set(found) == {"0/1", "0/2", "1/1", "1/2", "2/1", "2/2"}
    for name, weights in found.items():
        assert weights == pytest.approx(expected, abs=1e-5), name
