"""Benchmarks: `pairmill bench crawl`, `pairmill bench discover`, `pairmill bench train`.

The first two stand beside the field's tools. Both sides run on this machine, on the same input, in turn; the
peer in an environment of its own that the benchmark makes. What is reported is CPU time (user and system, of
every process that took part), as the marginal cost between two sizes, so that start-up drops out, and ratios.
Wall time says little on a shared machine and is not reported.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from pipeline.errors import ConfigError

#: each is a module here with `main(argv) -> exit code`
BENCHMARKS = {
    "crawl": "CPU and memory of a picture, beside img2dataset, over http and https",
    "discover": "CPU of a thousand WAT records, beside cc2dataset",
    "caption": "captions a CPU second, beside transformers writing about a picture at a time",
    "curation": "precision and recall of each stage on planted truths",
    "loader": "CPU of a training sample, beside open_clip's loader",
    "plan": "what a chain of billions of pairs comes to, reckoned from measured figures",
    "near": "recall and precision of near duplicates on planted copies",
    "rows": "CPU and memory of dedup and pack over a million rows, and what they find",
    "score": "pairs a second of the score stage, beside the bare forward pass",
    "train": "samples a second, FLOPs, utilisation and memory of a training step",
}


def main(argv: Sequence[str]) -> int:
    """Runs one benchmark; returns its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<9} {text}" for name, text in BENCHMARKS.items()]
        print("\n".join(["usage: pairmill bench NAME [options]", "", *lines]))
        return 0
    if argv[0] not in BENCHMARKS:
        raise ConfigError(f"unknown benchmark {argv[0]!r}; known: {', '.join(BENCHMARKS)}")
    return importlib.import_module(f"jobs.bench.{argv[0]}").main(list(argv[1:]))
