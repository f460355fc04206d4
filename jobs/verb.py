"""What a command is: a config dataclass and a function. Each verb's module offers one `VERB`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runner_options import RunOptions
from pipeline.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asked for, beside the verb's own config.

    output: the output folder; empty for verbs that name their output in their config.
    options: how stages are run.
    resolved: the whole configuration as YAML, saved beside the output (`jobs.saved`).
    """

    output: str
    options: RunOptions
    resolved: str


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A command of `pairmill`.

    config: frozen dataclass whose fields become options.
    run: does the work and returns the exit code (0 done, 1 some unit failed, 75 stopped by a signal).
    stage: whether it runs units on Ray, and so takes `--output` and the runner's options.
    stages: of such a verb: the stages that a config and an output folder come to, each with its own folder,
        in the order in which they run; so they can be built again from what was saved.
    has_dry_run: whether its config has a field `dry_run`, with which it writes nothing and needs no output.
    configs: folder of files that `--config` finds by their name without `.yaml`.
    """

    config: type
    run: Callable[[Any, Request], int]
    stage: bool = False
    stages: Callable[[Any, str], Sequence[tuple[Stage, str]]] | None = None
    has_dry_run: bool = False
    configs: Path | None = None
