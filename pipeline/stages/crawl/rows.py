"""What became of each row, told as img2dataset does: the parquet, a sample's json, the statistics."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.shards.format import sample_uid
from pipeline.shards.reader import Sample
from pipeline.tombstones import empty_rows, taken_rows

if TYPE_CHECKING:  # these take seconds to import, and the names of the columns are asked for without them
    from pipeline.stages.crawl.fetch import Fetched
    from pipeline.stages.crawl.images import Picture

#: img2dataset's columns in its order and types, then ours
SCHEMA = pa.schema(
    [
        ("caption", pa.string()),
        ("url", pa.string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),
        ("reason", pa.string()),
        ("http_status", pa.int32()),
        ("uid", pa.string()),
        ("bytes", pa.int64()),
    ]
)

#: message of a row that was refused (by a rule, a tombstone) before anything was asked for
NOT_ASKED = "refused before it was asked for"

#: made once: `json.dumps` makes an encoder a call
_JSON = json.JSONEncoder(ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class Fate:
    """One row of the parquet, the carried columns aside. `attempts` goes into sums only: it is chance."""

    row: dict[str, Any]
    attempts: int

    @property
    def reason(self) -> str | None:
        return self.row["reason"]


def make_fate(
    key: str, url: str | None, caption: str | None, fetched: Fetched, picture: Picture | None
) -> Fate:
    """Puts together what the fetcher and the image processor say."""
    failed = fetched if fetched.reason is not None or picture is None else picture
    status = "success"
    if fetched.body is None or failed.reason == "hash_mismatch":  # as img2dataset counts it
        status = "failed_to_download"
    elif failed.reason is not None:
        status = "failed_to_resize"
    row = {
        "caption": caption,
        "url": url,
        "key": key,
        "status": status,
        "error_message": failed.message,
        "width": picture.width if picture else None,
        "height": picture.height if picture else None,
        "original_width": picture.original_width if picture else None,
        "original_height": picture.original_height if picture else None,
        "exif": picture.exif if picture else None,
        "sha256": picture.sha256 if picture else None,
        "reason": failed.reason,
        "http_status": fetched.http_status,
        "uid": sample_uid(caption or "", url or ""),
        "bytes": len(fetched.body) if fetched.body is not None else None,
    }
    return Fate(row=row, attempts=fetched.attempts)


def make_sample(fate: Fate, carried: Mapping[str, Any], picture: bytes, suffix: str) -> Sample:
    """picture, caption and json; the json holds no nulls, which HF datasets cannot type."""
    # what json cannot hold is rare, and comes from lists alone: our own columns are texts and integers
    facts = {name: value for name, given in carried.items() if (value := _plain(given)) is not None}
    facts.update((name, value) for name, value in fate.row.items() if value is not None)
    members = {
        suffix: picture,
        "json": _JSON.encode(facts).encode("utf-8", "replace"),
        "txt": (fate.row["caption"] or "").encode("utf-8", "replace"),
    }
    return Sample(fate.row["key"], members)


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; None where it cannot."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): p for k, v in value.items() if (p := _plain(v)) is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, (bytes, bytearray)) else str(value)


def make_table(fates: Sequence[Fate], carried: pa.Table) -> pa.Table:
    """All rows, in the order of their keys: the carried columns, then `SCHEMA`.

    The same values give the same bytes of parquet, however the carried columns were cut into chunks and
    whatever the file they came from noted beside them (numbers of fields, say). Of rows that were taken down
    nothing is told but that.
    """
    written = [pa.array([f.row[name] for f in fates], SCHEMA.field(name).type) for name in SCHEMA.names]
    fields = [pa.field(f.name, f.type, f.nullable) for f in carried.schema]
    schema = pa.schema([*fields, *SCHEMA])
    table = pa.table([*carried.columns, *written], schema=schema)
    return empty_rows(table, taken_rows(table)).combine_chunks()


def make_stats(
    fates: Sequence[Fate], *, began: float, ended: float, figures: Mapping[str, float | int]
) -> dict[str, Any]:
    """img2dataset's statistics, times in seconds since 1970; then what the fetching cost (`FetchFigures`)."""
    status = Counter(f.row["status"] for f in fates)
    return {
        "count": len(fates),
        "successes": status["success"],
        "failed_to_download": status["failed_to_download"],
        "failed_to_resize": status["failed_to_resize"],
        "duration": ended - began,
        "start_time": began,
        "end_time": ended,
        "status_dict": dict(Counter(f.row["error_message"] or "success" for f in fates)),
        **figures,
    }
