"""What the planted table plants, as lists for the crawl and a chain of ordinary commands.

Lists carry the truth along as columns of their own (`planted_*`), which no stage reads.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.bench.curation_pictures import GEOMETRIES, Photograph, jpeg
from jobs.bench.curation_texts import SENTENCES, SHORT

#: share of the captions that are given to another picture
SHUFFLED = 0.4
SAME = "the same file"
#: steps and batch of the CLIP that learns the photographs' captions
STEPS, BATCH = 400, 32
BENCHMARK = "benchmark"


@dataclass(frozen=True, kw_only=True)
class Planted:
    """chain: the file to run. geometries: name -> the word that its folders are named by."""

    chain: Path
    geometries: dict[str, str]
    shuffled: bool


def slug(geometry: str) -> str:
    return geometry.replace(" %", "").replace(" ", "-").lower()


def plant(root: Path, photographs: Sequence[Photograph], *, seed: int) -> Planted:
    """Writes pictures, lists and the chain below `root`."""
    geometries = {name: slug(name) for name in (SAME, *GEOMETRIES)}
    steps: dict[str, Any] = {}
    _write_benchmark(root / BENCHMARK, photographs)
    for name, word in geometries.items():
        _write_copies(root / word, photographs, name)
        steps |= _near_steps(word, exact=name == SAME)
    _write_texts(root / "texts/part-00000000.parquet", seed)
    steps["language"] = {
        "job": "score", "kind": "language", "input": "{root}/texts", "output": "{root}/columns/language",
    }  # fmt: skip
    told = [photo for photo in photographs if len(photo.captions) > 1]
    if told:
        steps |= _shuffled_steps(root, told, seed)
    chain = root / "chain.yaml"
    chain.write_text(yaml.safe_dump({"root": str(root), "steps": steps}, sort_keys=False))
    return Planted(chain=chain, geometries=geometries, shuffled=bool(told))


def in_benchmark(place: int) -> bool:
    """Every other photograph is in the benchmark set."""
    return place % 2 == 0


def _write_benchmark(folder: Path, photographs: Sequence[Photograph]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for place, photo in enumerate(photographs):
        if in_benchmark(place):
            (folder / f"{photo.name}.jpg").write_bytes(jpeg(photo.image))


def _write_copies(folder: Path, photographs: Sequence[Photograph], geometry: str) -> None:
    """Each photograph and its copy, all in a list whose order tells nothing."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows = []
    for place, photo in enumerate(photographs):
        original = jpeg(photo.image)
        copy = original
        if geometry != SAME:
            change, quality = GEOMETRIES[geometry]
            copy = jpeg(change(photo.image), quality)
        for role, data in (("original", original), ("copy", copy)):
            name = f"{photo.name}.{role}.jpg"
            (folder / "pictures" / name).write_bytes(data)
            rows.append(_row(name, f"{photo.name} {role}", photo.name, role, in_benchmark(place)))
    random.Random(0).shuffle(rows)
    pq.write_table(pa.Table.from_pylist(rows), folder / "list.parquet")


def _row(name: str, caption: str, group: str, role: str, known: bool) -> dict[str, Any]:
    return {
        "url": name,
        "caption": caption,
        "planted_group": group,
        "planted_role": role,
        "planted_in_benchmark": known,
    }


def _near_steps(word: str, *, exact: bool) -> dict[str, Any]:
    here, crawl = f"{{root}}/{word}", _crawl(f"{{root}}/{word}")
    steps: dict[str, Any] = {f"crawl-{word}": crawl}
    if exact:
        steps[f"exact-{word}"] = {"job": "dedup", "input": f"{here}/images", "output": f"{here}/exact"}
    steps[f"hash-{word}"] = {
        "job": "score", "kind": "hash", "input": f"{here}/images", "output": f"{here}/hash",
    }  # fmt: skip
    common = {"job": "dedup", "input": f"{here}/images", "columns": [f"{here}/hash"]}
    steps[f"near-{word}"] = {**common, "method": "near", "output": f"{here}/near"}
    steps[f"contamination-{word}"] = {
        **common,
        "method": "contamination",
        "against": [f"{BENCHMARK}={{root}}/{BENCHMARK}"],
        "output": f"{here}/contamination",
    }
    return steps


def _crawl(folder: str) -> dict[str, Any]:
    return {
        "job": "crawl",
        "input": f"{folder}/list.parquet",
        "local_pictures": f"{folder}/pictures",
        "image_size": 256,
        "output": f"{folder}/images",
    }


def _write_texts(path: Path, seed: int) -> None:
    """A candidates folder: alt texts in several languages, sentences and short ones."""
    texts = [
        (text, language, "sentence" if found is SENTENCES else "short")
        for found in (SENTENCES, SHORT)
        for language, some in found.items()
        for text in some
    ]
    random.Random(seed).shuffle(texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {
        "url": [f"http://texts.example/{n}.jpg" for n in range(len(texts))],
        "caption": [text for text, _, _ in texts],
        "planted_language": [language for _, language, _ in texts],
        "planted_length": [length for _, _, length in texts],
    }
    pq.write_table(pa.table(table), path)


def _shuffled_steps(root: Path, told: Sequence[Photograph], seed: int) -> dict[str, Any]:
    """A CLIP learns all captions but the last of each picture; the last ones are judged, some of them at a
    wrong picture."""
    taught = [(photo, caption) for photo in told for caption in photo.captions[:-1]]
    _write_pairs(root / "taught", [(p, c, False) for p, c in taught])
    captions = [photo.captions[-1] for photo in told]
    wrong = _exchanged(len(told), seed)
    judged = [(photo, captions[wrong.get(n, n)], n in wrong) for n, photo in enumerate(told)]
    _write_pairs(root / "judged", judged)
    scorer = {
        "job": "train",
        "shards": "{root}/taught/images",
        "output": "{root}/scorer",
        "recipe": "clip",
        "size": "tiny",
        "model": {"image_size": 96, "patch_size": 16, "vision_depth": 3},
        "augment": {"crop_scale": [0.8, 1.0]},
        "epochs": max(1, -(-STEPS * BATCH // len(taught))),
        "batch_size": BATCH,
        "lr": 1.0e-3,
        "warmup_steps": 40,
        "vocab_size": 2048,
    }
    score = {"input": "{root}/judged/images", "model": "{root}/scorer/model", "output": "{root}/columns/clip"}
    return {
        "crawl-taught": _crawl("{root}/taught"),
        "crawl-judged": _crawl("{root}/judged"),
        "scorer": scorer,
        "score": score,
    }


def _exchanged(number: int, seed: int) -> dict[int, int]:
    """Place -> the place whose caption it gets, for a share of them; none keeps its own."""
    chosen = random.Random(seed).sample(range(number), max(2, round(number * SHUFFLED)))
    return dict(zip(chosen, [*chosen[1:], chosen[0]], strict=True))


def _write_pairs(folder: Path, pairs: Sequence[tuple[Photograph, str, bool]]) -> None:
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows = []
    for photo, caption, wrong in pairs:
        (folder / "pictures" / f"{photo.name}.jpg").write_bytes(jpeg(photo.image))
        rows.append({"url": f"{photo.name}.jpg", "caption": caption, "planted_wrong": wrong})
    pq.write_table(pa.Table.from_pylist(rows), folder / "list.parquet")
