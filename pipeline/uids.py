"""A set of sample uids, as DataComp publishes its subsets: `.npy` of 64-bit pairs, or a text list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.errors import ConfigError

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
        return pa.array([uid is not None and self._holds(uid) for uid in uids.to_pylist()], pa.bool_())

    def _holds(self, uid: str) -> bool:
        try:
            high, low = _halves(uid)
        except ValueError:
            return False
        start, stop = np.searchsorted(self.high, [high, high + 1 if high < 2**64 - 1 else high]).astype(int)
        if high == 2**64 - 1:
            stop = len(self.high)
        place = start + int(np.searchsorted(self.low[start:stop], np.uint64(low)))
        return place < stop and int(self.low[place]) == low


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
