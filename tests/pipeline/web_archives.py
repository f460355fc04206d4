"""Archives for the discover tests, written by hand or by warcio, never by code of ours."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter


def html_record(
    writer: WARCWriter, url: str, body: bytes, kind: str = "text/html", status: str = "200 OK"
) -> None:
    headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
    record = writer.create_warc_record(url, "response", payload=io.BytesIO(body), http_headers=headers)
    writer.write_record(record)


def warc(pages: dict[str, bytes], *, packed: bool = True, kind: str = "text/html; charset=utf-8") -> bytes:
    """A WARC by warcio: warcinfo, then for each page a request and its response."""
    sink = io.BytesIO()
    writer = WARCWriter(sink, gzip=packed)
    writer.write_record(writer.create_warcinfo_record("test.warc", {"software": "warcio"}))
    for url, body in pages.items():
        request = StatusAndHeaders("GET / HTTP/1.1", [("Host", "x")], is_http_request=True)
        writer.write_record(writer.create_warc_record(url, "request", http_headers=request))
        html_record(writer, url, body, kind)
    return sink.getvalue()


def raw_record(block: bytes, kind: str, url: str, content_type: str) -> bytes:
    """A record spelt out byte by byte, for blocks that no library would write."""
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-05-18T01:58:10Z\r\n"
        f"WARC-Record-ID: <urn:uuid:292f457d-203c-42f2-a1b5-69a4dabefd4f>\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def response(http: bytes, url: str = "http://site.example/") -> bytes:
    return raw_record(http, "response", url, "application/http; msgtype=response")


def wat_record(url: str, html: dict[str, Any] | None) -> bytes:
    """One record of a WAT as Common Crawl's extractor writes it (fields as in CC-MAIN-2024-22)."""
    payload: dict[str, Any] = {
        "Container": {
            "Filename": "CC-MAIN-20240517233122-20240518023122-00000.warc.gz",
            "Compressed": True,
            "Offset": "80610308",
            "Gzip-Metadata": {
                "Deflate-Length": "423",
                "Header-Length": "10",
                "Footer-Length": "8",
                "Inflated-CRC": "1106529533",
                "Inflated-Length": "626",
            },
        },
        "Envelope": {
            "Payload-Metadata": {
                "Actual-Content-Type": "application/http; msgtype=response",
                "HTTP-Response-Metadata": {
                    "Response-Message": {"Version": "HTTP/1.1", "Status": "200", "Reason": "OK"},
                    "Headers-Length": "1226",
                    "Headers": {"content-type": "text/html; charset=UTF-8", "server": "nginx"},
                    "HTML-Metadata": html,
                    "Entity-Length": "73353",
                    "Entity-Digest": "sha1:RY7PLBUFQNI2FFV5FTUQK72W6SNPXLQU",
                    "Entity-Trailing-Slop-Length": "0",
                },
                "Actual-Content-Length": "74581",
                "Trailing-Slop-Length": "4",
                "Block-Digest": "sha1:35FTUGFVNWRVTZQGCWIX2MQA3LMYC7X7",
            },
            "Format": "WARC/1.0",
            "WARC-Header-Length": "620",
            "WARC-Header-Metadata": {
                "WARC-Type": "response",
                "WARC-Date": "2024-05-18T01:58:10Z",
                "WARC-Record-ID": "<urn:uuid:2aabeff2-67f5-4608-8466-e87c6296e2b6>",
                "Content-Length": "74581",
                "Content-Type": "application/http; msgtype=response",
                "WARC-IP-Address": "208.80.154.224",
                "WARC-Target-URI": url,
            },
        },
    }
    if html is None:  # the record of a request
        metadata = payload["Envelope"]["Payload-Metadata"]
        del metadata["HTTP-Response-Metadata"]
        metadata["HTTP-Request-Metadata"] = {
            "Request-Message": {"Method": "GET", "Path": "/", "Version": "1"}
        }
    block = json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode()
    return raw_record(block, "metadata", url, "application/json")


def wat_info() -> bytes:
    block = b"Software-Info: ia-web-commons.1.1.10\r\nformat: WARC File Format 1.0\r\n\r\n"
    return raw_record(block, "warcinfo", "", "application/warc-fields").replace(b"WARC-Target-URI: \r\n", b"")


def members(records: list[bytes]) -> bytes:
    """Record-wise gzip."""
    return b"".join(gzip.compress(record) for record in records)
