"""Removes pictures by URL, domain, uid or hash, and keeps them out: `pairmill takedown`.

    pairmill takedown --images images --columns columns/clip columns/dedup --shards shards \\
        --domain example.org --note "request of 3 May"

Exit codes: 0 done (also when nothing was found), 1 some unit could not be searched or rewritten, 2 bad
arguments.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import yaml

from pipeline import storage, tombstones
from pipeline.errors import ConfigError
from pipeline.shards.format import shard_name
from pipeline.summary import EXIT_DONE, EXIT_FAILED
from pipeline.takedown import FolderReport, Folders, Report, take_down
from pipeline.tombstones import Entry
from pipeline.urls import without_secrets

#: rows and failures that are printed; the rest is counted
SHOWN = 20
WHAT = {
    "candidates": "candidates emptied",
    "images": "samples removed",
    "columns": "rows removed",
    "shards": "samples removed",
}


def main(argv: Sequence[str]) -> int:
    """Takes down what the arguments name; prints one line a folder.

    Raises:
        ConfigError: nothing is named, a folder is missing or not ours, a value is none of its kind.
    """
    known = _parser().parse_args(list(argv))
    if known.workers < 1:
        raise ConfigError(f"workers {known.workers} must be at least 1")
    entries = _entries(known)
    folders = Folders(**{name: _folders(getattr(known, name)) for name in WHAT})
    report = take_down(
        folders,
        entries,
        dry_run=known.dry_run,
        workers=known.workers,
        leftovers_after=known.leftovers_after,
    )
    print(render(report, dry_run=known.dry_run, shown=None if known.dry_run else SHOWN))
    for failure in report.failures[:SHOWN]:
        where = failure.folder if failure.shard is None else f"{failure.folder} {shard_name(failure.shard)}"
        print(f"pairmill takedown: {where}: {failure.message}", file=sys.stderr)
    if report.failures:
        print(
            f"pairmill takedown: {len(report.failures)} units failed: what they hold is still there; mend "
            "them as said above and run the same command again",
            file=sys.stderr,
        )
    return EXIT_FAILED if report.failures else EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pairmill takedown",
        description="Remove pictures by URL, domain, uid or hash from folders, and keep them out.",
        allow_abbrev=False,
    )
    where = parser.add_argument_group("folders (any of them, several of each)")
    where.add_argument(
        "--candidates", nargs="+", action="extend", default=[], metavar="FOLDER", help="outputs of discover"
    )
    where.add_argument(
        "--images", nargs="+", action="extend", default=[], metavar="FOLDER", help="outputs of crawl"
    )
    where.add_argument(
        "--columns",
        nargs="+",
        action="extend",
        default=[],
        metavar="FOLDER",
        help="outputs of score and dedup over them",
    )
    where.add_argument(
        "--shards", nargs="+", action="extend", default=[], metavar="FOLDER", help="outputs of pack"
    )
    what = parser.add_argument_group("what goes (any of them, several times)")
    what.add_argument("--url", action="append", default=[], help="the picture of this URL")
    what.add_argument(
        "--domain", action="append", default=[], help="pictures of this host and its subdomains"
    )
    what.add_argument(
        "--page-domain", action="append", default=[], help="pictures found on pages of this domain"
    )
    what.add_argument(
        "--uid", action="append", default=[], help="the pair of this uid (md5 of caption + URL)"
    )
    what.add_argument(
        "--sha256", action="append", default=[], help="pictures whose downloaded file has this hash"
    )
    what.add_argument(
        "--list", action="append", default=[], metavar="FILE", help="lines KIND:VALUE, or CSV with kind,value"
    )
    parser.add_argument("--note", default="", help="kept in the tombstones, such as who asked")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, write nothing")
    parser.add_argument("--workers", type=int, default=4, help="shards worked on at a time (4)")
    parser.add_argument(
        "--leftovers-after",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="age at which temporary files count as left by a killed run and are removed (3600)",
    )
    return parser


def _folders(words: Sequence[str]) -> tuple[str, ...]:
    """Folders as words, or as one list in brackets, as the other verbs take them."""
    found: list[str] = []
    for word in words:
        if word.startswith("["):
            listed = yaml.safe_load(word)
            if not all(isinstance(item, str) for item in listed):
                raise ConfigError(f"{word!r} must be a list of folders, such as [columns/clip,columns/dedup]")
            found += listed
        else:
            found.append(word)
    return tuple(dict.fromkeys(storage.absolute(folder.rstrip("/") or folder) for folder in found))


def _entries(known: argparse.Namespace) -> list[Entry]:
    found = [
        tombstones.make_entry(kind, value, note=known.note)
        for kind in tombstones.KINDS
        for value in getattr(known, kind)
    ]
    for place in known.list:
        if not storage.exists(place):
            raise ConfigError(f"list {place!r} does not exist; mend --list")
        text = storage.read_bytes(place).decode("utf-8", "replace")
        found += tombstones.read_list(text, place, note=known.note)
    if not found:
        raise ConfigError("nothing to take down: pass --url, --domain, --uid, --sha256 or --list FILE")
    return list({(e.kind, e.value): e for e in found}.values())


def render(report: Report, *, dry_run: bool, shown: int | None) -> str:
    """What was done, as text: rows (at most `shown`), a line for each folder, what to run next."""
    rows, total = list(report.gone), sum(folder.rows for folder in report.folders)
    lines = [
        f"{folder.url}  {shard_name(row.shard)}  {row.key}  {without_secrets(row.url or '')}".rstrip()
        for folder, row in (rows if shown is None else rows[:shown])
    ]
    if total > len(lines):
        lines.append(f"... and {total - len(lines):,} more")
    for folder in report.folders:
        # the folders of dedup's inner stages are told of where something was done in them
        if folder.rows or folder.relinked or not storage.basename(folder.url).startswith("_"):
            lines.append(_line(folder, dry_run=dry_run))
    if dry_run:
        lines.append("dry run: nothing was written")
        return "\n".join(lines)
    if not total:
        lines.append("nothing was found that had to go")
    known = report.entries - report.new_entries
    lines.append(f"tombstones: {report.new_entries:,} new, {known:,} known before")
    return "\n".join([*lines, *_hints(report)])


def _line(folder: FolderReport, *, dry_run: bool) -> str:
    would = "would be " if dry_run else ""
    what, done = WHAT[folder.kind].split(" ")
    text = (
        f"{folder.url}: {folder.rows:,} {what} {would}{done}, "
        f"{len(folder.rewritten):,} of {folder.shards:,} shards {would}rewritten"
    )
    if folder.relinked:
        text += f", {len(folder.relinked):,} manifests brought up to date"
    if folder.unfinished:
        text += f", files of {len(folder.unfinished):,} unfinished units removed"
    for name, units in sorted(folder.lacking.items()):
        text += f"; {units:,} have no column {name}, so nothing is found by it there"
    return text


def _hints(report: Report) -> list[str]:
    hints = []
    if any(f.kind == "columns" and f.rows and storage.basename(f.url) == "_sketch" for f in report.folders):
        hints.append(
            "rerun dedup: where a removed picture was the one kept of several, another takes its place"
        )
    if any(f.rows and storage.basename(f.url).startswith("_select_") for f in report.folders):
        hints.append(
            "rerun pack: where a removed picture was in the top, or under a limit, another may take its place"
        )
    images = any(f.kind == "images" and f.rewritten for f in report.folders)
    if images and not any(f.kind == "columns" for f in report.folders):
        hints.append(
            "columns and shards made from these images: run the same command with --columns, --shards"
        )
    if report.busy:
        hints.append(
            f"a stage is running over {', '.join(report.busy)}; what it fetched earlier may still come in: "
            "run the same command again when it has ended"
        )
    young = sum(f.leftovers for f in report.folders)
    if young:
        hints.append(
            f"{young:,} temporary files are younger than --leftovers-after: of a run under way, or left by a "
            "killed one, and then they may hold what was taken down; run the same command again later"
        )
    return hints


if __name__ == "__main__":
    from jobs.cli import entry

    entry("takedown")
