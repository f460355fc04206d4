"""A chain: the steps of one YAML file, in order.

    root: demo-run                 # `{root}` in any value below stands for this folder
    vars: {server: "127.0.0.1:80"} # further names for `{server}`
    steps:
      discover: {input: "{root}/web/*.gz", output: "{root}/candidates"}
      scorer:   {job: train, recipe: clip, ...}   # `job` where the step's name is not a command

Every step is parsed before the first one starts, so that a misspelt option in the last step costs nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jobs import cli
from jobs.verb import Request, Verb
from pipeline import session
from pipeline.errors import ConfigError

RUNNABLE = tuple(v for v in cli.VERBS if v not in ("run", "status"))


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a chain, parsed: `name` in the file, `job` the command it runs."""

    name: str
    job: str
    verb: Verb
    config: Any
    request: Request

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
        overrides: step name -> options, such as `{"crawl": ["--image_size", "128"]}`.
        overwrite: redo what was made from other options or inputs, in every step.

    Raises:
        ConfigError: the file is missing or no mapping, an unknown key, an unknown command, a bad option.
    """
    document = _read(path)
    names = {
        "root": str(document.get("root", Path(path).parent)),
        **document.get("vars", {}),
        **(variables or {}),
    }
    steps = document["steps"]
    extra = dict(overrides or {})
    found = []
    for name, options in steps.items():
        words = [*extra.pop(str(name), ()), *(["--overwrite"] if overwrite else [])]
        found.append(_parse_step(path, str(name), options or {}, names, words))
    if extra:
        raise ConfigError(f"{path} has no step {', '.join(map(repr, extra))}; it has {', '.join(steps)}")
    return found


def _read(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ConfigError(f"chain file {path!r} does not exist")
    try:
        document = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("steps"), dict) or not document["steps"]:
        raise ConfigError(f"{path} must be a mapping with `steps`: a mapping of step names to options")
    unknown = set(document) - {"root", "vars", "steps"}
    if unknown:
        raise ConfigError(f"{path}: unknown keys {sorted(unknown)}; known: root, vars, steps")
    return document


def _parse_step(
    path: str, name: str, options: Mapping[str, Any], names: Mapping[str, str], extra: Sequence[str]
) -> Step:
    values = _fill(dict(options), names)
    job = values.pop("job", name)
    if job not in RUNNABLE:
        raise ConfigError(f"{path}: step {name!r} runs {job!r}; give `job:` one of {', '.join(RUNNABLE)}")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix=f"{name}-") as stream:
        yaml.safe_dump(values, stream)
        stream.flush()
        try:
            verb, config, request = cli.parse_verb(job, ["--config", stream.name, *extra])
        except ConfigError as error:
            raise ConfigError(f"{path}: step {name!r}: {str(error).replace(stream.name, path)}") from error
    return Step(name=name, job=job, verb=verb, config=config, request=request)


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
