"""The crawl leaves alone what was taken down: such a row is never asked for, or its body is dropped unread.

What a tombstone names by URL, domain, page or uid costs no request; what it names by the sha256 of the body
is dropped after the download. Either way nothing of the row is kept but its key, its uid and the reason.
"""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from pipeline import tombstones
from pipeline.shards.format import sample_uid
from pipeline.stages.crawl.fetch import Fetched
from pipeline.stages.crawl.sources import Rows
from pipeline.tombstones import Tombstones

#: what became of a row that was taken down
TAKEN = Fetched(reason=tombstones.TAKEN_DOWN, message=tombstones.MESSAGE, attempts=0)


def refuse_taken(rows: Rows, stones: Tombstones) -> Rows:
    """The rows, those refused that a tombstone names before anything is asked of the web."""
    if not stones:
        return rows
    known = {"url": pa.array(rows.urls, pa.string())}
    if "uid" in stones.columns:
        pairs = zip(rows.captions, rows.urls, strict=True)
        known["uid"] = pa.array([sample_uid(c or "", u or "") for c, u in pairs], pa.string())
    if "page_url" in stones.columns and "page_url" in rows.carried.column_names:
        known["page_url"] = rows.carried["page_url"].cast(pa.string())
    taken = stones.mask(pa.table(known)).to_pylist()
    refused = rows.refused or [None] * len(taken)
    return replace(
        rows,
        refused=[
            tombstones.TAKEN_DOWN if gone else reason for gone, reason in zip(taken, refused, strict=True)
        ],
    )
