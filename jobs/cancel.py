"""Ends the jobs of a chain that wait or run: `pairmill cancel chain.yaml [STEP ...]`.

Of the steps that are named, or of all; what waits for them goes too. What is committed stays, and
`pairmill submit` goes on from it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jobs.chain import read_outline
from jobs.slurm import books, queue
from jobs.slurm.books import Submitted
from jobs.slurm.known import Known
from jobs.submit import run_folder
from jobs.words import read
from pipeline.errors import ConfigError


def main(argv: Sequence[str]) -> int:
    """Cancels, and prints what; returns 0, also where nothing was to be cancelled.

    Raises:
        ConfigError: no such chain or step, or no SLURM.
        RunError: SLURM does not answer, or refuses.
    """
    parser = argparse.ArgumentParser(
        prog="pairmill cancel",
        allow_abbrev=False,
        description="End the jobs of a chain that wait or run, and those that wait for them. What is "
        "committed stays.",
        epilog="--set.NAME value sets a variable of the file, as it was submitted.",
    )
    parser.add_argument("chain", help="YAML file with the steps")
    parser.add_argument("step", nargs="*", help="only the jobs of these steps, and what waits for them")
    parser.add_argument(*("--run_dir", "--run-dir"), metavar="FOLDER", help="as it was submitted")
    known, variables, overrides = read(parser, argv)
    if overrides:
        raise ConfigError(f"options of steps ({', '.join(overrides)}) mean nothing here; leave them out")
    steps = read_outline(known.chain, variables=variables).steps
    for name in known.step:
        if name not in steps:
            raise ConfigError(f"no step {name!r} in the chain; it has {', '.join(steps)}")
    run = run_folder(known.chain, variables, known.run_dir)
    submitted = books.read_submitted(run)
    ended = _cancel(submitted, set(known.step) or set(steps)) if submitted else []
    print("\n".join(ended) if ended else f"no job of the chain waits or runs ({run / books.SUBMITTED})")
    return 0


def _cancel(submitted: Sequence[Submitted], names: set[str]) -> list[str]:
    """A line for each job that was ended."""
    if not queue.present():
        raise ConfigError("scancel is not on the PATH: no SLURM on this machine")
    known = Known(submitted=submitted, states=queue.ask_submitted(books.times(submitted)))
    chosen: set[int] = set()
    for job in submitted:  # in order, so that a job stands behind those that it waits for
        if job.step in names or chosen.intersection(job.after):
            chosen.add(job.job)
    active = [job for job in submitted if job.job in chosen and known.state(job.job)]
    # those that wait go first: else SLURM might start one meanwhile
    if active:
        queue.cancel([job.job for job in reversed(active)])
    return [f"cancelled {job.job} {job.step} ({known.state(job.job).lower()})" for job in active]
