"""A set of sample uids, as DataComp publishes its subsets: `.npy` of 64-bit pairs, or a text list."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.errors import ConfigError, InputError

_PAIR = np.dtype("u8,u8")


class UidSet:
    """128-bit uids held as two sorted arrays of 64-bit halves: 16 bytes a uid."""

    def __init__(self, pairs: np.ndarray) -> None:
        """pairs: (N,) of dtype `u8,u8`: high half, low half; in any order."""
        order = np.lexsort((pairs["f1"], pairs["f0"]))
        self.high = np.ascontiguousarray(pairs["f0"][order])
        self.low = np.ascontiguousarray(pairs["f1"][order])

    def __len__(self) -> int:
        return len(self.high)

    def contains(self, uids: pa.Array | pa.ChunkedArray) -> pa.BooleanArray:
        """Whether each uid (32 hex digits) is in the set; false for null and for what is no uid."""
        values = uids.to_pylist()
        pairs = [_pair_or_none(uid) for uid in values]
        found = np.zeros(len(values), bool)
        places = np.flatnonzero([pair is not None for pair in pairs])
        # uint64 throughout: numpy compares signed with unsigned as floats, which tell neighbours not apart
        asked = np.array([pair for pair in pairs if pair is not None], np.uint64).reshape(-1, 2)
        start = np.searchsorted(self.high, asked[:, 0], "left")
        stop = np.searchsorted(self.high, asked[:, 0], "right")
        for place, low, first, last in zip(places, asked[:, 1], start, stop, strict=True):
            at = first + np.searchsorted(self.low[first:last], low) if first < last else last
            found[place] = at < last and self.low[at] == low
        return pa.array(found)


def _pair_or_none(uid: str | None) -> tuple[int, int] | None:
    try:
        return None if uid is None else _halves(uid)
    except ValueError:
        return None


def _halves(uid: str) -> tuple[int, int]:
    if len(uid) != 32:
        raise ValueError(f"uid {uid!r} must be 32 hex digits")
    number = int.from_bytes(bytes.fromhex(uid), "big")
    return number >> 64, number & (2**64 - 1)


def load(url: str) -> UidSet:
    """Reads a subset file: `.npy` with dtype `u8,u8` (never pickled), else text with one uid a line.

    Raises:
        ConfigError: it does not exist, or is neither.
    """
    if not storage.exists(url):
        raise ConfigError(f"uids {url!r} does not exist; give a .npy file of uid pairs or a text list")
    with storage.local_copy(url) as path:
        return UidSet(_load_npy(path) if url.endswith(".npy") else _load_text(path))


def _load_npy(path: Path) -> np.ndarray:
    try:
        pairs = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ConfigError(f"uids {str(path)!r} is no array of numpy ({error})") from error
    if pairs.dtype != _PAIR or pairs.ndim != 1:
        raise ConfigError(
            f"uids {str(path)!r} has dtype {pairs.dtype} and shape {pairs.shape}; "
            "it must be one row of 'u8,u8' pairs, as DataComp writes them"
        )
    return pairs


def _load_text(path: Path) -> np.ndarray:
    pairs = []
    with path.open(encoding="ascii", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                pairs.append(_halves(line.strip()))
            except ValueError as error:
                raise ConfigError(
                    f"uids {str(path)!r}, line {number}: {line.strip()[:40]!r} is no uid"
                ) from error
    return np.array(pairs, dtype=_PAIR)


def dump(uids: pa.ChunkedArray) -> bytes:
    """A subset file of these uids (32 hex digits each): each once, sorted, as DataComp's resharder takes it.

    Raises:
        InputError: one of them is no uid.
    """
    try:
        pairs = np.array([_halves(uid) for uid in uids.to_pylist()], dtype=_PAIR)
    except (TypeError, ValueError) as error:
        raise InputError(f"a list of uids cannot be written: {error}") from error
    sink = io.BytesIO()
    np.save(sink, np.unique(pairs))
    return sink.getvalue()
