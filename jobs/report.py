"""Writes one HTML file about a whole chain: `pairmill report`, or `python -m jobs.report`.

The page holds everything inside itself (style, charts, small pictures, a script of ours) and loads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jobs.verb import Request, Verb
from pipeline import storage
from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What the report is made of. Give what there is; a stage that has not run is told as such.

    Attributes:
        candidates: output folder of discover.
        images: output folder of crawl, or an img2dataset folder.
        columns: output folders of score and dedup.
        shards: output folder of pack.
        runs: folders of training runs.
        output: the HTML file to write.
        truth: parquet that tells which pairs are wrong: url, is_wrong, and caption where an address has
            several; pairs without an answer are not judged.
        title: heading of the page.
        attribution: a line on whose pictures are shown, and under which licence.
        score: the column of the histogram.
        threshold: marked in the histogram; without it, what pack's rule compares the score with.
        thumbnails: pictures shown per verdict.
        seed: of the choice of pictures.
        max_shards: shards whose sidecars are read for histogram and pictures; of more, a seeded choice.
        sample: rows in the page for several thresholds moved together; exact where no more can be kept.
        page_mb: size that the page stays below; pictures are made smaller, then left out.
    """

    candidates: str | None = None
    images: str | None = None
    columns: list[str] = field(default_factory=list)
    shards: str | None = None
    runs: list[str] = field(default_factory=list)
    output: str = "report.html"
    truth: str | None = None
    title: str = "Pairmill report"
    attribution: str = ""
    score: str = "clip_score"
    threshold: float | None = None
    thumbnails: int = 12
    seed: int = 0
    max_shards: int = 1000
    sample: int = 20_000
    page_mb: float = 8.0


def report(config: ReportConfig) -> int:
    """Gathers, renders and writes the page; returns the exit code.

    Raises:
        ConfigError: none of the folders exists, or an option is impossible.
    """
    check(config)
    # Here, not on top: the command line reads this module to list its options.
    from jobs.reporting.gather import gather
    from jobs.reporting.render import render

    page = render(gather(config))
    storage.write_bytes(config.output, page.encode())
    return 0


def check(config: ReportConfig) -> None:
    """Raises ConfigError where nothing could be reported on."""
    folders = [config.candidates, config.images, config.shards, *config.columns, *config.runs]
    given = [folder for folder in folders if folder]
    if not given:
        raise ConfigError(
            "nothing to report on; give one of --candidates, --images, --columns, --shards, --runs"
        )
    if not any(storage.isdir(folder) for folder in given):
        raise ConfigError(f"none of the given folders exists: {', '.join(given)}; check the paths")
    if not config.output.lower().endswith((".html", ".htm")):
        raise ConfigError(f"output {config.output!r} must be an HTML file, such as report.html")
    if config.thumbnails < 1 or config.thumbnails > 200:
        raise ConfigError(f"thumbnails {config.thumbnails} must be in 1..200: they are all inside the page")
    if config.max_shards < 1:
        raise ConfigError(f"max_shards {config.max_shards} must be at least 1")
    if config.sample < 1 or config.sample > 200_000:
        raise ConfigError(f"sample {config.sample} must be in 1..200000: the rows are inside the page")
    if config.page_mb < 3:
        raise ConfigError(
            f"page_mb {config.page_mb:g} must be at least 3: the page without pictures may take 2"
        )
    if config.seed < 0:
        raise ConfigError(f"seed {config.seed} must not be negative")


def run(config: ReportConfig, request: Request) -> int:
    code = report(config)
    print(f"report: {config.output}")
    return code


VERB = Verb(config=ReportConfig, run=run)

if __name__ == "__main__":
    from jobs.cli import entry

    entry("report")
