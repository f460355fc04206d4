"""`make learn`: shows that every recipe learns, on scenes whose truth is known.

    python -m jobs.demo.learn --folder learn-run
    python -m jobs.demo.learn --folder learn-run --recipes clip,albef --docs docs

Packs scenes into shards, trains each recipe on them with two processes and DeepSpeed ZeRO-2, evaluates it on
pictures of unseen combinations with blind baselines, and holds the figures against the margins of
`learn_plan.py`. Exit code 0: every margin reached; 1: one missed, or a run failed; 2: bad arguments; 75:
stopped. Start it again and it goes on; what is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.demo.learn_curves import draw_run
from jobs.demo.learn_plan import RUNS, Margin, Plan, Run, make_plan, train_config
from jobs.demo.learn_world import LearnWorld, build_learn_world
from jobs.evaluate import EvaluateConfig, evaluate
from jobs.train import train
from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.progress import duration

SHOWN = ("with_picture", "withheld", "shuffled")
TOOK = "took.json"


def main(argv: Sequence[str]) -> int:
    """Builds, trains, evaluates, judges; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo.learn", description="Every recipe learns.")
    parser.add_argument("--folder", default="learn-run", help="where everything is written")
    parser.add_argument("--recipes", default=",".join(RUNS), help="which, separated by commas")
    parser.add_argument("--stages", action="store_true", help="also compare VLMo with fewer stages")
    parser.add_argument("--quick", action="store_true", help="a quarter of the steps; asks for little")
    parser.add_argument("--docs", help="documentation folder that gets the curves, in learning/")
    parser.add_argument("--seed", type=int, default=1, help="seed of the scenes")
    known = parser.parse_args(list(argv))
    recipes = known.recipes.split(",")
    if unknown := sorted(set(recipes) - RUNS.keys()):
        print(f"learn: no recipe {', '.join(unknown)}; there are {', '.join(RUNS)}", file=sys.stderr)
        return 2
    plan = make_plan(recipes, stages=known.stages, quick=known.quick)
    try:
        return learn(plan, Path(known.folder).absolute(), seed=known.seed, docs=known.docs)
    except ConfigError as error:
        print(f"learn: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("learn: stopped; run it again and it goes on", file=sys.stderr)
        return 75


def learn(plan: Plan, folder: Path, *, seed: int, docs: str | None = None) -> int:
    """Everything of a plan; returns the exit code."""
    print(f"== scenes: {plan.pictures} pictures, {plan.heldout} held out, in {folder / 'shards'}", flush=True)
    world = build_learn_world(folder, seed=seed, pictures=plan.pictures, heldout=plan.heldout)
    failed: list[str] = []
    for run in plan.runs:
        if code := train_run(run, world, folder):
            if code == 75:
                return code
            failed.append(run.name)
            continue
        if run.judged:
            evaluate_run(run, world, folder)
        if docs:
            draw(run, folder, Path(docs))
    rows = judge(plan.margins, folder)
    storage.write_bytes(str(folder / "learn.json"), json.dumps(rows, indent=1).encode())
    print(table(rows))
    for run in plan.runs:
        print(spent(run, folder))
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    missed = [f"{row['run']}: {row['metric']}" for row in rows if not row["reached"]]
    print(f"\n{len(rows) - len(missed)} of {len(rows)} margins reached" + "".join(f"\n  {m}" for m in missed))
    return 1 if failed or missed else 0


def train_run(run: Run, world: LearnWorld, folder: Path) -> int:
    """Trains or finds a run; notes what it took, over all its starts."""
    print(f"== train {run.name}: {run.steps} steps", flush=True)
    began, used = time.monotonic(), _children_seconds()
    code = train(train_config(run, world, folder))
    wall, cpu = time.monotonic() - began, _children_seconds() - used
    place = folder / "runs" / run.name / TOOK
    before = json.loads(place.read_text()) if place.is_file() else {"wall": 0.0, "cpu": 0.0}
    if cpu > 1:
        took = {"wall": round(before["wall"] + wall, 1), "cpu": round(before["cpu"] + cpu, 1)}
        storage.write_bytes(str(place), json.dumps(took).encode())
    return code


def evaluate_run(run: Run, world: LearnWorld, folder: Path) -> None:
    """`pairmill evaluate` on the held-out shards; masked words where the recipe has them."""
    print(f"== evaluate {run.name}", flush=True)
    masks = run.recipe in ("albef", "vlmo")
    evaluate(
        EvaluateConfig(
            model=str(folder / "runs" / run.name),
            shards=str(world.heldout),
            pool=0,
            mlm_words=world.words if masks else None,
            caption_pictures=500,
            device="cpu",
        )
    )


def draw(run: Run, folder: Path, docs: Path) -> None:
    """The curves of a run as a picture of the documentation."""
    (docs / "learning").mkdir(parents=True, exist_ok=True)
    svg = draw_run(run.name, folder / "runs" / run.name)
    storage.write_bytes(str(docs / "learning" / f"{run.name}.svg"), svg.encode())


def judge(margins: Sequence[Margin], folder: Path) -> list[dict[str, Any]]:
    """Each margin with its figures; what is not there is missed."""
    rows = []
    for margin in margins:
        path = folder / "runs" / margin.run / "eval" / f"{margin.result}.json"
        result = json.loads(path.read_text()) if path.is_file() else None
        row: dict[str, Any] = {"run": margin.run, "metric": margin.metric, "least": margin.least}
        if result is None:
            rows.append(row | {"margin": None, "reached": False})
            continue
        figures = {c: figure(result, margin.path.format(condition=c)) for c in SHOWN}
        found = figures["with_picture"] - max(figures["withheld"], figures["shuffled"])
        rows.append(row | figures | {"margin": round(found, 4), "reached": found >= margin.least})
    return rows


def figure(result: dict[str, Any], path: str) -> float:
    """The number at a path such as `itm.accuracy.withheld`; figures with the picture may stand on top."""
    value: Any = result
    for key in path.split("."):
        if key == "with_picture" and key not in value:
            continue
        value = value[key]
    return float(value)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The figures as a Markdown table."""
    head = ("run", "metric", "with picture", "withheld", "shuffled", "margin", "asked for", "")
    lines = [f"\n| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        shown = [f"{row[c]:.3f}" if c in row else "-" for c in SHOWN]
        found = "-" if row["margin"] is None else f"{row['margin']:.3f}"
        cells = [row["run"], row["metric"], *shown, found, f"{row['least']:.2f}"]
        lines.append(f"| {' | '.join(cells)} | {'reached' if row['reached'] else 'MISSED'} |")
    return "\n".join(lines)


def spent(run: Run, folder: Path) -> str:
    place = folder / "runs" / run.name / TOOK
    if not place.is_file():
        return f"{run.name}: not trained"
    took = json.loads(place.read_text())
    return f"{run.name}: {run.steps} steps in {duration(took['wall'])}, {took['cpu']:.0f} s of CPU time"


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
