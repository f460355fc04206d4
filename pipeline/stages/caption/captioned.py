"""What the caption stage says of a row, and the table of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

SCORES = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        ("synthetic_captions", pa.list_(pa.string())),
        ("synthetic_itm", SCORES),
        ("synthetic_clip", SCORES),
        ("synthetic_clip2", SCORES),
        ("web_itm", pa.float32()),
        ("web_clip", pa.float32()),
    ]
)


class Captioned(NamedTuple):
    """captions: of one picture, in the order of their draws, equal ones kept. The scores stand in the same
    order; None where there is no such judge, or no text of the web's. clip2 has None for captions that the
    second CLIP was not asked about."""

    captions: list[str] | None = None
    itm: list[float] | None = None
    clip: list[float] | None = None
    clip2: list[float | None] | None = None
    web_itm: float | None = None
    web_clip: float | None = None


_NOTHING = Captioned()


def sidecar(keys: Sequence[str], found: Mapping[str, Captioned]) -> pa.Table:
    """A row for every key, null where nothing was found."""
    rows = [found.get(key, _NOTHING) for key in keys]
    arrays = [pa.array([row[at] for row in rows], field.type) for at, field in enumerate(SCHEMA)]
    return pa.table([pa.array(keys, pa.string()), *arrays], names=["key", *SCHEMA.names])
