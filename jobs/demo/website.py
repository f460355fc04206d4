"""Lays the scenes out as a small web: who hosts which picture, what is said about it, what goes wrong.

The hosts are ports of the loopback address, for a crawler's allow-list names `host:port`:

    main, cdn, mirror   pictures and pages
    slow                pictures that drip
    dead                allowed, but nothing listens there
    forbidden           answers, but is not on the allow-list: no request may ever reach it

Everything is decided here, before anything is written: `plan_web` returns what to plant and the routes that
the server follows.
"""

from __future__ import annotations

import base64
import random
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import unquote

from jobs.demo import captions
from jobs.demo.faults import FAULTS, quota
from jobs.demo.objects import Thing
from jobs.demo.scenes import Scene

HOSTS = ("main", "cdn", "mirror", "slow", "dead", "forbidden")
PICTURE_HOSTS = HOSTS[:3]
ALLOWED_HOSTS = HOSTS[:5]
LOOPBACK = "127.0.0.1"

#: what a wrong caption shares with the picture
OVERLAPS = (("none", 0.5), ("colour", 0.25), ("object", 0.25))
SHORT_ALTS = ("img", "pic", "foto", "1", "...")
BOILERPLATE_ALTS = (
    "image",
    "photo {n}",
    "IMG_{n}.jpg",
    "DSC{n}",
    "untitled-{n}",
    "Bild {n}",
    "click to enlarge",
)
SCRIPT = "<script>document.title='owned by an alt text'</script>"
#: the smallest valid GIF; also what lazy pages show before the picture is loaded
BLANK_GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")


@dataclass(frozen=True, kw_only=True)
class Route:
    """What the server answers at one address.

    Attributes:
        file: content, relative to the site folder; empty for a redirect
        status: HTTP status
        content_type: sent as it is, true or not
        headers: further headers
        behaviour: plain, busy_once, slow or endless
    """

    file: str = ""
    status: int = 200
    content_type: str = "image/jpeg"
    headers: dict[str, str] = field(default_factory=dict)
    behaviour: str = "plain"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Planted:
    """One picture of the web and the truth about it."""

    url: str
    alt: str
    fault: str
    scene: Scene
    told: Scene | None
    overlap: str = "none"
    language: str = ""

    @property
    def is_wrong_caption(self) -> bool:
        return self.fault == "wrong_caption"


@dataclass(frozen=True, kw_only=True)
class Web:
    """The plan of the small web.

    Attributes:
        planted: every picture, in the order of the scenes
        routes: host name -> path -> what is answered there
        contents: file name in the site folder -> how to make it: (maker, scene)
    """

    planted: list[Planted]
    routes: dict[str, dict[str, Route]]
    contents: dict[str, tuple[str, Scene]]


def scenes_needed(scale: float) -> int:
    return sum(quota(fault, scale) for fault in FAULTS)


def plan_web(
    scenes: list[Scene], things: tuple[Thing, ...], *, ports: dict[str, int], scale: float, seed: int
) -> Web:
    """Gives every scene a fault, an address and an alt text; `scenes` are `scenes_needed(scale)` of them."""
    rng = random.Random(f"{seed}:website")
    faults = [fault for fault in FAULTS for _ in range(quota(fault, scale))]
    rng.shuffle(faults)
    web = Web(planted=[], routes={host: {} for host in HOSTS}, contents={})
    planner = _Planner(web, scenes, things, ports, rng, seed)
    for scene, fault in zip(scenes, faults, strict=True):
        planner.plant(scene, fault)
    return web


class _Planner:
    """Fills a `Web`; holds what planting one picture needs to know of all the others."""

    def __init__(
        self,
        web: Web,
        scenes: list[Scene],
        things: tuple[Thing, ...],
        ports: dict[str, int],
        rng: random.Random,
        seed: int,
    ) -> None:
        self.web, self.scenes, self.things, self.ports = web, scenes, things, ports
        self.rng, self.seed = rng, seed

    def plant(self, scene: Scene, fault: str) -> None:
        told, overlap = self._other_scene(scene) if fault == "wrong_caption" else (scene, "none")
        alt, language = captions.draw_caption(told, self.things, seed=self.seed)
        if not FAULTS[fault].told:
            texts = SHORT_ALTS if fault == "short_alt" else BOILERPLATE_ALTS
            alt, language = self.rng.choice(texts).format(n=self.rng.randint(1000, 9999)), ""
        elif fault == "hostile_alt":
            alt = f"{alt} {SCRIPT}"
        for url in self._addresses(scene, fault):
            planted = Planted(
                url=url,
                alt=alt,
                fault=fault,
                scene=scene,
                told=told if FAULTS[fault].told else None,
                overlap=overlap,
                language=language,
            )
            self.web.planted.append(planted)

    def _other_scene(self, scene: Scene) -> tuple[Scene, str]:
        """Whose caption a wrongly captioned picture gets, and what the two have in common."""
        overlap = self.rng.choices([o for o, _ in OVERLAPS], weights=[w for _, w in OVERLAPS])[0]
        kinds = {scene.kind_a, scene.kind_b}
        fits = {
            "none": lambda s: s.colour != scene.colour and not kinds & {s.kind_a, s.kind_b},
            "colour": lambda s: s.colour == scene.colour and not kinds & {s.kind_a, s.kind_b},
            "object": lambda s: s.colour != scene.colour and len(kinds & {s.kind_a, s.kind_b}) == 1,
        }[overlap]
        for _ in range(5000):
            other = self.rng.choice(self.scenes)
            if fits(other):
                return other, overlap
        others = [s for s in self.scenes if s.content != scene.content]  # a tiny world has not every overlap
        return self.rng.choice(others), "none"

    def _addresses(self, scene: Scene, fault: str) -> list[str]:
        """Makes the routes for one picture; returns the addresses that pages show, mostly one."""
        name = f"{scene.name}.jpg"
        if fault == "data_url":
            return [f"data:image/gif;base64,{base64.b64encode(BLANK_GIF).decode()}#{scene.number}"]
        if fault == "file_url":
            return [f"file:///home/user/Pictures/{name}"]
        if fault == "private":
            return [f"http://10.{scene.number % 200}.0.7/{self._path(scene)}"]
        if fault == "unreachable":
            return [self._url("dead", self._path(scene))]
        host = "slow" if fault in ("slow", "endless") else self.rng.choice(PICTURE_HOSTS)
        path = self._path(scene)
        if fault in ("gif", "svg"):
            path = path.replace(".jpg", f".{fault}")
        route = self._route(scene, fault, path)
        addresses = [self._serve(host, path, route)]
        if fault == "duplicate_bytes":
            addresses.append(self._serve("mirror", path.replace(".jpg", "-copy.jpg"), route))
        return addresses

    def _serve(self, host: str, path: str, route: Route) -> str:
        """Adds a route; returns its address. Routes are found by the decoded path, without the query."""
        self.web.routes[host][unquote(path.partition("?")[0])] = route
        return self._url(host, path)

    def _route(self, scene: Scene, fault: str, path: str) -> Route:
        """What the server answers for this kind of fault; notes which file has to be made for it."""
        if fault == "dead_link":
            return Route(status=404, file=self._content("gone.html", "html", scene), content_type="text/html")
        if fault in ("moved", "redirect_private"):
            host = "cdn" if fault == "moved" else "forbidden"
            target = f"moved/{path}"
            url = self._serve(host, target, Route(file=self._content(f"{scene.name}.jpg", "jpeg", scene)))
            return Route(status=302, headers={"Location": url}, content_type="text/html")
        if fault == "html_as_jpg":
            return Route(file=self._content("gone.html", "html", scene))
        if fault == "gif":
            return Route(file=self._content("blank.gif", "gif", scene), content_type="image/gif")
        if fault == "svg":
            return Route(file=self._content("blank.svg", "svg", scene), content_type="image/svg+xml")
        maker = fault if fault in ("tiny", "small_file", "truncated") else "jpeg"
        file = self._content(f"{scene.name}.jpg", maker, scene)
        if fault == "opt_out":
            tag = self.rng.choice(("noai", "noimageai", "noai, noimageai"))
            return Route(file=file, headers={"X-Robots-Tag": tag})
        return Route(file=file, behaviour=fault if fault in ("busy_once", "slow", "endless") else "plain")

    def _content(self, name: str, maker: str, scene: Scene) -> str:
        self.web.contents.setdefault(name, (maker, scene))
        return name

    def _path(self, scene: Scene) -> str:
        """An address as the web has them: dates, hashes, and many files of the same base name."""
        number = scene.number
        year, month = 2012 + number % 12, 1 + number % 11
        return (
            f"wp-content/uploads/{year}/{month:02d}/photo-{number}.jpg",
            f"media/{number:06x}/image.jpg",
            f"assets/img/my%20picture-{number}.jpg",
            f"p/{number * 7919 % 99991:05d}/large.jpg",
            f"images/{number * 104729 % 999983:06d}.jpg?w=1280&fit=crop",
        )[number % 5]

    def _url(self, host: str, path: str) -> str:
        return f"http://{LOOPBACK}:{self.ports[host]}/{path}"
