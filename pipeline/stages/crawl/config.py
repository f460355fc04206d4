"""The options of the crawl. Light to import: the command line reads it before anything is fetched."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pipeline.errors import ConfigError
from pipeline.settings import location, operational
from pipeline.shards.format import MAX_SHARD_SAMPLES
from pipeline.stages.crawl.gate import Gate
from pipeline.stages.crawl.images import ImageOptions

#: the places at a host are numbered below the lock that guards its rate
MAX_PER_HOST = 4000


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """How URLs are fetched.

    Attributes:
        concurrency: requests at a time in one worker; at most so many bodies of max_bytes are in memory.
        max_per_host: requests at a time to one host name, from all workers of a node together.
        min_interval: seconds between the starts of two requests to one host, from all workers of a node
            together; 0 leaves it at max_per_host.
        max_crawl_delay: a Crawl-delay in robots.txt is such an interval, up to so many seconds; 0 ignores it.
        connect_timeout: seconds to look up a name, connect and agree on TLS.
        read_timeout: seconds until the first byte, and between any two.
        total_timeout: seconds for one attempt as a whole, redirects and body included.
        shard_timeout: seconds after which no request of a shard starts any more; what is left is dropped as
            `out_of_time`. 0 for no end.
        retries: further attempts after timeouts, lost connections, 429 and 5xx answers.
        backoff: seconds before the first further attempt, doubled each time, plus some chance.
        max_wait: the longest wait before an attempt; a Retry-After beyond it ends the attempts.
        host_failures: attempts in a row without an answer, after which a host's URLs are dropped as
            `host_down`; 0 never gives up.
        host_cooldown: seconds until one request tries such a host again.
        max_bytes: larger bodies are dropped as `too_large`.
        allow_private: `host:port` items that may be fetched although the address is not public or the port
            is neither 80 nor 443, such as `["127.0.0.1:8000"]`.
        contact: URL or e-mail address for site owners, sent in the User-Agent.
        robots: whether robots.txt is asked for and respected; what it forbids is dropped as `opt_out`.
        opt_out: X-Robots-Tag directives that are respected; such pictures are dropped as `opt_out`.
        tdm: whether reservations of text and data mining are respected: the header tdm-reservation,
            tdmrep.json, and what says that files are not for training (Content-Signal, Content-Usage).
        agents: further names, besides pairmill, by which robots.txt and X-Robots-Tag may address this crawl,
            such as the name of the data set that it is for.
        ca_file: PEM file of further certificate authorities to trust; empty for the system's alone.
        dns_ttl: seconds that the address of a host is remembered.
        node_folder: folder on a local disk where the workers of a node share limits and rules; empty for one
            of the user's own in the temporary folder.
    """

    concurrency: int = operational(128)
    max_per_host: int = operational(4)
    min_interval: float = operational(0.0)
    max_crawl_delay: float = operational(10.0)
    connect_timeout: float = operational(10.0)
    read_timeout: float = operational(10.0)
    total_timeout: float = operational(30.0)
    shard_timeout: float = operational(3600.0)
    retries: int = operational(2)
    backoff: float = operational(0.5)
    max_wait: float = operational(30.0)
    host_failures: int = operational(8)
    host_cooldown: float = operational(60.0)
    max_bytes: int = 10 << 20
    allow_private: list[str] = operational(factory=list)
    contact: str = operational("")
    robots: bool = True
    opt_out: list[str] = field(default_factory=lambda: ["noai", "noimageai"])
    tdm: bool = True
    agents: list[str] = field(default_factory=list)
    ca_file: str = location("")
    dns_ttl: float = operational(600.0)
    node_folder: str = location("")

    def check(self) -> None:
        """Raises ConfigError where a value makes no sense."""
        positive = ("concurrency", "max_per_host", "connect_timeout", "read_timeout", "total_timeout")
        for name in (*positive, "max_bytes"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"fetch.{name} is {getattr(self, name)}; it must be more than 0")
        zero_too = ("min_interval", "max_crawl_delay", "shard_timeout", "retries", "backoff", "max_wait")
        for name in (*zero_too, "host_failures", "host_cooldown", "dns_ttl"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"fetch.{name} is {getattr(self, name)}; it must be 0 or more")
        if self.max_per_host > MAX_PER_HOST:
            raise ConfigError(f"fetch.max_per_host is {self.max_per_host}; at most {MAX_PER_HOST}")
        if not self.contact.isprintable() or not self.contact.isascii():
            raise ConfigError(f"fetch.contact {self.contact!r} must be plain ASCII: it is sent as a header")
        for name in self.agents:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ConfigError(
                    f"fetch.agents has {name!r}; a crawler's name is letters, digits, `-` and `_` alone"
                )
        for directive in self.opt_out:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", directive):
                raise ConfigError(
                    f"fetch.opt_out has {directive!r}; an X-Robots-Tag directive is one word, such as noai"
                )
        try:
            Gate(self.allow_private)
        except ValueError as error:
            raise ConfigError(f"fetch.{error}") from error


@dataclass(frozen=True, kw_only=True)
class ColumnOptions:
    """What the columns of a list mean. Nothing is needed for `candidates/`, nor where the names are common.

    Attributes:
        url: column of the URL, or of the file name with local_pictures; null looks for common names.
        caption: column of the caption; null looks for common names.
        names: names of the columns of a CSV or TSV without a header line, such as `["caption","url"]`.
        delimiter: character between the columns of a CSV; empty goes by the file name: comma, or tab for TSV.
        quotes: whether fields of a CSV or TSV may be quoted; null says yes for CSV and no for TSV, where a
            quotation mark is part of the text in the lists that are about.
        carry: further columns to carry along; null takes all.
        captions: text file with one caption a line, beside a list that has one URL a line.
    """

    url: str | None = None
    caption: str | None = None
    names: list[str] | None = None
    delimiter: str = ""
    quotes: bool | None = None
    carry: list[str] | None = None
    captions: str | None = location(None)


@dataclass(frozen=True, kw_only=True)
class CrawlConfig(ImageOptions):
    """What is crawled, and what becomes of the pictures.

    Attributes:
        input: a candidates folder, or lists of URLs and captions: paths, globs or URLs of parquet, CSV, TSV,
            JSONL (also .gz), JSON or text files.
        columns: what the columns of a list mean.
        with_columns: column folders over the candidates (outputs of dedup and score): `where` may name their
            columns, and they are carried along; only for a candidates folder.
        where: fetch only the candidates for which this SQL expression over their columns is true, such as
            `duplicate_of IS NULL AND language = 'en'`; the others keep their row and key.
        local_pictures: folder of pictures; the lists then name files below it, and nothing is fetched.
        tombstones: folders or lists of what was taken down (docs/takedown.md): never asked for; those of the
            output always count.
        shard_size: rows a shard is cut from; dropped rows count.
        fetch: how URLs are fetched.
        decode_threads: threads of one worker that decode and resize beside the fetching.
        cpus: CPUs that Ray reserves for one worker.
    """

    input: list[str] | str = location("")
    columns: ColumnOptions = field(default_factory=ColumnOptions)
    with_columns: list[str] | str = location(factory=list)
    where: str | None = None
    local_pictures: str | None = location(None)
    tombstones: list[str] | str = location(factory=list)
    shard_size: int = MAX_SHARD_SAMPLES
    fetch: FetchConfig = field(default_factory=FetchConfig)
    decode_threads: int = operational(2)
    cpus: float = operational(1.0)

    def selects(self) -> bool:
        """Whether columns are joined to the candidates, or some of them are not to be fetched."""
        return bool(self.with_columns) or self.where is not None

    def check(self) -> None:
        """Raises ConfigError where a value makes no sense."""
        super().check()
        self.fetch.check()
        if not self.input:
            raise ConfigError("input is empty; pass --input with a candidates folder or a list of URLs")
        if not 1 <= self.shard_size <= MAX_SHARD_SAMPLES:
            raise ConfigError(f"shard_size {self.shard_size} must be in 1..{MAX_SHARD_SAMPLES}")
        if self.decode_threads < 1:
            raise ConfigError(f"decode_threads is {self.decode_threads}; it must be at least 1")
