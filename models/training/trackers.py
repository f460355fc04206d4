"""Where a run's figures go besides metrics.jsonl: TensorBoard, Weights & Biases; through Accelerate.

A run that is resumed goes on in the same tracker run. TensorBoard drops what it holds beyond the checkpoint;
Weights & Biases finds its run by the id in `wandb.json` of the run folder. Without a key (WANDB_API_KEY, or
`wandb login`) it writes offline, into `wandb/`, and `wandb sync` uploads that later.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.training.config import TrainConfig

JSONL, TENSORBOARD, WANDB = "jsonl", "tensorboard", "wandb"


def make_trackers(config: TrainConfig, *, first_step: int) -> list[Any]:
    """Accelerate's trackers, not started yet; metrics.jsonl is written anyhow (`models.training.metrics`).

    Args:
        first_step: optimizer steps done before; what was logged beyond them is logged again.
    """
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    folder = Path(config.output)
    found: list[Any] = []
    if TENSORBOARD in config.trackers:
        found.append(TensorBoardTracker(TENSORBOARD, logging_dir=str(folder), purge_step=first_step + 1))
    if WANDB in config.trackers:
        found.append(
            WandBTracker(
                "pairmill",
                dir=str(folder),
                id=run_id(folder),
                name=folder.name,
                resume="allow",
                mode=wandb_mode(os.environ),
                settings={"save_code": False, "disable_git": True, "silent": True},
                config={"recipe": config.recipe, "size": config.size, "batch_size": config.batch_size},
            )
        )
    return found


def run_id(folder: Path) -> str:
    """The id that Weights & Biases knows this run by; made once."""
    path = folder / "wandb.json"
    if not path.is_file():
        temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temp.write_text(json.dumps({"id": secrets.token_hex(8)}), encoding="utf-8")
        temp.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))["id"]


def wandb_mode(environment: Any) -> str:
    """What WANDB_MODE says; else `offline` where there is no key, so that nothing asks for one."""
    if mode := environment.get("WANDB_MODE"):
        return str(mode)
    netrc = Path(environment.get("NETRC") or Path.home() / ".netrc")
    known = environment.get("WANDB_API_KEY") or (netrc.is_file() and "wandb" in netrc.read_text("utf-8"))
    return "online" if known else "offline"


def check_trackers(names: Sequence[str]) -> None:
    """Refuses what Accelerate would leave out in silence: raises ValueError for a tracker that is unknown or
    not installed."""
    for name in names:
        if name not in (JSONL, TENSORBOARD, WANDB):
            raise ValueError(f"trackers {name!r}: use {JSONL}, {TENSORBOARD} or {WANDB}")
        if name != JSONL and importlib.util.find_spec(name) is None:
            raise ValueError(
                f"trackers {name}: the package is not installed; pip install {name}, or leave it out"
            )
