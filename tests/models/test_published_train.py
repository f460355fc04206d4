"""A training run that starts from a converted checkpoint: the trainer takes what `start_from` gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jobs.train import train
from models.published.reading import Reading, convert
from models.tokenizer import load_tokenizer
from models.training.config import TrainConfig
from tests.models.published_world import bert_tokenizer, config_file, state_dict
from tests.models.toy_shards import write_shards


@pytest.mark.prove
@pytest.mark.prove_ci
def test_a_run_starts_from_a_published_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """At a learning rate of 0 the run must give back the very weights; its tokenizer is the checkpoint's."""
    torch.save({"model": state_dict("albef")}, tmp_path / "x.pth")
    tokenizer = bert_tokenizer(tmp_path / "bert", tokens=300)
    reading = Reading(source="albef", tokenizer=str(tokenizer), size=str(config_file(tmp_path, "albef")))
    convert(tmp_path / "x.pth", tmp_path / "start", reading)
    shards = write_shards(tmp_path / "shards", shards=1, samples=16)
    config = TrainConfig(
        shards=str(shards), output=str(tmp_path / "run"), recipe="albef", init_from=str(tmp_path / "start"),
        batch_size=4, steps=2, lr=0.0, min_lr=0.0, warmup_steps=0, checkpoint_every=0, log_every=1,
        model={"queue_size": 8},
    )  # fmt: skip
    assert train(config) == 0
    said = capfd.readouterr().err
    assert "the teacher of init_from is used" in said
    assert "the queue of init_from does not fit" in said
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("start", "run/model"))
    assert before.keys() == after.keys()
    assert [name for name, value in before.items() if not torch.equal(after[name], value)] == []
    old, new = (load_tokenizer(tmp_path / name / "tokenizer") for name in ("start", "run/model"))
    assert new.tokens(list(range(300))) == old.tokens(list(range(300)))
