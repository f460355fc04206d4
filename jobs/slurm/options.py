"""What a chain may ask of SLURM: the mapping `slurm:` of its file, `all` or a step's name -> options.

    slurm:
      all: {partition: cpu, account: vision, max_restarts: 20}
      crawl: {array: 16, time: "24:00:00"}
      albef: {nodes: 4, gpus-per-node: 8, after: [pack]}

Only the options of the table below are passed on to sbatch, and only values of the form that stands there;
the others (output, dependency, export, job-name ...) are the submission's. Four names are ours, not sbatch's:
`array` (jobs that share a step's units; `16%4`: four at a time), `after` (the steps waited for),
`max_restarts`, and `warn` (seconds before the time limit at which a job is told to save).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import ConfigError

#: the section of all steps
ALL = "all"
#: names that a step cannot have, since they stand for something else in a file or on the command line
RESERVED = (ALL, "slurm", "set")
#: YAML reads 24:00:00 as 86400, and 0x1f, 1e3 and 017 as numbers too
QUOTES = (
    "YAML reads some values as numbers or dates (24:00:00 becomes 86400); "
    'put it in quotes: {name}: "{example}"'
)
#: jobs of an array: SLURM's own limit (MaxArraySize) is 1001 unless a site raises it
MOST_TASKS = 100_000
#: seconds; sbatch takes no more
MOST_WARNING = 65_535


@dataclass(frozen=True, kw_only=True)
class Form:
    """The form of an option's value.

    Attributes:
        pattern: the whole value.
        example: one that is right, for messages.
        number: whether a number of YAML is as good as text.
        several: whether a list of YAML is as good as text with commas.
    """

    pattern: str
    example: str
    number: bool = False
    several: bool = False


_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*"
_NUMBER = r"[0-9]{1,9}"
_MEMORY = rf"{_NUMBER}[KMGTkmgt]?"
_TIME = r"[0-9]+|[0-9]+:[0-9]{2}|[0-9]+:[0-9]{2}:[0-9]{2}|[0-9]+-[0-9]+(:[0-9]{2}){0,2}|UNLIMITED|INFINITE"
_HOSTS = r"[A-Za-z0-9_][A-Za-z0-9_.,\[\]-]*"
_DEVICES = rf"({_NAME}:)?{_NUMBER}"

#: long options of sbatch that a chain may give; all others are refused
FORMS: dict[str, Form] = {
    "account": Form(pattern=_NAME, example="vision"),
    "begin": Form(pattern=r"[A-Za-z0-9][A-Za-z0-9:+./-]*", example="now+2hours"),
    "comment": Form(pattern=r"[A-Za-z0-9_][A-Za-z0-9_ .,:@/+=-]*", example="second run"),
    "constraint": Form(pattern=r"[A-Za-z0-9_\[(][A-Za-z0-9_.,:&|!*()\[\]-]*", example="a100&nvlink"),
    "cpus-per-task": Form(pattern=_NUMBER, example="16", number=True),
    "exclude": Form(pattern=_HOSTS, example="n[3-5],n9", several=True),
    "exclusive": Form(pattern=r"true|false|user|mcs", example="true"),
    "gpus-per-node": Form(pattern=_DEVICES, example="8", number=True),
    "gres": Form(pattern=rf"{_NAME}(:{_NAME})*(,{_NAME}(:{_NAME})*)*", example="gpu:a100:8", several=True),
    "hint": Form(pattern=r"compute_bound|memory_bound|multithread|nomultithread", example="nomultithread"),
    "licenses": Form(
        pattern=rf"{_NAME}(:{_NUMBER})?([,|]{_NAME}(:{_NUMBER})?)*", example="scratch:2", several=True
    ),
    "mail-type": Form(pattern=r"[A-Za-z_]+[0-9]*(,[A-Za-z_]+[0-9]*)*", example="END,FAIL", several=True),
    "mail-user": Form(pattern=rf"{_NAME}", example="me@example.org"),
    "mem": Form(pattern=_MEMORY, example="64G", number=True),
    "nice": Form(pattern=rf"-?{_NUMBER}", example="100", number=True),
    "nodelist": Form(pattern=_HOSTS, example="n[3-5],n9", several=True),
    "nodes": Form(pattern=rf"{_NUMBER}(-{_NUMBER})?", example="4", number=True),
    "partition": Form(pattern=rf"{_NAME}(,{_NAME})*", example="gpu", several=True),
    "qos": Form(pattern=_NAME, example="long"),
    "reservation": Form(pattern=rf"{_NAME}(,{_NAME})*", example="friday"),
    "switches": Form(pattern=rf"{_NUMBER}(@[0-9:-]+)?", example="1", number=True),
    "time": Form(pattern=_TIME, example="24:00:00"),
    "time-min": Form(pattern=_TIME, example="04:00:00"),
    "tmp": Form(pattern=_MEMORY, example="200G", number=True),
    "wckey": Form(pattern=_NAME, example="vision"),
}
#: options that sbatch refuses beside what every batch script gives -> that, to be given instead
INSTEAD = {"cpus-per-gpu": "cpus-per-task", "mem-per-cpu": "mem", "mem-per-gpu": "mem"}
#: seconds before the time limit at which a job is told to save: --signal=B:USR1@SECONDS
WARN = "warn"
ARRAY, AFTER, MAX_RESTARTS = "array", "after", "max_restarts"
OURS = (ARRAY, AFTER, MAX_RESTARTS, WARN)
#: of one step alone
NOT_FOR_ALL = (ARRAY, AFTER)


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """What one step asks of SLURM.

    Attributes:
        flags: options of sbatch, name -> value; an empty value for those without one.
        array: number of jobs that share the step's units; 0: one job.
        at_once: so many of them at a time; 0: all.
        after: names of the steps it waits for; None: the one before it.
        max_restarts: so often may it be requeued; None: as the batch scripts have it.
    """

    flags: Mapping[str, str] = field(default_factory=dict)
    array: int = 0
    at_once: int = 0
    after: tuple[str, ...] | None = None
    max_restarts: int | None = None

    @property
    def words(self) -> list[str]:
        """As words of sbatch, `array` and `after` excepted."""
        return [f"--{name}={value}" if value else f"--{name}" for name, value in self.flags.items()]


def read_section(
    section: Any, steps: Sequence[str], *, overrides: Sequence[str] = (), path: str = ""
) -> dict[str, SlurmOptions]:
    """The options of every step.

    Args:
        section: the chain's mapping `slurm`, or None.
        steps: names of the chain's steps, in order.
        overrides: `--STEP.option=value` and `--all.option=value`, which win, those of a step over `all`.
        path: of the chain's file, for messages.

    Raises:
        ConfigError: an unknown step or option, a value of another form, a step that waits for a later one.
    """
    where = f"{path}: slurm"
    if section is not None and not isinstance(section, Mapping):
        raise ConfigError(f"{where} must be a mapping of `all` or step names to options, not {section!r}")
    given: dict[str, dict[str, Any]] = {}
    for name, options in (section or {}).items():
        _check_step(name, steps, where)
        if options is not None and not isinstance(options, Mapping):
            raise ConfigError(f"{where}.{name} must be a mapping of options, not {options!r}")
        given[name] = _by_option(name, (options or {}).items(), where)
    for name, options in _split(overrides, steps).items():
        given[name] = {**given.get(name, {}), **_by_option(name, options, "--slurm")}
    everyone = given.get(ALL, {})
    if wrong := [option for option in NOT_FOR_ALL if option in everyone]:
        raise ConfigError(f"{where}.all.{wrong[0]}: give it to single steps, all of them cannot share it")
    return {
        name: _build({**everyone, **given.get(name, {})}, steps[:number], f"{where}.{name}")
        for number, name in enumerate(steps)
    }


def _check_step(name: Any, steps: Sequence[str], where: str) -> None:
    if name != ALL and name not in steps:
        raise ConfigError(f"{where}: no step {name!r} in the chain; it has {', '.join(steps)}, or give `all`")


def _split(overrides: Sequence[str], steps: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """`--crawl.time=10:00` -> {"crawl": [("time", "10:00")]}; a step's name may have dots, an option none."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word in overrides:
        name, _, value = word.removeprefix("--").partition("=")
        step, dot, option = name.rpartition(".")
        if not dot:
            raise ConfigError(f"--slurm.{name}: write --slurm.STEP.option value, or --slurm.all.option value")
        _check_step(step, steps, "--slurm")
        found.setdefault(step, []).append((option, value))
    return found


def _by_option(step: str, options: Iterable[tuple[Any, Any]], where: str) -> dict[str, Any]:
    """Option -> value as it was given, the names checked and spelt as sbatch does."""
    found: dict[str, Any] = {}
    for key, value in options:
        name = str(key).replace("_", "-")
        name = MAX_RESTARTS if name == "max-restarts" else name
        if name in INSTEAD:
            raise ConfigError(
                f"{where}.{step}.{name}: sbatch does not take it beside --{INSTEAD[name]}, which the batch "
                f"scripts give; use {INSTEAD[name]}, of each node"
            )
        if name not in FORMS and name not in OURS:
            known = ", ".join(sorted((*FORMS, *OURS)))
            raise ConfigError(f"{where}.{step}: unknown option {key!r}; known: {known}")
        found[name] = value
    return found


def _build(given: Mapping[str, Any], before: Sequence[str], where: str) -> SlurmOptions:
    array, at_once = _array(given.get(ARRAY), f"{where}.{ARRAY}")
    flags = {}
    for name, value in given.items():
        if name in FORMS and value is not None:
            text = _text(name, value, f"{where}.{name}")
            if name == "exclusive":
                text = {"true": "", "false": None}.get(text, text)  # type: ignore[assignment]
            if text is not None:
                flags[name] = text
    if (warn := _number(given.get(WARN), f"{where}.{WARN}", most=MOST_WARNING)) is not None:
        flags["signal"] = f"B:USR1@{warn}"
    return SlurmOptions(
        flags=flags,
        array=array,
        at_once=at_once,
        after=_after(given.get(AFTER), before, f"{where}.{AFTER}"),
        max_restarts=_number(given.get(MAX_RESTARTS), f"{where}.{MAX_RESTARTS}"),
    )


def _text(name: str, value: Any, where: str) -> str:
    form = FORMS[name]
    if isinstance(value, bool) and name == "exclusive":
        value = str(value).lower()
    if form.several and isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        value = ",".join(value)
    if form.number and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ConfigError(f"{where} {value!r} must be text: {QUOTES.format(name=name, example=form.example)}")
    if not re.fullmatch(form.pattern, value, re.ASCII):
        raise ConfigError(
            f"{where} {value!r} is no value for sbatch's --{name}; give one such as {form.example}"
        )
    return value


def _array(value: Any, where: str) -> tuple[int, int]:
    """(jobs, jobs at a time) of `16` or `16%4`."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if text is None:
        return 0, 0
    match = re.fullmatch(r"([0-9]{1,6})(?:%([0-9]{1,6}))?", text, re.ASCII) if isinstance(text, str) else None
    if match is None or int(match[1]) > MOST_TASKS or (match[2] is not None and int(match[2]) < 1):
        raise ConfigError(
            f"{where} {value!r} must be a number of jobs, such as 16, or 16%4 for four at a time"
        )
    return int(match[1]), int(match[2] or 0)


def _number(value: Any, where: str, *, most: int = 10**6) -> int | None:
    if value is None:
        return None
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not re.fullmatch(_NUMBER, text, re.ASCII) or int(text) > most:
        raise ConfigError(f"{where} {value!r} must be a number from 0 to {most}")
    return int(text)


def _after(value: Any, before: Sequence[str], where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        value = [word for word in value.split(",") if word]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{where} {value!r} must be a list of step names, such as [pack]")
    for name in value:
        if name not in before:
            raise ConfigError(
                f"{where}: {name!r} is no step before this one; those are {', '.join(before) or 'none'}"
            )
    return tuple(dict.fromkeys(value))
