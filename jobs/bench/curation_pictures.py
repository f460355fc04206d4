"""The pictures of the planted table: photographs, and copies of them whose geometry is stated."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from jobs.bench.curation_texts import PHOTOGRAPHS
from pipeline.errors import ConfigError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
#: a quarter of a picture of at least this many pixels a side is a picture of its own
QUARTERED = 380
#: share of width and height that a crop cuts off
CUT = 0.05


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """name: of its file, without a suffix. captions: none, or at least two that are true of it."""

    name: str
    image: Image.Image
    captions: tuple[str, ...] = ()


def _centre(image: Image.Image) -> Image.Image:
    left, top = round(image.width * CUT / 2), round(image.height * CUT / 2)
    return image.crop((left, top, image.width - left, image.height - top))


def _corner(image: Image.Image) -> Image.Image:
    """What is cut off lies at the right and the bottom alone."""
    return image.crop((0, 0, round(image.width * (1 - CUT)), round(image.height * (1 - CUT))))


def _half(image: Image.Image) -> Image.Image:
    size = (max(1, image.width // 2), max(1, image.height // 2))
    return image.resize(size, Image.Resampling.LANCZOS)


def _same(image: Image.Image) -> Image.Image:
    return image


#: name -> (what is done to the picture, quality of the JPEG)
GEOMETRIES: dict[str, tuple[Callable[[Image.Image], Image.Image], int]] = {
    "resized to 50 %": (_half, 92),
    "JPEG quality 50": (_same, 50),
    "centre crop 5 %": (_centre, 92),
    "corner crop 5 %": (_corner, 92),
    "mirrored": (ImageOps.mirror, 92),
}


def jpeg(image: Image.Image, quality: int = 92) -> bytes:
    sink = io.BytesIO()
    image.convert("RGB").save(sink, "JPEG", quality=quality)
    return sink.getvalue()


def photographs(folders: tuple[str, ...], captions: tuple[str, ...], *, quarters: bool) -> list[Photograph]:
    """The pictures of folders, and those that installed packages carry.

    Args:
        captions: files in COCO's format that say what the folders' pictures show.
        quarters: also the quarters of large pictures of the packages.

    Raises:
        ConfigError: a folder holds no picture, or there are too few pictures in all.
    """
    told = _coco(captions)
    found = [photo for folder in folders for photo in _of_folder(Path(folder), told)]
    for photo in _of_packages():
        found.append(photo)
        if quarters:
            found += _quarters(photo)
    if len(found) < 10:
        raise ConfigError(
            f"{len(found)} pictures are too few to plant anything in; give --pictures FOLDER, or install "
            "scikit-image and scikit-learn, which carry some"
        )
    return found


def _coco(files: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    told: dict[str, tuple[str, ...]] = {}
    for file in files:
        try:
            document = json.loads(Path(file).read_bytes())
            names = {image["id"]: image["file_name"] for image in document["images"]}
            for one in document["annotations"]:
                name = names[one["image_id"]]
                told[name] = (*told.get(name, ()), " ".join(one["caption"].split()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"captions {file!r}: no file in COCO's caption format ({error!r})") from error
    return told


def _of_folder(folder: Path, told: dict[str, tuple[str, ...]]) -> Iterator[Photograph]:
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise ConfigError(f"pictures {str(folder)!r} holds no {', '.join(SUFFIXES)}")
    for path in paths:
        with Image.open(path) as image:
            yield Photograph(
                name=f"{folder.name}-{path.stem}",
                image=image.convert("RGB"),
                captions=told.get(path.name, ()),
            )


def _of_packages() -> Iterator[Photograph]:
    for (package, file), captions in PHOTOGRAPHS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None or not (path := Path(spec.origin).parent / file).exists():
            continue
        with Image.open(path) as image:
            yield Photograph(
                name=f"{package}-{path.stem.replace('_', '-')}", image=image.convert("RGB"), captions=captions
            )


def _quarters(photo: Photograph) -> Iterator[Photograph]:
    width, height = photo.image.width // 2, photo.image.height // 2
    if min(photo.image.size) < QUARTERED:
        return
    for place in range(4):
        left, top = (place % 2) * width, (place // 2) * height
        yield Photograph(
            name=f"{photo.name}-{place}", image=photo.image.crop((left, top, left + width, top + height))
        )
