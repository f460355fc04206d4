"""Pictures from a folder instead of the web: only where the user names the folder, and only below it."""

from __future__ import annotations

from pathlib import PurePosixPath

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.stages.crawl.fetch import Fetched


class LocalPictures:
    """Reads pictures below a folder. A bare file name is also looked for in the folders directly below,
    since datasets spread theirs (`train2017/`, `val2017/`; `VG_100K/`, `VG_100K_2/`).

    Raises:
        ConfigError: the folder does not exist.
    """

    def __init__(self, root: str, *, max_bytes: int) -> None:
        if not storage.isdir(root):
            raise ConfigError(f"local_pictures {root!r} is not a folder")
        self.root, self.max_bytes = root, max_bytes
        fs, path = storage.resolve(root)
        self._below = sorted(
            storage.basename(e["name"]) for e in fs.ls(path, detail=True) if e["type"] == "directory"
        )

    def read(self, name: str) -> Fetched:
        """The bytes of one picture, or why there are none."""
        parts = PurePosixPath(name).parts
        if (
            not parts
            or "://" in name
            or name.startswith("/")
            or ".." in parts
            or "\\" in name
            or "\0" in name
        ):
            return Fetched(reason="bad_url", message="not the name of a file below local_pictures")
        candidates = [storage.join(self.root, name)]
        if len(parts) == 1:
            candidates += [storage.join(self.root, folder, name) for folder in self._below]
        for url in candidates:
            if not storage.exists(url) or storage.isdir(url):
                continue
            with storage.open_read(url) as stream:
                body = stream.read(self.max_bytes + 1)
            if len(body) > self.max_bytes:
                return Fetched(reason="too_large", message=f"more than {self.max_bytes} bytes")
            if not body:
                return Fetched(reason="empty", message="the file is empty")
            return Fetched(body=body)
        return Fetched(reason="not_found", message="no such file below local_pictures")
