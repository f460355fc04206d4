"""A chain: the steps of one YAML file, in order.

    root: demo-run                 # `{root}` in any value below stands for this folder
    vars: {server: "127.0.0.1:80"} # further names for `{server}`
    steps:
      discover: {input: "{root}/web/*.gz", output: "{root}/candidates"}
      scorer:   {job: train, recipe: clip, ...}   # `job` where the step's name is not a command
    slurm:                         # for `pairmill submit` (jobs/slurm/options.py)
      all: {partition: cpu}
      scorer: {partition: gpu, gpus-per-node: 8, time: "24:00:00"}

Every step is parsed before the first one starts, so that a misspelt option in the last step costs nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jobs import cli
from jobs.saved import as_yaml
from jobs.slurm.options import RESERVED, SlurmOptions, read_section
from jobs.verb import Request, Verb
from pipeline import session
from pipeline.errors import ConfigError

RUNNABLE = tuple(v for v in cli.VERBS if v not in cli.POSITIONAL)
KEYS = ("root", "vars", "steps", "slurm")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a chain, parsed: `name` in the file, `job` the command it runs, `slurm` what `pairmill
    submit` asks of SLURM for it."""

    name: str
    job: str
    verb: Verb
    config: Any
    request: Request
    slurm: SlurmOptions = field(default_factory=SlurmOptions)

    @property
    def output(self) -> str:
        """Where the step writes."""
        return self.request.output or getattr(self.config, "output", "")


def load_chain(
    path: str,
    *,
    variables: Mapping[str, str] | None = None,
    overrides: Mapping[str, Sequence[str]] | None = None,
    overwrite: bool = False,
) -> list[Step]:
    """Reads and parses a chain.

    Args:
        variables: values for `{name}` that win over the file's `root` and `vars`.
        overrides: step name -> options, such as `{"crawl": ["--image_size", "128"]}`; `slurm` -> options of
            steps for SLURM, such as `["--crawl.array=16", "--all.partition=cpu"]`.
        overwrite: redo what was made from other options or inputs, in every step.

    Raises:
        ConfigError: the file is missing or no mapping, an unknown key, an unknown command, a bad option.
    """
    document = _read(path)
    names = _variables(document, path, variables)
    steps = {str(name): options for name, options in document["steps"].items()}
    extra = dict(overrides or {})
    asked = read_section(
        _fill(document.get("slurm"), names), list(steps), overrides=extra.pop("slurm", ()), path=path
    )
    found = []
    for name, options in steps.items():
        words = [*extra.pop(name, ()), *(["--overwrite"] if overwrite else [])]
        found.append(_parse_step(path, name, options or {}, names, words, asked[name]))
    if extra:
        raise ConfigError(f"{path} has no step {', '.join(map(repr, extra))}; it has {', '.join(steps)}")
    return found


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a chain's file says without its options being parsed: `{root}`, and the names of its steps."""

    root: str
    steps: tuple[str, ...]


def read_outline(path: str, *, variables: Mapping[str, str] | None = None) -> Outline:
    """The root and the steps of a chain, also where options of steps are wrong.

    Raises:
        ConfigError: the file is missing or no mapping, or has an unknown key.
    """
    document = _read(path)
    root = _variables(document, path, variables)["root"]
    return Outline(root=root, steps=tuple(str(name) for name in document["steps"]))


def _variables(document: Mapping[str, Any], path: str, given: Mapping[str, str] | None) -> dict[str, str]:
    """Raises ConfigError when `vars` is no mapping."""
    vars_ = document.get("vars") or {}
    if not isinstance(vars_, dict):
        raise ConfigError(f"{path}: vars must be a mapping of names to values, not {vars_!r}")
    root = str(document.get("root", Path(path).parent))
    return {"root": root, **{str(k): str(v) for k, v in vars_.items()}, **(given or {})}


def _read(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ConfigError(f"chain file {path!r} does not exist")
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeError, ValueError) as error:  # ValueError: a date such as 2026-99-99
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("steps"), dict) or not document["steps"]:
        raise ConfigError(f"{path} must be a mapping with `steps`: a mapping of step names to options")
    unknown = [key for key in document if key not in KEYS]
    if unknown:
        raise ConfigError(f"{path}: unknown keys {unknown}; known: {', '.join(KEYS)}")
    taken = [name for name in map(str, document["steps"]) if name in RESERVED]
    if taken:
        raise ConfigError(
            f"{path}: a step cannot be called {taken[0]!r}, which means something else on the command line "
            "and in `slurm:`; give it another name, and the command as `job:`"
        )
    return document


def _parse_step(
    path: str,
    name: str,
    options: Any,
    names: Mapping[str, str],
    extra: Sequence[str],
    slurm: SlurmOptions,
) -> Step:
    if not isinstance(options, dict):
        raise ConfigError(f"{path}: step {name!r} must be a mapping of options, not {options!r}")
    values = _fill(options, names)
    job = values.pop("job", name)
    if job not in RUNNABLE:
        raise ConfigError(f"{path}: step {name!r} runs {job!r}; give `job:` one of {', '.join(RUNNABLE)}")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix=f"{job}-", encoding="utf-8") as stream:
        try:
            stream.write(as_yaml(values))
            stream.flush()
            verb, config, request = cli.parse_verb(job, ["--config", stream.name, *extra])
        except (ValueError, OSError, ImportError) as error:  # also of locations of a kind that nobody knows
            raise ConfigError(f"{path}: step {name!r}: {str(error).replace(stream.name, path)}") from error
    return Step(name=name, job=job, verb=verb, config=config, request=request, slurm=slurm)


def _fill(value: Any, names: Mapping[str, str]) -> Any:
    """Puts variables in; other braces (JSON, regular expressions) stay as they are."""
    if isinstance(value, str):
        for name, text in names.items():
            value = value.replace("{" + name + "}", str(text))
        return value
    if isinstance(value, dict):
        return {k: _fill(v, names) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(v, names) for v in value]
    return value


def choose(steps: Sequence[Step], *, start: str | None = None, only: str | None = None) -> list[Step]:
    """The steps from `start` on, or `only` one of them."""
    known = [s.name for s in steps]
    for name in (start, only):
        if name is not None and name not in known:
            raise ConfigError(f"no step {name!r} in the chain; it has {', '.join(known)}")
    if only is not None:
        return [s for s in steps if s.name == only]
    return list(steps[known.index(start) :]) if start is not None else list(steps)


def run_chain(steps: Sequence[Step]) -> int:
    """Runs steps in order; stops at the first exit code that is not 0 and returns it."""
    with session.shared_session():
        for step in steps:
            if not step.verb.stage:
                session.close()  # training and evaluation want the memory and the cores to themselves
            print(f"== {step.name}" + (f" ({step.job})" if step.job != step.name else ""), flush=True)
            code = step.verb.run(step.config, step.request)
            if code:
                print(f"chain stopped at step {step.name} (exit code {code}); go on with --from {step.name}")
                return code
    return 0
