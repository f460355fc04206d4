"""Which archives there are: files, globs, URLs, and Common Crawl's lists of paths.

    --input 'crawl/*.warc.gz'
    --input https://data.commoncrawl.org/crawl-data/CC-MAIN-2024-22/wat.paths.gz
    --input wat.paths.gz --base_url s3://commoncrawl/

A list (`*.paths`, `*.paths.gz`) names an archive a line, relative to `base_url`. Its 90,000 archives are
planned without a request: their fingerprint is their path, since what Common Crawl has published never changes.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence

from pipeline import inputs, storage
from pipeline.errors import ConfigError
from pipeline.stage import Input

#: what Common Crawl calls archives, and what holds no pictures of pages
_KINDS = (".warc.gz", ".wat.gz", ".warc", ".wat")
COMMON_CRAWL = "https://data.commoncrawl.org/"


def archives(patterns: str | Sequence[str], base_url: str) -> list[tuple[str, Input]]:
    """Every archive once, with the name it is told by.

    Raises:
        ConfigError: a pattern names no file, a list is no list of archives, two archives have the same name.
    """
    found: dict[str, Input] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name, info in inputs.files(pattern):
            if name.endswith((".paths", ".paths.gz")):
                pieces = [_listed(path, base_url) for path in read_paths(info.url)]
            else:
                pieces = [(name, Input(url=info.url, fingerprint=inputs.file_fingerprint(info)))]
            for key, mark in pieces:
                if found.setdefault(key, mark).url != mark.url:
                    raise ConfigError(
                        f"inputs {found[key].url!r} and {mark.url!r} have the same name {key!r}; "
                        "give one glob from a common folder instead"
                    )
    return list(found.items())


def read_paths(url: str) -> list[str]:
    """The paths that a list names, in its order.

    Raises:
        ConfigError: the list is no readable text, names nothing, or names what is no WARC or WAT.
    """
    data = storage.read_bytes(url)
    try:
        text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"list of paths {url}: not readable: {error}; fetch it again") from error
    paths = [line.strip() for line in text.splitlines() if line.strip()]
    if not paths:
        raise ConfigError(f"list of paths {url}: it names no archive; fetch it again or leave it out")
    for number, path in enumerate(paths, 1):
        if not path.endswith(_KINDS) or len(path.split()) > 1 or ".." in path.split("/"):
            raise ConfigError(
                f"list of paths {url}: line {number} {path[:80]!r} names no WARC or WAT archive; take "
                "warc.paths.gz or wat.paths.gz (WET files hold text alone)"
            )
    return paths


def _listed(path: str, base_url: str) -> tuple[str, Input]:
    name = path.partition("://")[2] or path
    url = path if "://" in path else storage.join(base_url, path.lstrip("/"))
    return name.lstrip("/"), Input(url=url, fingerprint=hashlib.sha256(name.encode()).hexdigest()[:12])
