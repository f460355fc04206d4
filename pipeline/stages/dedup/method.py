"""What a method of dedup is: the options that mean something to it, and its stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError
from pipeline.stage import Stage
from pipeline.stages.dedup.config import DedupConfig

#: options of all methods
COMMON = frozenset({"input", "method"})


@dataclass(frozen=True, kw_only=True)
class Method:
    """options: fields of DedupConfig, beside those of all methods, that mean something to this one.
    stages: (config, output folder) -> stages with their folders, in the order in which they are to be run,
    each after the one before it is finished; the last one writes the columns, into the output folder itself.
    """

    options: frozenset[str]
    stages: Callable[[DedupConfig, str], list[tuple[Stage, str]]]

    def refuse_options_of_others(self, config: DedupConfig) -> None:
        """Raises ConfigError for an option that is not at its default and means nothing to this method."""
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if field.name in COMMON | self.options or value == _default(field):
                continue
            name = field.name
            if dataclasses.is_dataclass(value):
                inner = next(f for f in dataclasses.fields(value) if getattr(value, f.name) != _default(f))
                name, value = f"{name}.{inner.name}", getattr(value, inner.name)
            raise ConfigError(f"{name} {value!r} means nothing to method {config.method!r}; leave it away")


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
