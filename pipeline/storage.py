"""All storage goes through here, and through fsspec: a local folder and an S3 prefix behave alike.

Locations are strings: a path, or a URL such as `s3://bucket/prefix`. Writing is atomic: a reader sees
either the old object, or the whole new one. Locally: temporary file in the same folder, fsync, rename,
fsync of the folder. On object stores: a local file, then one upload.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import posixpath
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.asyn import sync
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pipeline import scratch
from pipeline.errors import StorageFullError
from pipeline.listings import read_dates_quickly

log = logging.getLogger(__name__)

TEMP_MARK = ".pairmill-tmp-"
#: an upload to an object store is given up after so many seconds, and one more for each so many bytes
SEND_SECONDS, SLOWEST = 300.0, 50_000


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
    fs, path = url_to_fs(url)
    read_dates_quickly(fs)
    return fs, path


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


def size(url: str) -> int:
    """Bytes of an object; raises FileNotFoundError."""
    fs, path = resolve(url)
    return int(fs.size(path))


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


def list_names(url: str) -> list[str]:
    """The names of the files directly in a folder, sorted; as `list_files`, and a tenth of its cost where
    sizes and change marks are not needed: nothing is asked of the single file."""
    fs, path = resolve(url)
    if isinstance(fs, LocalFileSystem):
        try:
            with os.scandir(path) as entries:
                names = [entry.name for entry in entries if entry.is_file()]
        except (FileNotFoundError, NotADirectoryError):
            return []
    else:
        fs.invalidate_cache(path)
        try:
            entries_ = fs.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = [basename(e["name"]) for e in entries_ if e["type"] == "file"]
        fs.invalidate_cache(path)  # a hundred thousand entries are not worth keeping
    return sorted(name for name in names if TEMP_MARK not in name)


def list_temporary(url: str) -> list[str]:
    """The names of temporary files that writes under way, or killed ones, have in a local folder."""
    if not is_local(url) or not isdir(url):
        return []
    return sorted(path.name for path in local_path(url).iterdir() if TEMP_MARK in path.name)


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


def open_pieces(url: str) -> IO[bytes]:
    """A binary stream for reading a few pieces of a file; the caller closes it. On an object store each piece
    is one ranged request and no byte more is fetched; `open_read` fetches tens of megabytes ahead."""
    fs, path = resolve(url)
    return fs.open(path, "rb", cache_type="none")


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
    with scratch.folder() as folder:
        target = folder / basename(url)
        fs.get_file(path, str(target))
        yield target


def write_bytes(url: str, data: bytes) -> None:
    """Writes an object atomically.

    Raises:
        StorageFullError: the disk is full. Nothing half-written stays.
        OSError: anything else, such as a store that does not answer.
    """
    if is_local(url):
        with _temporary(url) as temp:
            temp.write_bytes(data)
    else:
        fs, path = resolve(url)
        with _naming_object(url):
            _send(fs, "pipe_file", path, data, size=len(data))


def put_file(source: Path, url: str) -> None:
    """Moves a finished local file to its final place, atomically; raises as `write_bytes` does."""
    if is_local(url):
        with _temporary(url) as temp:
            # a rename where both are on one filesystem, a copy otherwise; a temporary name in both cases
            shutil.move(source, temp)
        return
    fs, path = resolve(url)
    size = source.stat().st_size
    with _naming_object(url):
        # one PUT, or a multipart upload that is given up on an error; both carry checksums the store compares
        _send(fs, "put_file", str(source), path, size=size)
        stored = fs.info(path)["size"]
    if stored != size:
        raise OSError(f"{url} has {stored} bytes after its upload, not {size}")
    source.unlink()


def _send(fs: fsspec.AbstractFileSystem, method: str, *arguments: Any, size: int) -> None:
    """Calls a writing method of an object store, and gives it up when `size` bytes take far too long.

    s3fs has timeouts of its own, but now and then waits for ever for a store that has gone silent.
    """
    if not getattr(fs, "async_impl", False):
        getattr(fs, method)(*arguments)
        return
    seconds = SEND_SECONDS + size / SLOWEST

    async def bounded() -> bool:
        task = asyncio.ensure_future(getattr(fs, f"_{method}")(*arguments))
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            task.cancel()  # and no waiting for that: what hangs may not hear it
            return False
        task.result()
        return True

    if not sync(fs.loop, bounded):
        raise TimeoutError(f"not done after {seconds:.0f} s; given up")


@contextlib.contextmanager
def _naming_object(url: str) -> Iterator[None]:
    """Makes an OSError of what the clients of object stores raise, each of its own kind."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{url} cannot be written: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _temporary(url: str) -> Iterator[Path]:
    """A temporary name beside a local file; what the block puts there takes the file's place."""
    target = local_path(url)
    temp = target.with_name(f".{target.name}{TEMP_MARK}{uuid.uuid4().hex}")
    with naming_full_disks(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temp
            _publish(temp, target)
        finally:
            temp.unlink(missing_ok=True)  # a full disk, say: nothing half-written stays


@contextlib.contextmanager
def naming_full_disks(*folders: Path) -> Iterator[None]:
    """Where a disk is full, an error comes out of the block that names the disks of the folders, and what is
    free on each."""
    try:
        yield
    except StorageFullError:
        raise
    except Exception as error:
        if not _means_full(error):
            raise
        raise StorageFullError(
            f"no space left on device: {' and '.join(map(_disk, folders))}; make room and run the same "
            f"command again: what is committed stays ({error})"
        ) from error


def _means_full(error: Exception) -> bool:
    """Some libraries raise errors of their own, and only their words tell."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return (isinstance(error, OSError) and error.errno in full) or "No space left on device" in str(error)


def _disk(folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    mount = folder.resolve()
    while not mount.is_mount():
        mount = mount.parent
    return f"{folder} on disk {mount} with {usage.free:,} of {usage.total:,} bytes free"


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


def list_prefixed(url: str, prefix: str) -> list[str]:
    """The names of the files directly in a folder that begin so, sorted: one small listing on S3, however
    many files the folder has."""
    fs, path = resolve(url)
    if isinstance(fs, LocalFileSystem):
        return [name for name in list_names(url) if name.startswith(prefix)]
    fs.invalidate_cache(path)
    # other object stores ignore the prefix, which costs time and nothing else
    found = fs.find(path, prefix=prefix)
    names = (name.removeprefix(path.rstrip("/") + "/") for name in found)
    return sorted(name for name in names if name.startswith(prefix) and "/" not in name)


def sweep_temporary(folder: str, *, older_than: float = 3600.0) -> None:
    """Removes what killed writes left in a folder; what is younger may belong to a run under way.

    On S3 these are unfinished multipart uploads: nobody sees them, but they are paid for.
    """
    if not is_local(folder):
        _give_up_uploads(folder, older_than=24 * older_than)
        return
    if not isdir(folder):
        return
    limit = time.time() - older_than
    for path in local_path(folder).iterdir():
        if TEMP_MARK in path.name:
            with contextlib.suppress(FileNotFoundError):  # the run that writes it has given it its name
                if path.stat().st_mtime < limit:
                    path.unlink()


def _give_up_uploads(folder: str, *, older_than: float) -> None:
    fs, path = resolve(folder)
    if not hasattr(fs, "list_multipart_uploads"):
        return
    bucket, key, _ = fs.split_path(path)
    try:
        uploads = fs.list_multipart_uploads(bucket)
    except (OSError, NotImplementedError) as error:  # a right that readers and writers can do without
        log.info("%s: cannot look for unfinished uploads: %s", folder, error)
        return
    for upload in uploads:
        age = time.time() - upload["Initiated"].timestamp()
        if upload["Key"].startswith(f"{key.rstrip('/')}/") and age > older_than:
            fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])


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
