"""Writes tests/models/data/beams_transformers_4_15.json: what the beam search of BLIP's published code finds.

That code runs on transformers 4.15, which no longer installs; its scorer and its processors are plain Python:

    pip download --no-deps transformers==4.15.0 -d DIR && unzip DIR/*.whl 'transformers/generation*' -d DIR
    python -m tests.fidelity.make_beams DIR/transformers

The loop below is what `generation_utils.beam_search` does with them.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import logging
import sys
import types
from pathlib import Path
from typing import Any

import torch

from tests.models.toy_language import END, WORDS, tables

OUT = Path(__file__).parents[1] / "models" / "data" / "beams_transformers_4_15.json"
PICTURES = 4
SETTINGS = [
    {"beams": 3, "min_length": 5, "max_length": 20},
    {"beams": 3, "min_length": 10, "max_length": 20},
    {"beams": 5, "min_length": 5, "max_length": 16, "repetition_penalty": 1.2},
    {"beams": 2, "min_length": 0, "max_length": 8, "length_penalty": 2.0},
    {"beams": 4, "min_length": 3, "max_length": 9, "length_penalty": 0.5, "repetition_penalty": 1.5},
]


def load(folder: Path) -> tuple[Any, Any]:
    """The two modules, with stand-ins for the decorators and the logger that they import."""
    package = types.ModuleType("old")
    package.__path__ = [str(folder)]
    stubs = {
        "old": package,
        "old.file_utils": types.SimpleNamespace(add_start_docstrings=lambda *a, **k: lambda x: x),
        "old.utils": types.ModuleType("old.utils"),
        "old.utils.logging": types.SimpleNamespace(get_logger=logging.getLogger),
    }
    sys.modules.update(stubs)  # type: ignore[arg-type]
    found = []
    for name in ("generation_beam_search", "generation_logits_process"):
        spec = importlib.util.spec_from_file_location(f"old.{name}", folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.append(module)
    return found[0], found[1]


def search(
    modules: tuple[Any, Any], seed: int, end: float, first: list[int], how: dict[str, Any]
) -> list[list[int]]:
    scoring, processing = modules
    numbers = tables(seed, pictures=PICTURES, end=end)
    of_picture, of_last, of_other = (torch.from_numpy(t).float() for t in numbers)
    beams = how["beams"]
    processors = []
    if how.get("repetition_penalty", 1.0) != 1.0:
        processors.append(processing.RepetitionPenaltyLogitsProcessor(how["repetition_penalty"]))
    processors.append(processing.MinLengthLogitsProcessor(how["min_length"], END))
    scorer = scoring.BeamSearchScorer(
        batch_size=PICTURES, num_beams=beams, device="cpu", length_penalty=how.get("length_penalty", 1.0)
    )
    ids = torch.tensor([first] * (PICTURES * beams))
    picture = torch.arange(PICTURES).repeat_interleave(beams)
    scores = torch.zeros(PICTURES, beams)
    scores[:, 1:] = -1e9
    scores = scores.flatten()
    while True:
        other = ids[:, -2] if ids.shape[1] > 1 else ids[:, -1]
        logits = of_picture[picture] + of_last[ids[:, -1]] + of_other[other]
        following = logits.log_softmax(-1)
        for processor in processors:
            following = processor(ids, following)
        following = (following + scores[:, None]).view(PICTURES, beams * WORDS)
        best, tokens = following.topk(2 * beams, dim=1)
        indices, tokens = tokens // WORDS, tokens % WORDS
        out = scorer.process(ids, best, tokens, indices, pad_token_id=0, eos_token_id=END)
        scores = out["next_beam_scores"]
        ids = torch.cat([ids[out["next_beam_indices"]], out["next_beam_tokens"][:, None]], dim=1)
        if scorer.is_done or ids.shape[1] >= how["max_length"]:
            break
    found = scorer.finalize(
        ids, scores, tokens, indices, max_length=how["max_length"], pad_token_id=0, eos_token_id=END
    )["sequences"].tolist()
    texts = [row[len(first) :] for row in found]
    return [text[: text.index(END)] if END in text else text for text in texts]


def main(folder: str) -> None:
    modules = load(Path(folder))
    cases = [
        {"seed": seed, "end": end, "first": first, "how": how,
         "texts": search(modules, seed, end, first, how)}
        for seed, end, first, how in itertools.product(
            range(4), (1.0, 3.0), ([1], [1, 7, 8, 9]), SETTINGS
        )
    ]  # fmt: skip
    about = "What BeamSearchScorer of transformers 4.15 finds in the language of tests/models/toy_language.py"
    OUT.write_text(json.dumps({"about": about, "pictures": PICTURES, "cases": cases}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
