"""A contact sheet of one shard: `pairmill inspect images/00000003.tar --columns columns/clip`.

Picture, key, caption and chosen values of some samples, as an HTML file that loads nothing, or as a JPEG or
PNG, by the ending of `--output`. Reads the shard, its parquet and column folders; writes the sheet alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipeline import storage
from pipeline.errors import ConfigError

MAX_PICTURES = 1000
ENDINGS = {".html": "HTML", ".htm": "HTML", ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}


def main(argv: Sequence[str]) -> int:
    """Writes the sheet; returns 0.

    Raises:
        ConfigError: no such shard, key or column, or an impossible option.
        InputError: the shard or a sidecar is damaged.
    """
    parser = argparse.ArgumentParser(
        prog="pairmill inspect", description="Write a contact sheet of one shard.", allow_abbrev=False
    )
    parser.add_argument("shard", help="a tar, or a folder of shards; any fsspec location")
    parser.add_argument("number", nargs="?", type=int, help="of the shard, where a folder is given")
    parser.add_argument("--output", help="sheet to write: .html, .jpg or .png; SHARD.html by default")
    parser.add_argument("--columns", nargs="+", default=[], metavar="FOLDER", help="column folders to join")
    parser.add_argument(
        "--show", nargs="+", default=[], metavar="COLUMN", help="columns told of each picture; default: a few"
    )
    parser.add_argument("--where", help='predicate over the columns: "clip_score < 0.28"')
    parser.add_argument("--by", default="", metavar="COLUMN", help="sort by it, the highest first")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--sample", type=int, default=60, help="pictures to show, a seeded choice (60)")
    chosen.add_argument("--keys", nargs="+", default=[], help="the samples to show, by key")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    known = parser.parse_args(list(argv))
    return inspect(known)


def inspect(known: argparse.Namespace) -> int:
    if not 1 <= max(known.sample, len(known.keys)) <= MAX_PICTURES or known.sample < 1:
        raise ConfigError(f"sample {known.sample} must be in 1..{MAX_PICTURES}: all pictures are in one file")
    if len(known.keys) > MAX_PICTURES:
        raise ConfigError(f"{len(known.keys):,} keys are more than the {MAX_PICTURES} that one sheet shows")
    if known.seed < 0:
        raise ConfigError(f"seed {known.seed} must not be negative")
    if known.output is not None:
        _kind(known.output)
    # Here, not on top: the command line should answer --help at once.
    from jobs.reporting.sheet import Asked, read_sheet

    sheet = read_sheet(
        Asked(
            shard=known.shard,
            number=known.number,
            columns=tuple(known.columns),
            show=tuple(known.show),
            where=known.where,
            keys=tuple(known.keys),
            sample=known.sample,
            seed=known.seed,
            by=known.by,
        )
    )
    output = known.output or storage.basename(sheet.tar).removesuffix(".tar") + ".html"
    from jobs.reporting.render import render_sheet

    data, unreadable = render_sheet(sheet, kind=_kind(output))
    storage.write_bytes(output, data)
    lost = f", {unreadable:,} unreadable" if unreadable else ""
    whole = f" ({sheet.matching:,} match)" if sheet.matching != sheet.whole else ""
    print(
        f"{output}: {len(sheet.pictures):,} of {sheet.whole:,} pictures{whole} of {sheet.tar}{lost}, "
        f"{len(data) / 1e6:.2f} MB"
    )
    return 0


def _kind(output: str) -> str:
    """Raises ConfigError unless the ending of the sheet is a known one."""
    ending = "." + output.lower().rpartition(".")[2]
    if ending not in ENDINGS:
        raise ConfigError(f"output {output!r} must end in {', '.join(ENDINGS)}")
    return ENDINGS[ending]


if __name__ == "__main__":
    from jobs.cli import entry

    entry("inspect")
