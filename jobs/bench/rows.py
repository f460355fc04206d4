"""What curation costs a row: every global step over a made-up crawl of a million rows, in two sizes.

    pairmill bench rows
    pairmill bench rows --rows 250000 1000000 --steps exact semantic pack --folder /data/rows

The rows have URLs, captions, hashes, scores and embeddings but no pictures (`jobs.bench.rows_world`), and
duplicates in known numbers. Each step is the command that a user gives, on `--workers` workers; measured are
CPU, wall and the memory of each process from start to end. That memory does not grow with the rows is told by
the two sizes; that the work is right by the numbers: every planted duplicate is found, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq

from jobs.bench.measure import Cost, measure
from jobs.bench.rows_folders import make_folders
from jobs.bench.rows_world import FILE, MEANING, NEAR, ORIGINAL, PAIR, ROWS_PER_SHARD, World
from pipeline import manifest
from pipeline.errors import ConfigError
from pipeline.manifest import total_counts

MEGABYTE = 1e6
#: rows of a bucket, which memory depends on: so many buckets for each size
ROWS_PER_BUCKET = 62_500
#: of the pack
RULE = "clip_score >= 0.28 AND language = 'en' AND least(original_width, original_height) >= 250"


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command that is measured.

    words: of the command, from (places of the folders, options of the benchmark).
    column: the one that names the winner; empty for pack, which marks nothing.
    kinds: rows of the world that are the same for it.
    """

    words: Callable[[dict[str, str], argparse.Namespace], list[str]]
    column: str = ""
    kinds: tuple[int, ...] = ()


def _dedup(method: str, *columns: str) -> Callable[[dict[str, str], argparse.Namespace], list[str]]:
    def words(places: dict[str, str], known: argparse.Namespace) -> list[str]:
        found = ["dedup", "--method", method, "--input", places["images"]]
        if columns:
            found += ["--columns", json.dumps([places[name] for name in columns])]
        return found

    return words


def _pack(places: dict[str, str], known: argparse.Namespace) -> list[str]:
    folders = json.dumps([places[name] for name in _judged(places)])
    return ["pack", "--dry_run", "true", "--input", places["images"], "--columns", folders, "--where", RULE]


def _judged(places: dict[str, str]) -> list[str]:
    """The column folders that pack joins: the scores, and the duplicates that were looked for."""
    return [name for name in ("clip", "language", "exact", "near", "semantic") if name in places]


STEPS = {
    "exact": Step(words=_dedup("exact"), column="duplicate_of", kinds=(ORIGINAL, PAIR, FILE)),
    "near": Step(
        words=_dedup("near", "hash"), column="near_duplicate_of", kinds=(ORIGINAL, PAIR, FILE, NEAR)
    ),
    "semantic": Step(
        words=_dedup("semantic", "embedding"),
        column="semantic_duplicate_of",
        kinds=(ORIGINAL, PAIR, FILE, NEAR, MEANING),
    ),
    "pack": Step(words=_pack),
}


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns 0."""
    known = _parse(argv)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="pairmill-bench-") as scratch:
        for rows in known.rows:
            world = World(rows=rows, seed=known.seed)
            folder = Path(known.folder or scratch).absolute() / f"rows-{rows}-{known.seed}"
            print(f"{rows:,} rows in {world.shards} shards, {world.successes():,} fetched", flush=True)
            places = make_folders(str(folder), world, known.dimensions)
            for name in known.steps:
                found = _run(name, world, places, folder, known)
                figures.setdefault(str(rows), {})[name] = found
                if known.json:
                    Path(known.json).write_text(json.dumps(figures, indent=1))
    print(table(figures))
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pairmill bench rows", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 1_000_000], help="sizes")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--dimensions", type=int, default=64, help="of an embedding")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="keep the folders here instead of a temporary one")
    parser.add_argument("--json", help="file for the figures as JSON")
    known = parser.parse_args(list(argv))
    if min(known.rows) < ROWS_PER_SHARD or known.workers < 1 or known.dimensions < 2:
        raise ConfigError(
            f"--rows {' '.join(map(str, known.rows))} must be {ROWS_PER_SHARD} or more, --workers "
            f"{known.workers} 1 or more, --dimensions {known.dimensions} 2 or more"
        )
    return known


def _run(
    name: str, world: World, places: dict[str, str], folder: Path, known: argparse.Namespace
) -> dict[str, Any]:
    """Measures a step and checks what it has done."""
    step, output = STEPS[name], str(folder / "out" / name)
    words = [*step.words(places, known), "--workers", str(known.workers)]
    if step.column:
        words += ["--output", output, "--buckets", str(max(2, world.rows // ROWS_PER_BUCKET))]
    else:
        words += ["--json", f"{output}.json"]
    command = [sys.executable, "-m", "jobs.cli", *words, "--ray.cpus", str(known.workers)]
    # a worker of its own for each core, as a cluster has it
    cost = measure(command, env={"OMP_NUM_THREADS": "1"})
    found = {**_figures(cost, world.rows), "command": " ".join(words)}
    if step.column:
        places[name] = output
        found |= check(output, step.column, world, step.kinds)
    else:
        found |= {"kept": _check_kept(f"{output}.json", places)}
    print(f"  {name}: {_line(found)}", flush=True)
    return found


def _check_kept(told: str, places: dict[str, str]) -> int:
    """How many rows pack would keep, which must be what one query over all files says.

    Raises:
        RuntimeError: it is not.
    """
    query = f"SELECT count(*) FROM read_parquet('{places['images']}/*.parquet') AS images"
    for name in _judged(places):
        query += f" JOIN read_parquet('{places[name]}/*.parquet') AS {name} USING (key)"
    with duckdb.connect() as connection:
        ((expected,),) = connection.execute(f"{query} WHERE status = 'success' AND {RULE}").fetchall()
    kept = int(json.loads(Path(told).read_text())["rules"][0]["kept"])
    if kept != expected:
        raise RuntimeError(f"pack would keep {kept} rows; by {query} they are {expected}")
    return kept


def _figures(cost: Cost, rows: int) -> dict[str, Any]:
    """Seconds, those of workers as `work`; megabytes, and the largest worker in each third of the time."""
    thirds: list[int] = [0, 0, 0]
    for at, memory in cost.workers:
        third = min(2, int(3 * at / cost.wall))
        thirds[third] = max(thirds[third], memory)
    return {
        "cpu": cost.cpu,
        "wall": cost.wall,
        "work": cost.work,
        "work_us_per_row": 1e6 * cost.work / rows,
        "worker": cost.worker / MEGABYTE,
        "worker_thirds": [memory / MEGABYTE for memory in thirds],
        "process": cost.process / MEGABYTE,
        "tree": cost.tree / MEGABYTE,
    }


def check(output: str, column: str, world: World, kinds: Sequence[int]) -> dict[str, int]:
    """Planted duplicates: how many there are, are marked, and are marked wrongly (the winner repeats another
    original, or none of these kinds)."""
    marked = wrong = rows = 0
    for path in sorted(Path(output).glob("*.parquet")):
        part = pq.read_table(path, columns=["key", column])
        rows += len(part)
        lost = part.filter(part[column].is_valid())
        of = [_number(key) for key in lost[column].to_pylist()]
        row = [_number(key) for key in lost["key"].to_pylist()]
        marked += len(lost)
        ours = np.array(row, np.int64)
        same = world.roots(ours) == world.roots(np.array(of, np.int64))
        wrong += int((~(same & np.isin(world.kinds(ours), kinds))).sum())
    done = total_counts(manifest.iter_all(output))
    if rows != world.successes() or done.taken != rows:
        raise RuntimeError(f"{output}: {rows} rows, {done.taken} counted; {world.successes()} were fetched")
    return {"planted": world.repeated(kinds), "marked": marked, "wrong": wrong}


def _number(key: str) -> int:
    return int(key[:8]) * ROWS_PER_SHARD + int(key[8:])


def _line(found: dict[str, Any]) -> str:
    text = f"{found['cpu']:.1f} s of CPU, {found['wall']:.0f} s, largest process {found['process']:.0f} MB"
    if "kept" in found:
        text += f", {found['kept']:,} rows kept"
    if "planted" in found:
        text += f", {found['marked']:,} of {found['planted']:,} planted marked, {found['wrong']:,} wrong"
    return text


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "",
        "| rows | step | CPU of workers, s | us a row | all CPU, s | wall s | "
        "largest worker, MB (thirds of the time) | largest process, MB | all processes, MB | "
        "planted | marked | wrong |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for rows, steps in figures.items():
        for name, f in steps.items():
            thirds = ", ".join(f"{memory:.0f}" for memory in f["worker_thirds"])
            marks = " | ".join(f"{f[n]:,}" if n in f else "" for n in ("planted", "marked", "wrong"))
            lines.append(
                f"| {int(rows):,} | {name} | {f['work']:.1f} | {f['work_us_per_row']:.1f} | {f['cpu']:.1f} | "
                f"{f['wall']:.0f} | "
                f"{f['worker']:.0f} ({thirds}) | {f['process']:.0f} | {f['tree']:.0f} | {marks} |"
            )
    return "\n".join(lines)
