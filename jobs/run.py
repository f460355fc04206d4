"""Runs a whole chain: `pairmill run chain.yaml [--from STEP | --only STEP] [--STEP.option value ...]`."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence

from jobs.chain import choose, load_chain, run_chain
from pipeline.errors import ConfigError


def main(argv: Sequence[str]) -> int:
    """Parses, then runs; returns the exit code of the step that ended the chain, or 0."""
    parser = argparse.ArgumentParser(
        prog="pairmill run",
        allow_abbrev=False,
        description="Run the steps of a chain in order; what is done already is not done again.",
        epilog="--STEP.option value changes an option of one step, --set.NAME value a variable of the file.",
    )
    parser.add_argument("chain", help="YAML file with the steps")
    parser.add_argument("--from", dest="start", metavar="STEP", help="begin at this step")
    parser.add_argument("--only", metavar="STEP", help="run just this step")
    parser.add_argument("--overwrite", action="store_true", help="redo what was made differently")
    known, rest = parser.parse_known_args(list(argv))
    if known.start and known.only:
        raise ConfigError("--from and --only exclude each other; give one of them")
    overrides = split_overrides(rest)
    variables = dict(word.removeprefix("--").split("=", 1) for word in overrides.pop("set", []))
    steps = load_chain(known.chain, variables=variables, overrides=overrides, overwrite=known.overwrite)
    return run_chain(choose(steps, start=known.start, only=known.only))


def split_overrides(words: Sequence[str]) -> dict[str, list[str]]:
    """`--crawl.image_size 128 --set.root=x` -> {"crawl": ["--image_size=128"], "set": ["--root=x"]}.

    Raises:
        ConfigError: a word that is no such option.
    """
    found: dict[str, list[str]] = defaultdict(list)
    words = list(words)
    while words:
        option, equals, value = words.pop(0).partition("=")
        step, dot, name = option.removeprefix("--").partition(".")
        if not option.startswith("--") or not dot or not name:
            raise ConfigError(f"unknown option {option!r}; options of a step are written --STEP.option value")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        found[step].append(f"--{name}={value}")
    return dict(found)
