"""All storage goes through here, and through fsspec: a local folder and an S3 prefix behave alike.

Locations are strings: a path, or a URL such as `s3://bucket/prefix`. Writing is atomic: a reader sees
either the old object, or the whole new one. Locally: temporary file in the same folder, fsync, rename,
fsync of the folder. On object stores: a local file, then one upload.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

TEMP_MARK = ".pairmill-tmp-"


@dataclass(frozen=True)
class FileInfo:
    """One object: its location as a string that `open_read` takes, size in bytes, and a change mark."""

    url: str
    size: int
    mark: str  # changes when the content is written anew: etag, or modification time in ns


def join(base: str, *parts: str) -> str:
    """`base/part/...`, for paths and URLs alike."""
    return posixpath.join(base, *parts)


def basename(url: str) -> str:
    return posixpath.basename(url.rstrip("/"))


def resolve(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a location, and the path inside it."""
    return url_to_fs(url)


def absolute(url: str) -> str:
    """The same location, whatever the current folder of the process that reads it."""
    return str(local_path(url)) if is_local(url) else url


def is_local(url: str) -> bool:
    return isinstance(resolve(url)[0], LocalFileSystem)


def local_path(url: str) -> Path:
    """The path of a local location (`file://` removed)."""
    return Path(resolve(url)[1])


def exists(url: str) -> bool:
    fs, path = resolve(url)
    return bool(fs.exists(path))


def isdir(url: str) -> bool:
    fs, path = resolve(url)
    return bool(fs.isdir(path))


def list_files(url: str) -> list[FileInfo]:
    """The files directly in a folder, by name; empty when the folder does not exist.

    One listing, whatever the number of files; temporary files of writes under way are left out.
    """
    fs, path = resolve(url)
    fs.invalidate_cache(path)
    try:
        entries = fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    files = [_info(fs, entry) for entry in entries if entry["type"] == "file"]
    return sorted((f for f in files if TEMP_MARK not in f.url), key=lambda f: f.url)


def find(pattern: str) -> list[FileInfo]:
    """The files that a path, URL or glob names, by name. A folder names nothing here."""
    fs, path = resolve(pattern)
    if not any(c in path for c in "*?["):
        if not fs.exists(path) or fs.isdir(path):
            return []
        return [_info(fs, fs.info(path), url=pattern)]
    found = fs.glob(path, detail=True)
    return sorted((_info(fs, e) for e in found.values() if e["type"] == "file"), key=lambda f: f.url)


def _info(fs: fsspec.AbstractFileSystem, entry: dict[str, Any], *, url: str | None = None) -> FileInfo:
    name = entry["name"]
    if isinstance(fs, LocalFileSystem):
        # nanoseconds: two writes within one second must differ
        mark = str(Path(name).stat().st_mtime_ns)
        return FileInfo(url or name, int(entry["size"] or 0), mark)
    mark = str(
        entry.get("ETag") or entry.get("etag") or entry.get("LastModified") or entry.get("mtime") or ""
    )
    return FileInfo(url or fs.unstrip_protocol(name), int(entry.get("size") or 0), mark)


def open_read(url: str) -> IO[bytes]:
    """A binary stream; the caller closes it."""
    fs, path = resolve(url)
    return fs.open(path, "rb")


def read_bytes(url: str) -> bytes:
    with open_read(url) as stream:
        return stream.read()


def read_range(url: str, start: int, size: int) -> bytes:
    """`size` bytes from `start`: one ranged request on an object store."""
    fs, path = resolve(url)
    return fs.cat_file(path, start=start, end=start + size)


@contextlib.contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """The file as a local path for the time of the block; a remote one is fetched to a temporary file."""
    if is_local(url):
        yield local_path(url)
        return
    fs, path = resolve(url)
    with tempfile.TemporaryDirectory(prefix="pairmill-") as folder:
        target = Path(folder) / basename(url)
        fs.get_file(path, str(target))
        yield target


def write_bytes(url: str, data: bytes) -> None:
    """Writes an object atomically."""
    if is_local(url):
        target = local_path(url)
        target.parent.mkdir(parents=True, exist_ok=True)
        temp = target.with_name(f".{target.name}{TEMP_MARK}{uuid.uuid4().hex}")
        try:
            temp.write_bytes(data)
            _publish(temp, target)
        finally:
            temp.unlink(missing_ok=True)  # a full disk, say: nothing half-written stays
    else:
        fs, path = resolve(url)
        fs.pipe_file(path, data)


def put_file(source: Path, url: str) -> None:
    """Moves a finished local file to its final place, atomically."""
    if not is_local(url):
        fs, path = resolve(url)
        fs.put_file(str(source), path)
        source.unlink()
        return
    target = local_path(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = target.with_name(f".{target.name}{TEMP_MARK}{uuid.uuid4().hex}")
    try:
        # a rename where both are on one filesystem, a copy otherwise; the name stays temporary in both cases
        shutil.move(source, temp)
        _publish(temp, target)
    finally:
        temp.unlink(missing_ok=True)


def _publish(temp: Path, target: Path) -> None:
    with temp.open("rb") as stream:
        os.fsync(stream.fileno())
    _rename(temp, target)


def _rename(source: Path, target: Path) -> None:
    source.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sweep_temporary(folder: str, *, older_than: float = 3600.0) -> None:
    """Removes what killed writes left in a local folder; younger files may belong to a run under way."""
    if not is_local(folder) or not isdir(folder):
        return
    limit = time.time() - older_than
    for path in local_path(folder).iterdir():
        if TEMP_MARK in path.name and path.stat().st_mtime < limit:
            path.unlink(missing_ok=True)


def remove(url: str, *, missing_ok: bool = False) -> None:
    fs, path = resolve(url)
    try:
        fs.rm_file(path)
    except FileNotFoundError:
        if not missing_ok:
            raise


def move(source: str, target: str) -> None:
    """Moves an object inside one storage, over what stands at `target`: a rename on a local disk, a copy and
    a removal on an object store. A source that is not there any more is no error: somebody moved it first."""
    fs, path = resolve(source)
    try:
        if is_local(source):
            _rename(local_path(source), local_path(target))
        else:
            fs.copy(path, resolve(target)[1])
            fs.rm_file(path)
    except FileNotFoundError:
        if fs.exists(path):
            raise


def list_folders(url: str) -> list[str]:
    """The folders directly in a folder, by name; none when it does not exist."""
    fs, path = resolve(url)
    fs.invalidate_cache(path)
    try:
        entries = fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [e["name"] for e in entries if e["type"] == "directory"]
    return sorted(name if is_local(url) else fs.unstrip_protocol(name) for name in found)


def remove_folder(url: str) -> None:
    """Removes an empty folder; object stores have none to remove."""
    if is_local(url):
        with contextlib.suppress(FileNotFoundError):
            local_path(url).rmdir()


def sweep_folder(url: str, *, older_than: float = 3600.0) -> None:
    """Removes a local folder of files that nobody has touched for so many seconds."""
    if is_local(url) and time.time() - local_path(url).stat().st_mtime > older_than:
        shutil.rmtree(local_path(url), ignore_errors=True)


def sha256_file(path: Path) -> str:
    """Hex digest of a local file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
