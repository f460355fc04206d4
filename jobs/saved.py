"""What a run leaves in `_pairmill/config.yaml`, and how a later command builds the same stage from it.

    # pairmill dedup: dedup-sketch
    input: /data/images
    ...

The file is one that `pairmill VERB --config` takes. Its first line, a comment, says which verb it belongs to
and which of the verb's stages wrote the folder. Relative paths are made absolute, so that `verify --fix` and
`retry` work from any folder.

    stage = load_saved("columns/clip").stage
"""

from __future__ import annotations

import dataclasses
import glob
import importlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline import manifest, storage
from pipeline.errors import ConfigError
from pipeline.runner_options import RunOptions
from pipeline.stage import Stage

HEADER = "# pairmill "
#: options of the runner that belong to one run alone
ONCE = frozenset({"limit", "task", "overwrite", "allow_failed"})


@dataclass(frozen=True, kw_only=True)
class Saved:
    """How a folder was made.

    verb: the name of the command.
    config: the verb's config, as it was parsed.
    options: the runner's options, without those that belong to one run alone (limit, task, overwrite,
        allow_failed).
    output: the verb's output folder: the folder itself, or for dedup's inner stages the one above.
    stage: the stage that wrote the folder, built anew.
    resolved: the text of the file.
    """

    verb: str
    config: Any
    options: RunOptions
    output: str
    stage: Stage
    resolved: str


def portable(verb: str, config: Any, dumped: str) -> str:
    """The text to save: the verb's name in a comment, then the configuration with absolute paths.

    Args:
        config: the parsed config, whose fields say what is a location (`pipeline.settings.location`).
        dumped: the whole configuration as YAML.
    """
    values = yaml.safe_load(dumped)
    _make_absolute(config, values)
    if isinstance(values.get("output"), str):
        values["output"] = storage.absolute(values["output"]) if values["output"] else ""
    return f"{HEADER}{verb}\n" + as_yaml(values)


class _Dumper(yaml.SafeDumper):
    """The command line reads more texts as numbers than YAML's own rules do (`1e3`): what begins like one is
    put in quotes."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = "'" if text[:1] in tuple("+-.0123456789") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def as_yaml(values: Mapping[str, Any]) -> str:
    """Options as a file that `--config` takes and reads as the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def _make_absolute(config: Any, values: dict[str, Any]) -> None:
    for field in dataclasses.fields(config):
        value, saved = getattr(config, field.name), values.get(field.name)
        if dataclasses.is_dataclass(value) and isinstance(saved, dict):
            _make_absolute(value, saved)
        elif field.metadata.get("location") and isinstance(saved, list):
            values[field.name] = [_absolute(item) for item in saved]
        elif field.metadata.get("location"):
            values[field.name] = _absolute(saved)


def _absolute(value: Any) -> Any:
    """A relative path or glob that names something here; a URL, or the name of a model, stays as it is."""
    if not isinstance(value, str) or not value or Path(value).is_absolute() or "://" in value:
        return value
    if Path(value).exists() or glob.has_magic(value):
        return str(Path.cwd() / value)
    name, equals, place = value.partition("=")  # NAME=PLACE, as dedup's benchmarks are given
    return f"{name}={_absolute(place)}" if equals else value


def name_stage(resolved: str, stage: Stage) -> str:
    """The text with the stage's name in its first line: `# pairmill dedup: dedup-sketch`."""
    header, newline, rest = resolved.partition("\n")
    return f"{header}: {stage.name}{newline}{rest}" if header.startswith(HEADER) else resolved


def load_saved(folder: str, overrides: Sequence[str] = ()) -> Saved:
    """How an output folder was made, with its stage built anew; nothing is opened or planned yet.

    Args:
        overrides: options of the verb that win over what was saved, such as `["--workers", "2"]`.

    Raises:
        ConfigError: no command wrote the folder, or its configuration is not one of today's options.
    """
    folder = storage.absolute(folder)
    verb, stage_name, text = _read(folder)
    from jobs import cli  # the command line saves what it parsed by this module

    values = {name: value for name, value in yaml.safe_load(text).items() if name not in ONCE}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix=f"{verb}-", encoding="utf-8") as stream:
        stream.write(as_yaml(values))
        stream.flush()
        try:
            found, config, request = cli.parse_verb(verb, ["--config", stream.name, *overrides])
        except ConfigError as error:
            message = str(error).replace(stream.name, manifest.config_url(folder))
            advice = "mend it" if overrides else f"run `pairmill {verb}` into it again first"
            raise ConfigError(f"{folder}: {message}; {advice}") from error
    assert found.stages is not None, verb
    # the folder may have been moved since; an inner stage of a verb lies one below the verb's output
    for output in (folder, folder.rpartition("/")[0]):
        for stage, place in found.stages(config, output):
            if place == folder and stage.name == stage_name:
                return Saved(
                    verb=verb,
                    config=config,
                    options=request.options,
                    output=output,
                    stage=stage,
                    resolved=text,
                )
    raise ConfigError(f"{folder}: `pairmill {verb}` has no stage {stage_name!r} that writes there")


def _read(folder: str) -> tuple[str, str, str]:
    """(verb, stage's name, whole text) of a folder's saved configuration."""
    url = manifest.config_url(folder)
    again = "run the command that made it once more; a finished stage is left as it is"
    if not storage.exists(url):
        raise ConfigError(f"{folder}: no {url}, so how it was made is not known; {again}")
    text = storage.read_bytes(url).decode()
    verb, _, stage = text.partition("\n")[0].removeprefix(HEADER).partition(": ")
    if not text.startswith(HEADER) or not stage:
        raise ConfigError(f"{url} does not say which command wrote it; {again}")
    if not (verb.isidentifier() and _is_stage_verb(verb)):
        raise ConfigError(f"{url} names the command {verb!r}, which makes no such folder; {again}")
    return verb, stage, text


def _is_stage_verb(verb: str) -> bool:
    from jobs import cli

    return (
        verb in cli.VERBS
        and verb not in cli.POSITIONAL
        and importlib.import_module(f"jobs.{verb}").VERB.stage
    )
