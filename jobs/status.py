"""How far a chain or an output folder is: `pairmill status chain.yaml`, `pairmill status images shards`.

Manifests and pulses tell what is done and under way, here or in a job; where the chain was submitted, SLURM
and the run folder tell what its jobs do. Nothing is changed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs import standing
from jobs.chain import load_chain, read_outline
from jobs.progress_table import Line, Screen, as_json, join, render
from jobs.slurm import books, knowledge
from jobs.slurm.knowledge import Jobs
from jobs.words import read
from models.training import rundir
from pipeline import storage
from pipeline.errors import ConfigError


def main(argv: Sequence[str]) -> int:
    """Prints how far each step is; returns 0."""
    parser = argparse.ArgumentParser(
        prog="pairmill status",
        allow_abbrev=False,
        description="Show how far a chain, or each of some output folders, is, and what its jobs do.",
        epilog="--STEP.option value and --set.NAME value, as `pairmill run` was given them.",
    )
    parser.add_argument("place", nargs="+", help="a chain's YAML file, or output folders")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="variable of the chain"
    )
    parser.add_argument(
        "--run_dir",
        "--run-dir",
        metavar="FOLDER",
        help="run folder of `pairmill submit`; by default ROOT/slurm",
    )
    parser.add_argument("--json", action="store_true", help="print the same as JSON, for scripts")
    known, variables, overrides = read(parser, argv)
    wrong = [word for word in known.set if "=" not in word]
    if wrong:
        raise ConfigError(f"--set {wrong[0]!r} must be NAME=VALUE, such as root=demo-run")
    variables = {**dict(word.split("=", 1) for word in known.set), **variables}
    screens = collect(known.place, variables, overrides=overrides, run=known.run_dir)
    if known.json:
        print(json.dumps(as_json(screens), indent=1, ensure_ascii=False))
    else:
        print("\n\n".join(render(screen) for screen in screens))
    return 0


def collect(
    places: Sequence[str],
    variables: Mapping[str, str] | None = None,
    *,
    overrides: Mapping[str, Sequence[str]] | None = None,
    run: str | None = None,
) -> list[Screen]:
    """A screen for each chain, and one for all folders.

    Args:
        variables: values for `{name}` in chains.
        overrides: step -> options, as `load_chain` takes them.
        run: the run folder; by default the one below the root of each chain.

    Raises:
        ConfigError: a chain that cannot be read.
    """
    screens, folders = [], []
    for place in places:
        if place.endswith((".yaml", ".yml")):
            screens.append(_chain(place, variables or {}, overrides or {}, run))
        else:
            folders.append(Line(standing=(found := _folder(place)), word=found.word))
    return [*screens, *([Screen(lines=folders)] if folders else [])]


def _chain(
    path: str, variables: Mapping[str, str], overrides: Mapping[str, Sequence[str]], run: str | None
) -> Screen:
    steps = load_chain(path, variables=variables, overrides=overrides)
    folder = Path(run).absolute() if run else _run_folder(read_outline(path, variables=variables).root)
    jobs = knowledge.look(folder) if folder is not None else Jobs(run=Path())
    lines = [join(standing.of_step(step, jobs.lives), jobs) for step in steps]
    return Screen(lines=lines, chain=path, run=folder if jobs.all else None, silent=jobs.silent)


def _run_folder(root: str) -> Path | None:
    """None where the chain's root is no local folder: it was submitted with `--run_dir`, or not at all."""
    try:
        return books.default_run_folder(root)
    except ConfigError:
        return None


def _folder(place: str) -> standing.Standing:
    name = storage.basename(place)
    if storage.is_local(place) and rundir.read_record(storage.local_path(place)) is not None:
        return standing.of_training(name, storage.local_path(place))
    return standing.of_folder(name, place)
