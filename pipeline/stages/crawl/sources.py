"""What is crawled: which files, cut into which pieces, and which of their columns mean what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline import candidates, inputs, manifest, storage
from pipeline.errors import ConfigError, InputError
from pipeline.stage import Input, Piece, Unit
from pipeline.stages.crawl.config import ColumnOptions, CrawlConfig
from pipeline.stages.crawl.lists import SUFFIXES, ListReader, list_kind
from pipeline.stages.crawl.selected import add_sidecars

URL_NAMES = ("url", "image_url", "img_url", "imageurl", "image", "src", "link")
FILE_NAMES = ("file_name", "filename", "image_name", "file", "path", "image", "image_path", "url")
CAPTION_NAMES = (
    "caption", "text", "alt", "alt_text", "title", "comment", "sentence", "phrase", "description",
)  # fmt: skip
#: columns that the crawl writes; a carried column of such a name becomes `source_NAME`
WRITTEN = (
    "caption", "url", "key", "status", "error_message", "width", "height", "original_width",
    "original_height", "exif", "sha256", "reason", "http_status", "uid", "bytes",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ListFile:
    """One file of rows: its name without its place, and its inputs (the list, and captions beside it).

    part: its number in a candidates folder; None for a list.
    """

    name: str
    inputs: tuple[Input, ...]
    part: int | None = None

    @property
    def url(self) -> str:
        return self.inputs[0].url


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A piece of a list, its columns told apart: urls, captions and the table of the others.

    refused: why a row is not to be fetched, None where it is; empty where all are.
    """

    urls: list[str | None]
    captions: list[str | None]
    carried: pa.Table
    refused: Sequence[str | None] = ()


def plan_pieces(config: CrawlConfig, planned: Sequence[Unit]) -> list[Piece]:
    """Cuts every input file into pieces of at most shard_size rows.

    Raises:
        ConfigError: an input is missing, of unknown format, lacks the columns, or is cut otherwise than the
            units planned before.
    """
    pieces: list[Piece] = []
    found = list_files(config)
    if config.selects():
        found = add_sidecars(found, config)
    known = _known_rows(planned)
    # The first one is opened in any case: its columns must still be what the options say.
    told = [known.get(_mark(file)) if at else None for at, file in enumerate(found)]
    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda file, rows: rows or _count(file, config), found, told))
    for file, rows in zip(found, counts, strict=True):
        for start in range(0, rows, config.shard_size):
            stop = min(start + config.shard_size, rows)
            source: dict[str, Any] = {"file": file.name, "rows": [start, stop]}
            if config.local_pictures:
                source["local"] = True
            pieces.append((source, file.inputs))
    _refuse_lost(pieces, planned)
    return pieces


def _known_rows(planned: Sequence[Unit]) -> dict[tuple[str, ...], int]:
    """Rows of each file as it was when its units were planned: counting them anew reads whole lists."""
    known: dict[tuple[str, ...], int] = {}
    for unit in planned:
        mark = (unit.source["file"], *(i.fingerprint for i in unit.inputs))
        known[mark] = max(known.get(mark, 0), unit.source["rows"][1])
    return known


def _mark(file: ListFile) -> tuple[str, ...]:
    """A file's name, and what it is and what lies beside it as it is now."""
    return (file.name, *(i.fingerprint for i in file.inputs))


def list_files(config: CrawlConfig) -> list[ListFile]:
    """The files that the input names: the parts of a candidates folder, or lists."""
    patterns = [config.input] if isinstance(config.input, str) else list(config.input)
    found: list[ListFile] = []
    for pattern in patterns:
        if _as_candidates(pattern, config):
            parts = candidates.parts(pattern)
            found += [
                ListFile(name=storage.basename(p.input.url), inputs=(p.input,), part=p.number) for p in parts
            ]
        else:
            found += _foreign(pattern, config.columns.captions)
    names = [f.name for f in found]
    if len(set(names)) != len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise ConfigError(f"two inputs have the name {twice!r}; rename one, or give one glob from above both")
    if config.columns.captions and len(found) != 1:
        raise ConfigError(f"columns.captions goes with one list of URLs, input names {len(found)}")
    return found


def _as_candidates(pattern: str, config: CrawlConfig) -> bool:
    """A folder of another maker may hold `part-0.parquet` and other lists too, with columns of any names: it
    counts as candidates only where columns are to be joined to it."""
    if not candidates.is_candidates(pattern):
        return False
    return manifest.is_output(pattern) or config.selects()


def _foreign(pattern: str, captions: str | None) -> list[ListFile]:
    beside: tuple[Input, ...] = ()
    if captions:
        beside = tuple(_input(info) for _, info in inputs.files(captions))
    if storage.isdir(pattern):
        return _folder(pattern)
    named = inputs.files(pattern)
    for name, _ in named:
        if list_kind(name) is None:
            raise ConfigError(
                f"input {name!r} is of unknown format; lists end with {', '.join(SUFFIXES)} or .gz"
            )
    return [ListFile(name=name, inputs=(_input(info), *beside)) for name, info in named]


def _folder(folder: str) -> list[ListFile]:
    files = storage.list_files(folder)
    if any(f.url.endswith(".tar") for f in files):
        raise ConfigError(
            f"input {folder!r} holds tars: it has pictures already and can be the input of score and pack. "
            "To fetch its list again, pass a glob such as '*.parquet' in it"
        )
    lists = [f for f in files if list_kind(f.url) is not None]
    if not lists:
        raise ConfigError(f"input {folder!r} holds no list; lists end with {', '.join(SUFFIXES)} or .gz")
    return [ListFile(name=storage.basename(f.url), inputs=(_input(f),)) for f in lists]


def _input(info: storage.FileInfo) -> Input:
    return Input(url=info.url, fingerprint=inputs.file_fingerprint(info))


def _count(file: ListFile, config: CrawlConfig) -> int:
    """The number of rows, once it is clear that the columns are there."""
    reader = ListReader(file.url, config.columns)
    try:
        rows = reader.count()
        if rows:
            choose_columns(reader.names(), config.columns, file.name, local=config.local_pictures is not None)
            _check_hash(reader.names(), config, file.name)
    except InputError as error:
        raise ConfigError(str(error)) from error
    return rows


def _refuse_lost(pieces: Sequence[Piece], planned: Sequence[Unit]) -> None:
    """Inputs are append-only: pieces of earlier runs must still be there, or keys would be given twice."""
    now = {json.dumps(source, sort_keys=True) for source, _ in pieces}
    for unit in planned:
        if json.dumps(dict(unit.source), sort_keys=True) not in now:
            raise ConfigError(
                f"the output was made from rows {unit.source.get('rows')} of {unit.source.get('file')!r}, "
                "which the input no longer has so: pass the same lists and shard_size (more lists may "
                "follow), or choose another --output"
            )


def choose_columns(
    names: Sequence[str], columns: ColumnOptions, where: str, *, local: bool
) -> tuple[str, str | None]:
    """(URL column, caption column); the second is None where a list has nothing but URLs.

    Raises:
        ConfigError: a column is missing, or none has a common name.
    """
    url = _choose(names, columns.url, FILE_NAMES if local else URL_NAMES)
    caption = _choose(names, columns.caption, CAPTION_NAMES)
    for option, found in (("url", url), ("caption", caption)):
        if found is None and len(names) > 1:
            raise ConfigError(
                f"{where}: no column is known to be the {option} among {', '.join(names)}; "
                f"pass --columns.{option} NAME, or --columns.names for a list without a header"
            )
    if url is None:
        raise ConfigError(f"{where}: column {names} is not known to be the URL; pass --columns.url NAME")
    return url, caption


def _choose(names: Sequence[str], asked: str | None, common: Sequence[str]) -> str | None:
    if asked is not None:
        return asked if asked in names else None
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[c] for c in common if c in lower), None)


def carried_name(column: str) -> str:
    """What a column of the list is called where it is carried along."""
    return f"source_{column}" if column.lower() in WRITTEN else column


def _check_hash(names: Sequence[str], config: CrawlConfig, where: str) -> None:
    """Raises ConfigError unless the column of verify_hash is there and carried along."""
    if config.verify_hash is None:
        return
    column = config.verify_hash[0]
    if column not in names:
        raise ConfigError(f"{where}: verify_hash names {column!r}, which is not among {', '.join(names)}")
    if config.columns.carry is not None and column not in config.columns.carry:
        raise ConfigError(f"verify_hash needs {column!r}; add it to columns.carry")


def split_columns(table: pa.Table, columns: ColumnOptions, where: str, *, local: bool) -> Rows:
    """Tells the columns of a piece apart."""
    url, caption = choose_columns(table.column_names, columns, where, local=local)
    urls = table[url].cast(pa.string()).to_pylist()
    captions = table[caption].cast(pa.string()).to_pylist() if caption else [None] * table.num_rows
    others = [n for n in table.column_names if n not in (url, caption)]
    if columns.carry is not None:
        missing = sorted(set(columns.carry) - set(others))
        if missing:
            raise ConfigError(f"{where}: columns.carry names {', '.join(missing)}, which the list has not")
        others = [n for n in others if n in columns.carry]
    carried = (
        table.select(others).rename_columns([carried_name(n) for n in others]).replace_schema_metadata(None)
    )
    return Rows(urls=urls, captions=captions, carried=carried)
