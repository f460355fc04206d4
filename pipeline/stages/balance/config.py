"""The options of balance. Light to import."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.settings import location


@dataclass(frozen=True, kw_only=True)
class BalanceConfig:
    """Which captions are balanced, over which entries.

    Attributes:
        input: the image folder (the crawl's output, or a folder of img2dataset), or a candidates folder.
        entries: the query entries: a JSON list, or a text file with one a line.
        cap: t: of an entry that more captions hold than this, each is kept with probability t / count.
            20,000 made MetaCLIP's 400 million pairs, 170,000 its 2.5 billion.
        lower: capital letters of captions and entries mean nothing.
        columns: column folders over the same input, whose columns `where` may name.
        where: balance only rows for which this SQL expression is true, such as `language = 'en'`; the others
            have null.
        seed: of the draws.
    """

    input: str = location("")
    entries: str = location("")
    cap: int = 20_000
    lower: bool = False
    columns: list[str] | str = location(factory=list)
    where: str | None = None
    seed: int = 0

    def check(self) -> None:
        """Raises ConfigError where a value makes no sense."""
        if not self.entries:
            raise ConfigError("entries is empty; give --entries, a file with one query entry a line")
        if self.cap < 1:
            raise ConfigError(f"cap {self.cap} must be at least 1; MetaCLIP took 20000")
        if self.seed < 0:
            raise ConfigError(f"seed {self.seed} must not be negative")
