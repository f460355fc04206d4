"""Does CapFilt help? BLIP's whole loop on scenes whose truth is known, beside the noisy and the clean set.

    python -m jobs.demo.capfilt --seeds 3 --folder capfilt-run
    python -m jobs.demo.capfilt --seeds 1 --arms raw,bootstrapped

For each seed a small web is painted of which 40 % of the captions are shuffled, and `capfilt.yaml` beside
this file runs on it: the commands that serve the web. Then `FOLDER/seed-N/capfilt.json` holds what each
model can do on held-out scenes, and what captioner and filter did against the truth; `FOLDER/capfilt.json`
holds all seeds. Start it again and it goes on; what is finished is not done again. docs/bootstrapping.md has
the figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.chain import Step, load_chain, run_chain
from jobs.demo.capfilt_figure import draw
from jobs.demo.capfilt_table import table
from jobs.demo.capfilt_truth import judge_filter
from jobs.demo.capfilt_world import WorldSize, build_capfilt_world
from jobs.demo.objects import load_things
from pipeline import columns, storage
from pipeline.errors import ConfigError

CHAIN = Path(__file__).with_name("capfilt.yaml")
#: model -> the steps that only it needs; every other step of the chain is always run
ARMS = {
    "raw": (),
    "bootstrapped": ("bootstrapped",),
    "filtered": ("pack_filtered", "filtered"),
    "clean": ("right", "clean"),
}
RESULT = "capfilt.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run for each seed: sizes of the world, optimizer steps of each pre-training and tuning, least
    probability of a text, models."""

    size: WorldSize = field(default_factory=WorldSize)
    steps: int = 400
    tune_steps: int = 150
    threshold: float = 0.5
    arms: tuple[str, ...] = tuple(ARMS)


#: a filter that has learnt nothing says 1/3, the share of matched pairs in its training: all may pass
QUICK = Plan(size=WorldSize(web=160, human=40, heldout=40), steps=12, tune_steps=6, threshold=0.0)


def main(argv: Sequence[str]) -> int:
    """Runs the chain once for each seed; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo.capfilt", description="Does CapFilt help?")
    parser.add_argument("--folder", default="capfilt-run", help="where everything is written")
    parser.add_argument("--seeds", type=int, default=3, help="how many worlds, each with seeds of its own")
    parser.add_argument("--arms", default=",".join(ARMS), help="which models, separated by commas")
    parser.add_argument("--docs", help="documentation folder that gets the figure, in bootstrapping.svg")
    parser.add_argument("--quick", action="store_true", help="a few steps on a few pictures; learns nothing")
    known = parser.parse_args(list(argv))
    arms = tuple(known.arms.split(","))
    if unknown := sorted(set(arms) - ARMS.keys()):
        print(f"capfilt: no model {', '.join(unknown)}; there are {', '.join(ARMS)}", file=sys.stderr)
        return 2
    if known.seeds < 1:
        print(f"capfilt: --seeds {known.seeds} must be at least 1", file=sys.stderr)
        return 2
    plan = replace(QUICK if known.quick else Plan(), arms=arms)
    try:
        seeds = range(1, known.seeds + 1)
        return experiment(plan, Path(known.folder).absolute(), seeds=seeds, docs=known.docs)
    except ConfigError as error:
        print(f"capfilt: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("capfilt: stopped; run it again and it goes on", file=sys.stderr)
        return 75


def experiment(plan: Plan, folder: Path, *, seeds: Sequence[int], docs: str | None = None) -> int:
    """All seeds one after the other, then the table; returns the exit code."""
    results = []
    for seed in seeds:
        root = folder / f"seed-{seed}"
        print(f"== seed {seed} of {len(seeds)}, in {root}", flush=True)
        truth = build_capfilt_world(root / "world", seed=seed, size=plan.size)
        for name, group in groups(load_steps(plan, root, seed=seed)):
            if code := _timed(name, group, root / "took.json"):
                return code
        joined = columns.concat(list(_joined(root)))
        found = {
            "seed": seed,
            "steps": plan.steps,
            "models": {arm: retrieval(root / "runs" / arm / "eval") for arm in plan.arms},
            "filter": judge_filter(joined, truth, load_things(), threshold=plan.threshold),
            "took": json.loads((root / "took.json").read_text()),
        }
        storage.write_bytes(str(root / RESULT), json.dumps(found, indent=1).encode())
        results.append(found)
        print(table([found]), flush=True)
    storage.write_bytes(str(folder / RESULT), json.dumps(results, indent=1).encode())
    print(table(results))
    if docs:
        storage.write_bytes(str(Path(docs) / "bootstrapping.svg"), draw(results).encode())
    return 0


def load_steps(plan: Plan, root: Path, *, seed: int) -> list[Step]:
    """The steps that these models need, with this seed's folder filled in."""
    variables = {
        "root": str(root), "world": str(root / "world"), "seed": str(seed),
        "steps": str(plan.steps), "tune_steps": str(plan.tune_steps), "threshold": str(plan.threshold),
    }  # fmt: skip
    left_out = {name for arm in ARMS.keys() - set(plan.arms) for name in (*ARMS[arm], f"evaluate_{arm}")}
    return [step for step in load_chain(str(CHAIN), variables=variables) if step.name not in left_out]


def groups(steps: Sequence[Step]) -> Iterator[tuple[str, list[Step]]]:
    """Neighbouring stages together, since they share one Ray; every training and evaluation alone."""
    for stage, found in itertools.groupby(steps, key=lambda step: step.verb.stage):
        for group in [list(found)] if stage else [[step] for step in found]:
            yield "+".join(step.name for step in group), group


def _timed(name: str, group: list[Step], place: Path) -> int:
    """Runs steps; notes seconds by the clock and of CPU time (without Ray's workers), over all starts."""
    began, used = time.monotonic(), _cpu_seconds()
    code = run_chain(group)
    took = json.loads(place.read_text()) if place.is_file() else {}
    before = took.get(name, {"wall": 0.0, "cpu": 0.0})
    now = {"wall": time.monotonic() - began, "cpu": _cpu_seconds() - used}
    took[name] = {clock: round(before[clock] + seconds, 1) for clock, seconds in now.items()}
    storage.write_bytes(str(place), json.dumps(took, indent=1).encode())
    return code


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def _joined(root: Path) -> Iterator[Any]:
    for part in sorted((root / "web").glob("*.parquet")):
        yield columns.read_joined(str(part), [str(root / "columns/caption" / part.name)])


def retrieval(folder: Path) -> dict[str, float]:
    """What a model can do on held-out scenes: recall by features, both ways, and its captions' CIDEr-D."""
    found = json.loads((folder / "retrieval.json").read_text())["itc"]
    captions = json.loads((folder / "captions.json").read_text())
    itm = json.loads((folder / "itm.json").read_text())["accuracy"]["with_picture"]
    return {
        **{f"{way}_r{k}": found[way][f"r{k}"] for k in (1, 10) for way in ("tr", "ir")},
        "itm": itm["random"]["mean"],
        "cider_d": captions["cider_d"]["with_picture"],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
