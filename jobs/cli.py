"""The command line: `pairmill VERB --config x.yaml --option value`; the one file that knows jsonargparse.

Exit codes: 0 done, 1 some unit failed, 2 bad configuration, 75 stopped by a signal.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from jobs.saved import portable
from jobs.verb import Request, Verb
from pipeline.errors import ConfigError, InputError, RunError
from pipeline.runner_options import RunOptions
from pipeline.summary import EXIT_CONFIG, EXIT_FAILED, EXIT_STOPPED

#: each verb is a module of `jobs` that offers VERB
VERBS = {
    "discover": "find image-text pairs in web archives (WARC, WAT)",
    "crawl": "fetch the pictures of candidates or of any list of URLs",
    "score": "judge pictures, captions or candidates (a column)",
    "caption": "write captions of pictures and judge them beside the web's (a column)",
    "dedup": "mark duplicates among images or candidates (a column)",
    "balance": "balance captions over query entries, as MetaCLIP does (a column)",
    "pack": "write training shards by a rule over the columns",
    "export": "write metadata and subsets as DataComp does",
    "train": "train a vision-language model on shards",
    "convert": "read published checkpoints into model folders, and write them back",
    "evaluate": "evaluate a trained model on a fixed pool",
    "report": "write one HTML file about a whole chain",
    "inspect": "write a contact sheet of one shard",
    "run": "run a whole chain from one YAML file",
    "submit": "submit a chain to SLURM, a job a step; what is done already is not submitted again",
    "cancel": "end a chain's jobs that wait or run; what they have written stays",
    "status": "show how far a chain or an output folder is",
    "batch": "what a batch script of slurm/ runs: a command over the nodes of its job",
    "verify": "check every shard of output folders against its manifest, and mend them",
    "retry": "fetch just those rows of a crawl anew that a predicate names",
    "takedown": "remove pictures by URL, domain, uid or hash, and keep them out",
    "compact": "merge manifests and sidecars of finished folders by the thousand",
    "bench": "measure stages and training beside the field, or reckon what a plan costs",
}
#: verbs with a command line of their own: what they work on stands first, not behind an option
POSITIONAL = (
    "run",
    "submit",
    "cancel",
    "status",
    "batch",
    "verify",
    "retry",
    "takedown",
    "compact",
    "bench",
    "convert",
    "inspect",
)


def entry(*verb: str) -> None:
    """The `pairmill` command, and `python -m jobs.VERB`."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        # what a batch script ignores stays ignored
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, functools.partial(_interrupt, os.getpid()))
    code = main([*verb, *sys.argv[1:]])
    # the code stands: while Python and Ray go down (a second), a signal would only end them with another code
    # and make work that is done look as if it were not; should they hang, SIGTERM still ends them
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(code)


def _interrupt(process: int, number: int, _frame: FrameType | None) -> None:
    """Whatever does not listen itself ends at these signals as it does at Ctrl-C."""
    if os.getpid() == process:
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_DFL)  # a copy of this process is none of the command
    signal.raise_signal(number)


def main(argv: Sequence[str]) -> int:
    """Runs one command; returns its exit code."""
    logging.basicConfig(level=os.environ.get("PAIRMILL_LOG", "WARNING"), format="%(levelname)s %(message)s")
    _check_packages_are_ours()
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0 if argv else EXIT_CONFIG
    if argv[0] == "--version":
        print(importlib.metadata.version("pairmill"))
        return 0
    name, rest = argv[0], list(argv[1:])
    try:
        if name not in VERBS:
            raise ConfigError(f"unknown command {name!r}; known: {', '.join(VERBS)}")
        if name in POSITIONAL:
            return importlib.import_module(f"jobs.{name}").main(rest)
        return run_verb(name, rest)
    except ConfigError as error:
        print(f"pairmill {name}: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except (InputError, RunError) as error:
        print(f"pairmill {name}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"pairmill {name}: stopped", file=sys.stderr)
        return EXIT_STOPPED


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {text}" for name, text in VERBS.items()]
    return "\n".join(
        [
            "usage: pairmill COMMAND [--config FILE.yaml] [--option value ...]",
            "",
            *lines,
            "",
            "`pairmill COMMAND --help` lists the options of a command.",
        ]
    )


def _check_packages_are_ours() -> None:
    """`pipeline`, `models` and `jobs` are common names: a folder of the user's may hide ours."""
    home = Path(__file__).resolve().parent.parent
    for name in ("pipeline", "models", "jobs"):
        module = importlib.import_module(name)
        place = Path(module.__file__ or next(iter(module.__path__))).resolve()
        if home not in place.parents:
            print(
                f"pairmill: package {name!r} was imported from {place}, not from Pairmill in {home}; "
                "start the command from another folder, or rename that one",
                file=sys.stderr,
            )
            sys.exit(EXIT_CONFIG)


def build_parser(name: str, verb: Verb) -> ArgumentParser:
    """The parser of a verb: its config's fields, and the runner's options for stages."""
    parser = ArgumentParser(
        prog=f"pairmill {name}", description=VERBS[name], exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_class_arguments(verb.config, None)
    if verb.stage:
        needed = {"default": ""} if verb.has_dry_run else {"required": True}
        parser.add_argument("--output", type=str, help="output folder, any fsspec location", **needed)
        parser.add_class_arguments(RunOptions, None)
    else:
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="redo it although options or inputs changed"
        )
    return parser


def parse_verb(name: str, argv: Sequence[str]) -> tuple[Verb, Any, Request]:
    """Parses the options of a verb.

    Raises:
        ConfigError: unknown option, value of the wrong type, a required option missing.
    """
    verb = importlib.import_module(f"jobs.{name}").VERB
    parser = build_parser(name, verb)
    try:
        parsed = parser.parse_args(_named_config(_normalised(argv, parser), verb))
        built = parser.instantiate(parsed)
    except (ArgumentError, ValueError) as error:
        message = " ".join(str(error).split())
        raise ConfigError(f"{message}; see `pairmill {name} --help`") from error
    config = _pick(verb.config, built)
    if verb.has_dry_run and not (built.output or config.dry_run):
        raise ConfigError("no --output; give the folder to be written, or --dry_run true to look only")
    options = _pick(RunOptions, built) if verb.stage else RunOptions(overwrite=built.overwrite)
    resolved = portable(name, config, parser.dump(parsed, skip_link_targets=False))
    return verb, config, Request(output=getattr(built, "output", ""), options=options, resolved=resolved)


def _pick(kind: type, namespace: Any) -> Any:
    return kind(**{f.name: getattr(namespace, f.name) for f in dataclasses.fields(kind)})


def _normalised(argv: Sequence[str], parser: ArgumentParser) -> list[str]:
    """`--allow-failed 1` is `--allow_failed=1`, and a bare `--overwrite` is `--overwrite=true`."""
    defaults = parser.get_defaults()
    words = []
    for position, word in enumerate(argv):
        option, equals, value = word.partition("=")
        if not option.startswith("--"):
            words.append(word)
            continue
        name = option[2:].replace("-", "_")
        follows = argv[position + 1] if position + 1 < len(argv) else "--"
        if not equals and isinstance(defaults.get(name), bool) and follows.startswith("--"):
            equals, value = "=", "true"
        words.append(f"--{name}{equals}{value}")
    return words


def _named_config(words: Sequence[str], verb: Verb) -> list[str]:
    """`--config NAME` of a file that comes with the package becomes its path; a file of that name wins."""
    found = list(words)
    for position, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option != "--config" or verb.configs is None:
            continue
        at = position if equals else position + 1
        name = value if equals else (words[at] if at < len(words) else "")
        ours = verb.configs / f"{name}.yaml"
        if name and not Path(name).exists() and ours.is_file():
            found[at] = f"{option}={ours}" if equals else str(ours)
    return found


def run_verb(name: str, argv: Sequence[str]) -> int:
    verb, config, request = parse_verb(name, argv)
    return verb.run(config, request)


if __name__ == "__main__":
    entry()
