"""How far a chain or an output folder is: `pairmill status chain.yaml`, `pairmill status images shards`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.chain import Step, load_chain
from pipeline import commit, manifest, storage
from pipeline.errors import ConfigError
from pipeline.stage import Counts


@dataclass(frozen=True, kw_only=True)
class State:
    """One line of the table.

    failed: quarantined units. pending: units whose replacement a crash has interrupted. merged: share of the
    manifests that `compact` has merged, 0 to 1.
    """

    name: str
    done: int = 0
    total: int = 0
    failed: int = 0
    pending: int = 0
    merged: float = 0.0
    counts: Counts | None = None
    remark: str = ""

    @property
    def word(self) -> str:
        if self.remark:
            return self.remark
        if not self.total:
            return "not started"
        if self.pending:
            return "interrupted"
        if self.done == self.total:
            return "done"
        return "failed units" if self.failed else "partial"


def main(argv: Sequence[str]) -> int:
    """Prints one line a step; returns 0."""
    parser = argparse.ArgumentParser(
        prog="pairmill status", description="Show how far a chain, or each of some output folders, is."
    )
    parser.add_argument("place", nargs="+", help="a chain's YAML file, or output folders")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="variable of the chain"
    )
    known = parser.parse_args(list(argv))
    wrong = [word for word in known.set if "=" not in word]
    if wrong:
        raise ConfigError(f"--set {wrong[0]!r} must be NAME=VALUE, such as root=demo-run")
    print(render(collect(known.place, dict(word.split("=", 1) for word in known.set))))
    return 0


def collect(places: Sequence[str], variables: dict[str, str]) -> list[State]:
    found = []
    for place in places:
        if place.endswith((".yaml", ".yml")):
            found += [_state_of_step(step) for step in load_chain(place, variables=variables)]
        else:
            found.append(state_of(storage.basename(place), place))
    return found


def _state_of_step(step: Step) -> State:
    if step.verb.stage:
        return state_of(step.name, step.output)
    if step.job == "train":
        return State(name=step.name, remark=training_remark(Path(step.output)))
    return State(
        name=step.name, remark="-"
    )  # an evaluation or a report: made anew whenever its inputs change


def training_remark(run: Path) -> str:
    """`done`, `not started`, or the last step that was logged."""
    if not (run / "run.json").is_file():
        return "not started"
    if json.loads((run / "run.json").read_text())["state"] == "finished":
        return "done"
    metrics = run / "metrics.jsonl"
    rows = metrics.read_text().splitlines() if metrics.is_file() else []
    return f"at step {json.loads(rows[-1])['step']:,}" if rows else "started"


def state_of(name: str, output: str) -> State:
    """The state of one output folder."""
    total = len(manifest.read_units(output))
    done = manifest.list_done(output)
    failed = manifest.list_quarantined(output) - done.keys()
    pending = storage.list_folders(commit.pending_folder(output))
    return State(
        name=name,
        done=len(done),
        total=total,
        failed=len(failed),
        pending=sum(storage.exists(storage.join(url, commit.INTENT)) for url in pending),
        merged=sum(d.compacted is not None for d in done.values()) / (len(done) or 1),
        counts=manifest.total_counts(manifest.iter_all(output)),
    )


def render(states: Sequence[State]) -> str:
    """The table as text."""
    rows: list[tuple[str, ...]] = [("step", "state", "units", "failed", "in", "out", "dropped for")]
    for s in states:
        counts = s.counts or Counts()
        reasons = ", ".join(f"{k} {v:,}" for k, v in counts.dropped.most_common(4))
        reasons += f"  ({s.pending} replacements interrupted: run it again)" if s.pending else ""
        reasons += f"  ({s.merged:.0%} of the manifests compacted)" if s.merged else ""
        units = f"{s.done}/{s.total}" if s.total else "-"
        numbers = [f"{n:,}" if s.done else "-" for n in (counts.taken, counts.kept)]
        rows.append((s.name, s.word, units, str(s.failed or "-"), *numbers, reasons))
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)
