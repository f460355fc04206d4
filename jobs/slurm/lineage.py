"""Which step of a chain reads what another one writes, by the paths in their options."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import yaml

from jobs.chain import Step

#: options of this name say where something is written
OUTPUT = "output"
#: longer text is no path
LONGEST = 4096


def makers(step: Step, before: Sequence[Step]) -> list[Step]:
    """The steps of `before` that write what `step` reads: one of its options names their output folder, a
    place below it, or a glob that may lead there."""
    read = {place for text in _values(_options(step)) for place in _places(text)}
    return [other for other in before if any(_leads_to(r, w) for w in _written(other) for r in read)]


def _options(step: Step) -> dict[str, Any]:
    return yaml.safe_load(step.request.resolved)


def _written(step: Step) -> list[tuple[str, ...]]:
    found = [step.output, *_outputs(_options(step))]
    if step.job == "evaluate" and not step.config.output:
        found.append(posixpath.join(step.config.model, "eval"))
    return [place for text in dict.fromkeys(found) if text for place in _places(text)]


def _outputs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == OUTPUT and isinstance(inner, str):
                yield inner
            else:
                yield from _outputs(inner)


def _values(value: Any) -> Iterator[str]:
    """All texts in the options but where something is written."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key != OUTPUT:
                yield from _values(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner)
    elif isinstance(value, str) and 0 < len(value) <= LONGEST:
        yield value


def _places(text: str) -> list[tuple[str, ...]]:
    """A text as the parts of a path; also what stands behind `NAME=`."""
    words = [text, text.partition("=")[2]] if "=" in text else [text]
    return [_parts(word) for word in words if word]


def _parts(text: str) -> tuple[str, ...]:
    text = text.removeprefix("file://")
    scheme, mark, rest = text.partition("://")
    if mark:
        return (scheme, *posixpath.normpath(rest).split("/"))
    return ("file", *os.path.abspath(text).strip("/").split("/"))  # noqa: PTH100 - links stay as they are


def _leads_to(read: Sequence[str], written: Sequence[str]) -> bool:
    """Whether what is read lies in the folder that is written, part by part."""
    for number, part in enumerate(written):
        if number >= len(read):
            return False
        if read[number] == "**":
            return True
        if read[number] != part and not fnmatchcase(part, read[number]):
            return False
    return True
