"""Config dataclasses: which fields change the result, and how two configs differ.

A field made with `operational` says where, how fast or how talkative a run is. Every other field is semantic:
it is part of the digest of what is made, and changing it over an existing output is refused. A leaf that
stages and training share.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any


def operational(default: Any = dataclasses.MISSING, *, factory: Callable[[], Any] | None = None) -> Any:
    """A config field that does not change the output (workers, timeouts, politeness, locations).

    Every other field is semantic: it is part of the digest of each unit, and changing it over an existing
    output is refused.
    """
    if factory is not None:
        return field(default_factory=factory, metadata={"operational": True})
    return field(default=default, metadata={"operational": True})


def since(default: Any = dataclasses.MISSING, *, factory: Callable[[], Any] | None = None) -> Any:
    """A semantic field that came after outputs had been made without it: it has no part in the digest while
    it is at its default, which stands for what was done before, so these outputs stay valid."""
    if factory is not None:
        return field(default_factory=factory, metadata={"since": True})
    return field(default=default, metadata={"since": True})


def location(default: Any = dataclasses.MISSING, *, factory: Callable[[], Any] | None = None) -> Any:
    """An operational field that names files or folders: paths, globs or URLs, one or several. Its relative
    paths are made absolute where the configuration is saved, so that it says the same in another folder."""
    metadata = {"operational": True, "location": True}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def semantic_config(config: Any) -> dict[str, Any]:
    """The fields of a config dataclass that change the output, nested ones included, as JSON values."""
    found = {}
    for f in dataclasses.fields(config):
        if f.metadata.get("operational"):
            continue
        if f.metadata.get("since") and getattr(config, f.name) == _default(f):
            continue
        found[f.name] = _json_value(getattr(config, f.name))
    return found


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


def _json_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return semantic_config(value)
    if isinstance(value, Mapping):
        return {str(k): _json_value(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_json_value(v) for v in value)
    if isinstance(value, list | tuple):
        return [_json_value(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two configs as JSON values, one `name old -> new` each."""
    found: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name} {json.dumps(old)} -> {json.dumps(new)}")
    return found
