"""Query entries, and which of them a caption holds.

MetaCLIP (arXiv:2309.16671, section 3.2) matches an entry where it stands in the text as whole words:
punctuation is set apart by spaces, and the entry must have a space on both sides. One pass of an Aho-Corasick
automaton finds all of half a million entries at once.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.errors import ConfigError

#: punctuation that is a word of its own, and white space that counts as a space
_APART, _SPACE = ",.;:?!`", "\t\n\r"
_TABLE = str.maketrans({**{mark: f" {mark} " for mark in _APART}, **dict.fromkeys(_SPACE, " ")})


def spaced(text: str) -> str:
    """A text as entries are looked for in it: one space before and after every word."""
    return f" {' '.join(text.translate(_TABLE).split())} "


def load_entries(url: str) -> list[str]:
    """The entries of a file, each once, in its order: a JSON list (`.json`), else one a line.

    Raises:
        ConfigError: it does not exist, holds no text, or is no list of strings.
    """
    if not storage.exists(url):
        raise ConfigError(
            f"entries {url!r} does not exist; give a JSON list of query entries, or a text file with one "
            "a line"
        )
    with storage.local_copy(url) as path:
        found = _from_json(path, url) if url.endswith(".json") else _from_lines(path)
    entries = list(dict.fromkeys(entry.strip() for entry in found if entry.strip()))
    if not entries:
        raise ConfigError(f"entries {url!r} holds no entry; give one a line")
    return entries


def _from_json(path: Path, url: str) -> list[str]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"entries {url!r} is not JSON ({error}); give a list of strings") from error
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise ConfigError(f"entries {url!r} must be a JSON list of strings")
    return found


def _from_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def entry_mark(entry: str) -> int:
    """64 bits that stand for an entry in draws, whatever its place in the file."""
    return int.from_bytes(hashlib.blake2b(entry.encode(), digest_size=8).digest(), "big")


class Matcher:
    """Finds the entries of a text. Building it takes about a second for each quarter of a million entries."""

    def __init__(self, entries: list[str], *, lower: bool) -> None:
        """lower: capital letters of entries and texts mean nothing."""
        import ahocorasick  # only workers need it

        self.lower = lower
        self._automaton: Any = ahocorasick.Automaton()
        places: dict[str, list[int]] = {}
        for place, entry in enumerate(entries):
            # an entry goes through what texts go through: `U.S.` is looked for as ` U . S . `
            pattern = spaced(entry.lower() if lower else entry)
            places.setdefault(pattern, []).append(place)
        for pattern, found in places.items():
            self._automaton.add_word(pattern, tuple(found))
        self._automaton.make_automaton()

    def find(self, text: str) -> list[int]:
        """The places of the entries that the text holds, each once, sorted."""
        text = spaced(text.lower() if self.lower else text)
        return sorted({place for _, places in self._automaton.iter(text) for place in places})
