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

    Attributes:
        known: the command's own options.
        variables: of the chain's file, from `--set.NAME value`.
        steps: all of the chain.
        chosen: those that `--from` or `--only` leaves.
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
    known, variables, overrides = read(parser, argv)
    if known.start and known.only:
        raise ConfigError("--from and --only exclude each other; give one of them")
    steps = load_chain(known.chain, variables=variables, overrides=overrides, overwrite=known.overwrite)
    return Asked(known, variables, steps, choose(steps, start=known.start, only=known.only))


def read(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, dict[str, str], dict[str, list[str]]]:
    """The command's own options, variables of the chain (`--set.NAME value`), and options of its steps.

    Raises:
        ConfigError: a word that is none of them.
    """
    plain, dotted = part(argv)
    known, unknown = parser.parse_known_args(plain)
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}; options of a step are written --STEP.option value")
    overrides = split_overrides(dotted)
    variables = dict(word.removeprefix("--").split("=", 1) for word in overrides.pop("set", []))
    return known, variables, overrides


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
