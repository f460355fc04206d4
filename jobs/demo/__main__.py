"""`make demo`: builds a small web whose truth is known, serves it on loopback, runs the real chain over it.

    python -m jobs.demo --folder demo-run

Every step is the command that serves the web (`chain.yaml` beside this file). Run it again and nothing is
redone; stop it anywhere and it goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.chain import Step, load_chain, run_chain
from jobs.demo.captions import telling_words
from jobs.demo.objects import ATTRIBUTION, load_things
from jobs.demo.server import serve
from jobs.demo.truth import Verdict, judge
from jobs.demo.world import World, build_world
from pipeline import manifest, storage
from pipeline.errors import ConfigError
from pipeline.progress import duration
from pipeline.stage import Counts

CHAIN = Path(__file__).with_name("chain.yaml")


def main(argv: Sequence[str]) -> int:
    """Builds, serves, runs, judges; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.demo", description="The whole chain on a small web."
    )
    parser.add_argument("--folder", default="demo-run", help="where everything is written")
    parser.add_argument("--seed", type=int, default=1, help="seed of the small web")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the small web")
    known = parser.parse_args(list(argv))
    began = time.monotonic()
    root = Path(known.folder).absolute()
    try:
        print(f"== world: a small web with known faults, in {root / 'world'}", flush=True)
        world = build_world(root / "world", seed=known.seed, scale=known.scale)
        steps = load_steps(root, world)
        with serve(world.folder):
            code = run_chain(steps)
    except ConfigError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("demo: stopped; run it again and it goes on", file=sys.stderr)
        return 75
    if code:
        return code
    print(summary(root, steps, world))
    print(f"\nreport: {root / 'report.html'}\nin {duration(time.monotonic() - began)}")
    return 0


def load_steps(
    root: Path, world: World, *, overrides: Mapping[str, Sequence[str]] | None = None
) -> list[Step]:
    """The chain of this demo, with the folder, the ports and the words of this world filled in."""
    words = root / "words.json"
    text = json.dumps(telling_words(load_things()), ensure_ascii=False)
    if not words.exists() or words.read_text() != text:
        storage.write_bytes(str(words), text.encode())
    variables = {"root": str(root), "hosts": json.dumps(world.allow_private), "attribution": ATTRIBUTION}
    return load_chain(str(CHAIN), variables=variables, overrides=overrides)


def summary(root: Path, steps: Sequence[Step], world: World) -> str:
    """The table at the end: pairs by fate, the filter against the truth, what ALBEF learnt."""
    outputs = {step.name: step.output for step in steps}
    lines = [""]
    for name, words in (
        ("discover", ("image links found", "pairs discovered")),
        ("crawl", ("pairs tried", "pictures crawled")),
        ("pack", ("rows judged", "pairs kept")),
    ):
        counts = manifest.total_counts(manifest.read_all(outputs[name]))
        lines += _funnel(counts, *words)
    folders = [outputs["score"], outputs["dedup"]]
    verdict = judge(world.truth, images=outputs["crawl"], column_folders=folders, shards=outputs["pack"])
    storage.write_bytes(str(root / "verdict.json"), json.dumps(verdict.to_json(), indent=1).encode())
    return "\n".join([*lines, *_filter(verdict), *_learnt(root / "runs/albef/eval")])


def _funnel(counts: Counts, taken: str, kept: str) -> list[str]:
    reasons = ", ".join(f"{name} {number:,}" for name, number in counts.dropped.most_common())
    rows = [f"  {taken:<34}{counts.taken:>8,}", f"  {kept:<34}{counts.kept:>8,}"]
    return [*rows, f"    dropped: {reasons}"] if reasons else rows


def _filter(verdict: Verdict) -> list[str]:
    wrong, right = verdict.wrong, verdict.right
    auc = "-" if verdict.auc is None else f"{verdict.auc:.3f}"
    return [
        f"  {'planted wrong captions caught':<34}{wrong['caught']:>8,}",
        f"  {'planted wrong captions missed':<34}{wrong['missed']:>8,}",
        f"  {'right captions kept / dropped':<34}{right['kept']:>8,} / {right['dropped']:,}",
        f"  {'ROC AUC of the filter':<34}{auc:>8}",
        *(f"  surprise: {sentence}" for sentence in verdict.surprises),
    ]


def _learnt(folder: Path) -> list[str]:
    retrieval = json.loads((folder / "retrieval.json").read_text())
    mlm = json.loads((folder / "mlm.json").read_text())["accuracy"]
    lines = []
    for name, key in (("picture to text", "tr"), ("text to picture", "ir")):
        label = f"ALBEF {name} R@10 of {retrieval['pool']['pictures']:,}"
        lines.append(f"  {label:<34}{retrieval[key]['r10']:>8.3f}  (chance {retrieval['chance']['r10']:.3f})")
    seen = mlm["with_picture"]["all"]["mean"]
    others = ", ".join(
        f"{name.replace('_', ' ')} {value['all']['mean']:.3f}"
        for name, value in mlm.items()
        if name != "with_picture"
    )
    lines.append(f"  {'masked words right with picture':<34}{seen:>8.3f}  ({others})")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
