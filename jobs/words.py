"""The words of commands that take a chain: `chain.yaml [--from STEP | --only STEP] [--STEP.option value]`."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.chain import Step, choose, load_chain
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Asked:
    """What the words of a command ask for.

    known: the command's own options.
    variables: of the chain's file, from `--set.NAME value`.
    steps: all of the chain, `chosen` those that `--from` or `--only` leaves.
    """

    known: argparse.Namespace
    variables: dict[str, str]
    steps: list[Step]
    chosen: list[Step]


def add_chain(parser: argparse.ArgumentParser, *, verb: str) -> None:
    """The chain, which of its steps to `verb`, and `--overwrite`."""
    parser.add_argument("chain", help="YAML file with the steps")
    parser.add_argument("--from", dest="start", metavar="STEP", help="begin at this step")
    parser.add_argument("--only", metavar="STEP", help=f"{verb} just this step")
    parser.add_argument("--overwrite", action="store_true", help="redo what was made differently")


def ask(parser: argparse.ArgumentParser, argv: Sequence[str]) -> Asked:
    """Reads the words by a parser that `add_chain` has seen, and the chain that they name.

    Raises:
        ConfigError: a word, the chain or an option of a step is wrong.
    """
    plain, dotted = part(argv)
    known = parse_plain(parser, plain)
    if known.start and known.only:
        raise ConfigError("--from and --only exclude each other; give one of them")
    overrides = split_overrides(dotted)
    variables = take_variables(overrides)
    steps = load_chain(known.chain, variables=variables, overrides=overrides, overwrite=known.overwrite)
    return Asked(known, variables, steps, choose(steps, start=known.start, only=known.only))


def part(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command's own words, and those that stand for a step's option, `--STEP.option` with its value.

    The latter are taken out first: argparse would take their values for names of files or steps.

    Raises:
        ConfigError: a word that is no text.
    """
    plain: list[str] = []
    dotted: list[str] = []
    words = list(argv)
    for word in words:
        if any("\ud800" <= c <= "\udfff" for c in word):
            raise ConfigError(f"{word!r} is not UTF-8; give another name or value")
    while words:
        word = words.pop(0)
        if word == "--":
            plain += [word, *words]
            break
        option, equals, _ = word.partition("=")
        if not (option.startswith("--") and "." in option):
            plain.append(word)
            continue
        dotted.append(word)
        if not equals and words and not words[0].startswith("--"):
            dotted.append(words.pop(0))
    return plain, dotted


def parse_plain(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Raises ConfigError for an option that is none of the parser's."""
    known, unknown = parser.parse_known_args(list(words))
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}; options of a step are written --STEP.option value")
    return known


def take_variables(overrides: dict[str, list[str]]) -> dict[str, str]:
    """Takes `--set.NAME value` out of what `split_overrides` found."""
    return dict(word.removeprefix("--").split("=", 1) for word in overrides.pop("set", []))


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
