"""Which archives there are: files, globs, URLs, and Common Crawl's lists of paths.

    --input 'crawl/*.warc.gz'
    --input https://data.commoncrawl.org/crawl-data/CC-MAIN-2024-22/wat.paths.gz
    --input wat.paths.gz --base_url s3://commoncrawl/

A list (`*.paths`, `*.paths.gz`) names an archive a line, relative to `base_url`. Its 90,000 archives are
planned without a request: their fingerprint is their path, for what Common Crawl has published never changes.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Sequence

from pipeline import inputs, storage
from pipeline.errors import ConfigError, InputError
from pipeline.stage import Input
from pipeline.stages.discover.streams import ReadConfig, open_stream

#: what Common Crawl calls archives, and what holds no pictures of pages
_KINDS = (".warc.gz", ".wat.gz", ".warc", ".wat")
_LISTS = (".paths", ".paths.gz")
COMMON_CRAWL = "https://data.commoncrawl.org/"


def archives(patterns: str | Sequence[str], base_url: str, reading: ReadConfig) -> list[tuple[str, Input]]:
    """Every archive once, with the name it is told by.

    Raises:
        ConfigError: a pattern names no file, a list is no list of archives, two archives have the same name.
    """
    found: dict[str, Input] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name, mark in _named(pattern, base_url, reading):
            if found.setdefault(name, mark).url != mark.url:
                raise ConfigError(
                    f"inputs {found[name].url!r} and {mark.url!r} have the same name {name!r}; "
                    "give one glob from a common folder instead"
                )
    return list(found.items())


def _named(pattern: str, base_url: str, reading: ReadConfig) -> Iterator[tuple[str, Input]]:
    if pattern.startswith(("http://", "https://")) and pattern.endswith(_LISTS):
        yield from (_listed(path, base_url) for path in read_paths(pattern, reading))
        return
    for name, info in inputs.files(pattern):
        if name.endswith(_LISTS):
            yield from (_listed(path, base_url) for path in read_paths(info.url, reading))
        else:
            yield name, Input(url=info.url, fingerprint=inputs.file_fingerprint(info))


def read_paths(url: str, reading: ReadConfig) -> list[str]:
    """The paths that a list names, in its order.

    Raises:
        ConfigError: the list is no readable text, names nothing, or names what is no WARC or WAT.
    """
    try:
        with open_stream(url, reading) as stream:
            data = stream.read()
    except FileNotFoundError as error:
        raise ConfigError(f"list of paths {url} is not there; mend --input") from error
    except (InputError, ConnectionError) as error:
        raise ConfigError(f"list of paths {url}: {error}") from error
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
