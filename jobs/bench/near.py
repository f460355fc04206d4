"""Recall and precision of `dedup --method near` on planted copies, and how often other pictures look alike.

    pairmill bench near --pictures coco/val2017 --views 20

Each row of the first table is a world of its own: the photographs, copies of all of them that were changed in
one way, and parts of them as other pictures. Recall is the share of copies that are marked as near their
original, precision the share of all marks that name a picture of the same photograph. The second table
compares all pairs of different pictures of a sort, and counts those up to a distance: that share times the
pictures of a collection is how many strangers each of them meets.

Hashes and search are those of the stages; all runs in this process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from jobs.bench import near_pictures
from pipeline.errors import ConfigError
from pipeline.phash import BITS, alike, decode_grey, hamming, outlines
from pipeline.stages.dedup.near.config import NearOptions
from pipeline.stages.dedup.near.entries import make_entries
from pipeline.stages.dedup.near.pairs import find_losers

DISTANCES = (8, 12, 16, 20, 24, 32)


def main(argv: Sequence[str]) -> int:
    """Prints the tables; returns 0."""
    parser = argparse.ArgumentParser(prog="pairmill bench near", description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", required=True, help="folder of photographs (jpg), all different")
    parser.add_argument("--views", type=int, default=20, help="other pictures made of each photograph")
    parser.add_argument("--seed", type=int, default=0)
    for name, value in (("distance", 16), ("bands", 4), ("band_bits", 24)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"near.{name}")
    args = parser.parse_args(argv)
    options = NearOptions(distance=args.distance, bands=args.bands, band_bits=args.band_bits)
    options.check()
    photographs = read_photographs(args.pictures)
    originals = hashed(photographs)
    of_view, others = _made(near_pictures.views(photographs, args.views, args.seed))
    print(f"{len(photographs)} photographs, {len(others)} other pictures; {options}\n")
    print("| copy | recall | marks | precision |\n|---|---|---|---|")
    for name, (change, quality) in near_pictures.COPIES.items():
        copies = hashed((change(image) for image in photographs), quality)
        recall, marked, precision = judge(originals, copies, others, of_view, options)
        print(f"| {name} | {recall:.3f} | {marked} | {precision:.3f} |", flush=True)
    heads = ["pairs of", "number", *(f"<= {d}" for d in DISTANCES)]
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    few = max(1, args.views // 2)
    sorts = {
        "parts of photographs": (of_view, others),
        "products on white": _made(near_pictures.products(photographs, few, args.seed)),
        "pages of text": _made(near_pictures.pages(few * len(photographs) // 2, args.seed)),
        "words on white": _made(near_pictures.logos(few * len(photographs) // 2, args.seed)),
    }
    for name, (source, hashes) in sorts.items():
        number, counts = strangers(source, hashes)
        told = " | ".join(f"{count / number:.1e}" if count else "0" for count in counts)
        print(f"| {name} | {number:.1e} | {told} |", flush=True)
    return 0


def read_photographs(folder: str) -> list[Image.Image]:
    """Raises ConfigError where there are none."""
    found = sorted(Path(folder).rglob("*.jpg"))
    if not found:
        raise ConfigError(f"pictures {folder!r}: no *.jpg in it or below; give a folder of photographs")
    return [Image.open(path).convert("RGB") for path in found]


def hashed(images: Iterable[Image.Image], quality: int = 95) -> np.ndarray:
    """uint64 [n, HASHES, WORDS] of images, each through a JPEG."""
    return np.stack([outlines(decode_grey(near_pictures.encoded(image, quality))) for image in images])


def _made(pictures: Iterable[tuple[int, Image.Image]]) -> tuple[np.ndarray, np.ndarray]:
    source, images = zip(*pictures, strict=True)
    return np.array(source), hashed(images)


def judge(
    originals: np.ndarray, copies: np.ndarray, others: np.ndarray, of_view: np.ndarray, options: NearOptions
) -> tuple[float, int, float]:
    """(recall, number of marks, precision) in the world of these hashes."""
    world = np.concatenate([originals, others, copies])
    source = np.concatenate([np.arange(len(originals)), of_view, np.arange(len(copies))])
    keys = pa.array([f"{at:012d}" for at in range(len(world))])
    entries = make_entries(keys, world, bands=options.bands, band_bits=options.band_bits, buckets=1)
    losers, _ = find_losers(entries, distance=options.distance, most=options.most)
    key, of = (np.array([int(k) for k in losers[name].to_pylist()], np.int64) for name in ("key", "of"))
    same = source[key] == source[of]
    found = same & (key >= len(originals) + len(others)) & (of < len(originals))
    return float(found.sum() / len(copies)), len(key), float(same.mean()) if len(key) else 1.0


def strangers(source: np.ndarray, hashes: np.ndarray) -> tuple[int, list[int]]:
    """(pairs of pictures of different sources, how many of them are near up to each of DISTANCES)."""
    number, counts = 0, np.zeros(257, np.int64)
    for at in range(1, len(hashes)):
        before = hashes[:at][source[:at] != source[at]]
        if not len(before):
            continue
        apart = np.minimum(_apart(before[:, :1], hashes[at]), _apart(before, hashes[at, 0]))
        counts += np.bincount(apart, minlength=257)
        number += len(before)
    return number, [int(counts[: distance + 1].sum()) for distance in DISTANCES]


def _apart(before: np.ndarray, this: np.ndarray) -> np.ndarray:
    """int64 [n]: the fewest bits in which hashes that count as alike differ; 256 where none do."""
    apart = hamming(before, this)
    return np.where(alike(before, this, apart, BITS), apart, BITS).min(axis=1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
