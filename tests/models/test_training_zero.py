"""Two gloo processes: every way to spread the training state gives one curve and one exported model; plain
torch's answer on a small model.
"""

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
Curve = list[list[float]]
Found = tuple[dict[str, Curve], dict[str, dict[str, torch.Tensor]]]

#: what is run each time; the rest is in the proof
CASES = [
    "toy",
    "clip 0",
    "clip 3 offloaded resumed",
    "clip 2 step",
    "clip 2 whole",
    "albef 0",
    "albef 2 bf16",
]
MORE = [
    "clip 0", "clip 1", "clip 2", "clip 3", "clip 3 resumed", "clip 3 offloaded", "clip 3 recomputed",
    "clip 3 bf16", "clip 3 bf16 offloaded resumed", "clip 0 bf16",
    "vlmo 0", "vlmo 2", "vlmo 3", "vlmo 3 offloaded resumed",
    "clip 3 offloaded switched resumed", "albef 2 offloaded switched resumed",
    "albef 0", "albef 1", "albef 2", "albef 1 offloaded",
    "albef 2 offloaded recomputed", "albef 2 resumed", "albef 0 bf16", "albef 1 bf16",
    "albef 2 bf16", "albef 2 bf16 resumed", "albef 2 bf16 offloaded resumed", "albef 0 bf16 resumed",
]  # fmt: skip


def run(folder: Path, cases: list[str]) -> Found:
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.models.zero_check", str(folder), *cases],
            env={**os.environ, **worker_environment(rank, 2, port)},
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [rank.communicate(timeout=900) for rank in ranks]
    errors = "".join(stderr[-2500:] for _, stderr in said)
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    return json.loads((folder / "curves.json").read_text()), torch.load(folder / "weights.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return run(tmp_path_factory.mktemp("zero"), CASES)


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat(
        [weights[name].flatten() for name in sorted(weights) if weights[name].is_floating_point()]
    )


def assert_same(found: Found, case: str, reference: str, tolerance: float = 2e-6) -> None:
    """Equal losses and gradient norms; weights that differ by little beside their size (AdamW turns a
    gradient that is noise around zero, as of a key's bias, into a whole step)."""
    curves, weights = found
    for ours, theirs in zip(curves[case], curves[reference], strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance), case
    ours, theirs = flat(weights[case]), flat(weights[reference])
    assert weights[case].keys() == weights[reference].keys()
    assert (ours - theirs).norm() < 3e-3 * theirs.norm(), case


def test_stage_3_offloaded_and_resumed_is_stage_0(found: Found) -> None:
    assert_same(found, "clip 3 offloaded resumed", "clip 0")
    curve = [loss for loss, _ in found[0]["clip 0"]]
    assert max(curve) - min(curve) > 0.1, "nothing was learnt, so equal curves say nothing"


def test_contrast_over_the_step_is_that_of_one_large_batch(found: Found) -> None:
    assert_same(found, "clip 2 step", "clip 2 whole")
    assert found[0]["clip 2 step"][0][0] > found[0]["clip 0"][0][0] + 0.3, "twice the candidates"


def assert_near(found: Found, rounded: str, full: str) -> None:
    """bfloat16 beside float32: near in loss, and float32 masters that hold more than bfloat16 can."""
    for ours, theirs in zip(found[0][rounded], found[0][full], strict=True):
        assert ours[0] == pytest.approx(theirs[0], rel=1e-2)
    weights = found[1][rounded]
    for name in ("vision.blocks.0.feed_forward.up.weight", "text_projection.weight"):
        if name in weights:
            assert not torch.equal(weights[name], weights[name].bfloat16().float()), name
    assert all(w.dtype == torch.float32 for w in weights.values() if w.is_floating_point())


def test_bfloat16_is_near_float32_and_exports_its_masters(found: Found) -> None:
    assert_near(found, "albef 2 bf16", "albef 0")


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


def test_stages_accumulation_and_offload_step_as_plain_torch_does(found: Found) -> None:
    full = {name: weights for name, weights in found[1]["toy"].items() if name.endswith("fp32")}
    assert {name.partition("/")[0] for name in full} == {"0", "1", "2", "3"}
    expected = plain_torch()
    for name, weights in full.items():
        assert weights == pytest.approx(expected, abs=1e-6), name


def test_bfloat16_keeps_float32_masters_at_every_stage(found: Found) -> None:
    rounded = {name: weights for name, weights in found[1]["toy"].items() if name.endswith("bf16")}
    assert {name.partition("/")[0] for name in rounded} == {"0", "1", "2", "3"}
    expected = plain_torch()
    for name, weights in rounded.items():
        # gradients are rounded to 8 bits of mantissa; the first step's size is 0.1 for each weight
        assert weights == pytest.approx(expected, abs=2e-3), name
        assert weights == pytest.approx(rounded["0/2//bf16"], abs=1e-3), name
        coarse = torch.tensor(weights).bfloat16().float().tolist()
        assert weights != coarse, f"{name}: the weights are those of bfloat16"


@pytest.mark.prove
@pytest.mark.timeout(1000)
def test_every_stage_and_offload_agree(tmp_path: Path) -> None:
    found = run(tmp_path, MORE)
    for case in MORE:
        recipe, _, *words = case.split()
        if "bf16" in words:
            assert_near(found, case, f"{recipe} 0")
        else:
            assert_same(found, case, f"{recipe} 0")
    for case in ("albef 2 bf16", "albef 2 bf16 offloaded", "albef 0 bf16"):
        again = f"{case} resumed"
        assert_same(found, again, case.replace(" offloaded", ""), 1e-6 if "offloaded" not in case else 1e-2)
