"""Errors that are part of the interface: what was wrong, the value, the fix."""

from __future__ import annotations


class ConfigError(ValueError):
    """The user asked for something impossible: nothing was started. The command exits with 2."""


class InputError(ValueError):
    """An input cannot be read (truncated archive, corrupt shard): the unit fails, the others go on."""


class RunError(RuntimeError):
    """The run cannot go on: no worker starts, the storage does not answer. What is committed stays, and the
    same command completes it later. The command exits with 1."""


class StorageFullError(RunError):
    """A disk is full; the message names it, and what is free."""
