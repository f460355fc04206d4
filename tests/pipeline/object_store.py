"""A bucket of moto's S3 server on loopback, for tests: a real S3 API over HTTP."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from moto.server import ThreadedMotoServer


@contextlib.contextmanager
def s3_bucket(name: str) -> Iterator[str]:
    """`s3://NAME`; credentials and endpoint stand in environment variables, as a user sets them."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    from s3fs import S3FileSystem

    before = dict(os.environ)
    os.environ.update(settings)
    S3FileSystem.clear_instance_cache()  # those of earlier tests speak to servers that are gone
    try:
        S3FileSystem().mkdir(name)
        yield f"s3://{name}"
    finally:
        S3FileSystem.clear_instance_cache()
        os.environ.clear()
        os.environ.update(before)
        server.stop()
