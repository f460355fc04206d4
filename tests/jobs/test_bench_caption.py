"""The caption benchmark: both sides hold one model and write as much; the figures add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jobs.bench import main
from jobs.bench.caption import table
from jobs.bench.caption_model import make_sides
from models.inference.generation import Beam
from pipeline.errors import ConfigError


def test_both_sides_hold_the_same_model(tmp_path: Path) -> None:
    """By greedy search, whose tokens no draw decides; and what they write is as long as asked."""
    sides = make_sides(tmp_path, size="tiny", image_size=32, pictures=2, tokens=9, threads=1, device="cpu")
    ids = sides.model.generate(
        pixel_values=sides.picture_BCHW, do_sample=False, min_length=9, max_length=9, repetition_penalty=1.1
    )
    how = Beam(beams=1, min_length=9, max_length=9, repetition_penalty=1.1, scoring="generated")
    ours = sides.captioner.write(sides.picture_BCHW, how=how)
    assert ours == [[text] for text in sides.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    for texts in (sides.ours(3, batch_size=2, rows=4), sides.theirs(3)):
        assert [len(own) for own in texts] == [3, 3]
        assert all(len(text.split()) <= 8 for own in texts for text in own)
        assert len({text for own in texts for text in own}) == 6
    assert torch.get_num_threads() == 1


def test_a_run_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["caption", "--size", "tiny", "--image_size", "32", "--pictures", "2", "--tokens", "8"]
    more = ["--candidates", "1", "5", "--repeats", "2", "--json", str(tmp_path / "figures.json")]
    assert main([*words, *more]) == 0
    assert "| 5 |" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    for found, candidates in zip(figures, (1, 5), strict=True):
        assert found["candidates"] == candidates
        assert len(found["times_by_repeat"]) == len(found["cpu_s"]["pairmill"]) == 2
        rate = found["captions_per_s"]
        assert found["times"] == pytest.approx(rate["pairmill"] / rate["transformers"])
    assert len(table(figures).splitlines()) == 4


def test_bad_numbers_are_refused() -> None:
    for words in (["--pictures", "0"], ["--candidates", "0"], ["--tokens", "1"], ["--repeats", "0"]):
        with pytest.raises(ConfigError, match="at least"):
            main(["caption", *words])
