"""Builds the demo's small world: `build_world(folder, seed=1, scale=1.0)`, and the folder it leaves.

    WORLD.json          settings, counts; written last: where it stands, the world is complete
    ports.json          host -> port; the addresses in the archives name them
    archives/           WARC and WAT files: where the chain begins
    site/, routes.json  what the server answers
    trusted/            images/, captions.json: scenes with their right captions, to train the scorer on
    heldout/            images/, captions.json: 1000 scenes for evaluation
    truth.parquet       what is planted (see faults.py)
    bitmaps.npy         the rendered drawings

The three parts show the same objects in combinations that no other part has. A world is a function of its
settings and ports: the same give the same bytes.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.demo import archives, captions, pages, website
from jobs.demo.faults import FAULTS, TRUTH_SCHEMA
from jobs.demo.objects import Thing, load_things
from jobs.demo.painting import Painter, encode_jpeg, paint_all, render_bitmaps
from jobs.demo.scenes import Scene, draw_scenes
from jobs.demo.server import PORTS_FILE, ROUTES_FILE, SITE_FOLDER, port_is_free
from pipeline.errors import ConfigError

MARKER = "WORLD.json"
#: raise it when the same settings begin to give another world
WORLD_VERSION = 2
HELDOUT_SCENES = 1000
TRUSTED_SCENES = 3600

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class World:
    """Where everything of a built world lies.

    Attributes:
        folder: the world's folder
        ports: host name -> port on 127.0.0.1
        counts: scenes per part, pictures per fault, pages
    """

    folder: Path
    ports: dict[str, int]
    counts: dict[str, int]

    @property
    def archives(self) -> Path:
        return self.folder / "archives"

    @property
    def truth(self) -> Path:
        return self.folder / "truth.parquet"

    @property
    def trusted(self) -> Path:
        """Folder with `images/` and `captions.json` (COCO)."""
        return self.folder / "trusted"

    @property
    def heldout(self) -> Path:
        """Folder with `images/` and `captions.json` (COCO)."""
        return self.folder / "heldout"

    @property
    def allow_private(self) -> list[str]:
        """`host:port` of every host that a crawler of this world may ask."""
        return [f"{website.LOOPBACK}:{self.ports[host]}" for host in website.ALLOWED_HOSTS]


def build_world(
    folder: str | Path, *, seed: int = 1, scale: float = 1.0, heldout: int = HELDOUT_SCENES
) -> World:
    """The world of these settings in `folder`: built now, or found there.

    Args:
        folder: local folder; created when missing
        seed: seed of everything random
        scale: size of the web and of the trusted part; 1.0 is the demo's
        heldout: number of held-out scenes

    Raises:
        ConfigError: the folder holds a world of other settings, or something else altogether.
    """
    folder = Path(folder).absolute()
    settings = {"version": WORLD_VERSION, "seed": seed, "scale": scale, "heldout": heldout}
    marker = folder / MARKER
    if marker.exists():
        return _open_world(folder, json.loads(marker.read_text()), settings)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} is not empty and holds no demo world; choose another folder or remove it"
        )
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)  # left by a build that was stopped
    building.mkdir(parents=True)
    counts = _Builder(building, settings, choose_ports(folder)).build()
    (building / MARKER).write_text(json.dumps({"settings": settings, "counts": counts}, indent=1) + "\n")
    if folder.exists():
        folder.rmdir()
    building.rename(folder)
    return _open_world(folder, json.loads(marker.read_text()), settings)


def _open_world(folder: Path, marker: dict[str, Any], settings: dict[str, Any]) -> World:
    if marker["settings"] != settings:
        raise ConfigError(
            f"{folder} holds a demo world of {marker['settings']}, asked for was {settings}; "
            "remove the folder or choose another"
        )
    ports = json.loads((folder / PORTS_FILE).read_text())
    return World(folder=folder, ports=ports, counts=marker["counts"])


def choose_ports(folder: Path) -> dict[str, int]:
    """A free port per host, below the range that outgoing connections use, so that it stays free.

    The search begins at a place given by the folder's name: two worlds on one machine get other ports.
    """
    port = 20000 + zlib.crc32(str(folder).encode()) % 10000
    ports = {}
    for host in website.HOSTS:
        while not port_is_free(port):
            port += 1
        ports[host] = port
        port += 1
    return ports


class _Builder:
    """Builds one world into an empty folder."""

    def __init__(self, folder: Path, settings: dict[str, Any], ports: dict[str, int]) -> None:
        self.folder, self.ports = folder, ports
        self.seed: int = settings["seed"]
        self.scale: float = settings["scale"]
        self.heldout: int = settings["heldout"]
        self.things: tuple[Thing, ...] = load_things()
        self.painter = Painter(folder / "bitmaps.npy", self.seed)

    def build(self) -> dict[str, int]:
        """Writes everything but the marker; returns counts."""
        render_bitmaps(self.painter.bitmaps)
        trusted = self._coco("trusted", max(8, round(TRUSTED_SCENES * self.scale)))
        heldout = self._coco("heldout", self.heldout)
        scenes = draw_scenes("web", website.scenes_needed(self.scale), kinds=len(self.things), seed=self.seed)
        web = website.plan_web(scenes, self.things, ports=self.ports, scale=self.scale, seed=self.seed)
        self._write_site(web)
        site_pages = pages.lay_out(web.planted, ports=self.ports, seed=self.seed)
        held = archives.write_archives(site_pages, self.folder / "archives")
        self._write_truth(web, site_pages, held)
        faults = Counter(picture.fault for picture in web.planted)
        return {"trusted": trusted, "heldout": heldout, "pages": len(site_pages), **faults}

    def _coco(self, part: str, count: int) -> int:
        """A folder of pictures and a COCO caption file, each caption the only one of its wording."""
        scenes = self._scenes_with_distinct_captions(part, count)
        images = self.folder / part / "images"
        images.mkdir(parents=True)
        for scene, jpeg in zip(scenes, paint_all(self.painter, scenes), strict=True):
            (images / f"{scene.name}.jpg").write_bytes(jpeg)
        records = [{"id": scene.number, "file_name": f"{scene.name}.jpg"} for scene in scenes]
        annotations = [
            {"id": scene.number, "image_id": scene.number, "caption": self._caption(scene)}
            for scene in scenes
        ]
        document = {"info": {"description": f"{part} scenes"}, "images": records, "annotations": annotations}
        text = json.dumps(document, ensure_ascii=False, indent=0)
        (self.folder / part / "captions.json").write_text(text + "\n", encoding="utf-8")
        return len(scenes)

    def _scenes_with_distinct_captions(self, part: str, count: int) -> list[Scene]:
        candidates = draw_scenes(part, count + count // 10 + 10, kinds=len(self.things), seed=self.seed)
        by_caption: dict[str, Scene] = {}
        for scene in candidates:
            by_caption.setdefault(self._caption(scene), scene)
        if len(by_caption) < count:
            raise ConfigError(f"only {len(by_caption)} of {count} {part} scenes have a caption of their own")
        return list(by_caption.values())[:count]

    def _caption(self, scene: Scene) -> str:
        return captions.draw_caption(scene, self.things, seed=self.seed)[0]

    def _write_site(self, web: website.Web) -> None:
        site = self.folder / SITE_FOLDER
        site.mkdir()
        drawn = {name: scene for name, (maker, scene) in web.contents.items() if maker not in _FIXED}
        painted = dict(zip(drawn, paint_all(self.painter, list(drawn.values())), strict=True))
        for name, (maker, scene) in web.contents.items():
            content = _FIXED[maker] if maker in _FIXED else self._spoil(maker, painted[name], scene)
            (site / name).write_bytes(content)
        routes = {
            host: {path: route.to_json() for path, route in paths.items()}
            for host, paths in web.routes.items()
        }
        (self.folder / ROUTES_FILE).write_text(json.dumps(routes))
        (self.folder / PORTS_FILE).write_text(json.dumps(self.ports, indent=1) + "\n")

    def _spoil(self, maker: str, jpeg: bytes, scene: Scene) -> bytes:
        if maker == "truncated":
            return jpeg[: len(jpeg) // random.Random(f"{self.seed}:{scene.name}").randint(2, 4)]
        if maker == "tiny":
            return encode_jpeg(self.painter.paint(scene).resize((48, 48)), quality=95)
        if maker == "small_file":
            small = self.painter.paint(scene).resize((64, 64)).resize((200, 200), Image.Resampling.BICUBIC)
            return encode_jpeg(small, quality=30)
        return jpeg

    def _write_truth(self, web: website.Web, site_pages: list[pages.Page], held: dict[str, str]) -> None:
        shown: dict[str, list[tuple[pages.Page, pages.Tag]]] = {}
        for page in site_pages:
            for tag in page.tags:
                shown.setdefault(tag.picture.url, []).append((page, tag))
        rows = [self._truth_row(picture, shown[picture.url], held) for picture in web.planted]
        temporary = self.folder / f".truth.{os.getpid()}"
        pq.write_table(pa.Table.from_pylist(rows, schema=TRUTH_SCHEMA), temporary)
        temporary.replace(self.folder / "truth.parquet")

    def _truth_row(
        self, picture: website.Planted, shown: list[tuple[pages.Page, pages.Tag]], held: dict[str, str]
    ) -> dict[str, Any]:
        page, tag = shown[0]
        fault = FAULTS[picture.fault]
        where = {held[page.url] for page, _ in shown}
        return {
            "url": picture.url if not picture.url.startswith("data:") else picture.url[:64],
            "alt": picture.alt,
            "fault": picture.fault,
            "is_wrong": picture.is_wrong_caption if fault.crawlable and fault.told else None,
            "is_crawlable": fault.crawlable,
            "scene": picture.scene.name,
            "caption_scene": picture.told.name if picture.told else "",
            "overlap": picture.overlap,
            "language": picture.language,
            "form": tag.form,
            "page": page.url,
            "pages": len(shown),
            "archive": where.pop() if len(where) == 1 else "both",
        }


#: contents that show no scene
_FIXED = {
    "html": b"<!doctype html><html><body><h1>404</h1><p>This picture is gone.</p></body></html>\n",
    "gif": website.BLANK_GIF,
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="256" height="256"><circle r="99"/></svg>\n',
}
