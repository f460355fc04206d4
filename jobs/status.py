"""How far a chain or an output folder is: `pairmill status chain.yaml`, `pairmill status images shards`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import manifest, storage
from pipeline.stage import Counts


@dataclass(frozen=True, kw_only=True)
class State:
    """One line of the table."""

    name: str
    done: int
    total: int
    failed: int
    counts: Counts
    remark: str = ""

    @property
    def word(self) -> str:
        if self.remark:
            return self.remark
        if not self.total:
            return "not started"
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
    print(render(collect(known.place, dict(word.split("=", 1) for word in known.set))))
    return 0


def collect(places: Sequence[str], variables: dict[str, str]) -> list[State]:
    found = []
    for place in places:
        if place.endswith((".yaml", ".yml")):
            from jobs.chain import load_chain

            for step in load_chain(place, variables=variables):
                found.append(state_of(step.name, step.output))
        else:
            found.append(state_of(storage.basename(place), place))
    return found


def state_of(name: str, output: str) -> State:
    """The state of one output folder."""
    total = len(manifest.read_units(output)) if output else 0
    done = {m["unit"]: m for m in manifest.read_all(output)} if output else {}
    failed = [
        f
        for f in storage.list_files(storage.join(output, manifest.BOOKS, "quarantine"))
        if int(storage.basename(f.url).removesuffix(".json")) not in done
    ]
    counts = manifest.total_counts(done.values())
    return State(name=name, done=len(done), total=total, failed=len(failed), counts=counts)


def render(states: Sequence[State]) -> str:
    """The table as text."""
    rows = [("step", "state", "units", "failed", "in", "out", "dropped for")]
    for s in states:
        reasons = ", ".join(f"{k} {v:,}" for k, v in s.counts.dropped.most_common(4))
        units = f"{s.done}/{s.total}" if s.total else "-"
        rows.append(
            (
                s.name,
                s.word,
                units,
                str(s.failed or "-"),
                f"{s.counts.taken:,}",
                f"{s.counts.kept:,}",
                reasons,
            )
        )
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)
