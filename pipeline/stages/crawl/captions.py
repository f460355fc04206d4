"""Caption files of known datasets, as tables: COCO, Karpathy's splits, Visual Genome, Flickr30K, SBU.

Each gives `caption`, `file_name` (below the folder of pictures) and, where the file knows it, `url`; one row
a caption: a picture with five captions is five rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import InputError


def read_json(value: Any, where: str) -> pa.Table:
    """A parsed JSON file: one of the known caption files, or a list of objects.

    Raises:
        InputError: the structure is none of these.
    """
    if isinstance(value, dict):
        if {"images", "annotations"} <= value.keys():
            return objects_table(_coco(value))
        if "images" in value:
            return objects_table(_karpathy(value["images"]))
        if {"image_urls", "captions"} <= value.keys():
            return _sbu(value, where)
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        if value and "regions" in value[0]:
            return objects_table(_visual_genome(value))
        return objects_table(value)
    raise InputError(
        f"{where}: neither a list of objects nor a caption file of COCO, Karpathy, Visual Genome or SBU"
    )


def _coco(value: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """images + annotations; captions in the order of the pictures, so that a picture's lie together."""
    captions: dict[Any, list[dict[str, Any]]] = {}
    for annotation in value["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation)
    for image in value["images"]:
        url = image.get("coco_url") or image.get("flickr_url")
        for annotation in captions.get(image["id"], []):
            yield {
                "url": url,
                "file_name": image["file_name"],
                "caption": annotation.get("caption"),
                "image_id": image["id"],
                "annotation_id": annotation.get("id"),
            }


def _karpathy(images: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for image in images:
        folder = image.get("filepath")
        name = f"{folder}/{image['filename']}" if folder else image["filename"]
        for sentence in image["sentences"]:
            yield {
                "file_name": name,
                "caption": sentence["raw"],
                "image_id": image.get("imgid"),
                "split": image.get("split"),
            }


def _visual_genome(images: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """region_descriptions.json: one row a region, with its box in pixels."""
    for image in images:
        for region in image["regions"]:
            number = region.get("image_id", image.get("id"))
            box = {f"region_{k}": region.get(k) for k in ("x", "y", "width", "height")}
            yield {"file_name": f"{number}.jpg", "caption": region["phrase"], "image_id": number, **box}


def _sbu(value: Mapping[str, Any], where: str) -> pa.Table:
    """sbu-captions-all.json: parallel lists."""
    urls, captions = value["image_urls"], value["captions"]
    if len(urls) != len(captions):
        raise InputError(
            f"{where}: {len(urls)} image_urls, but {len(captions)} captions; the file is damaged"
        )
    return objects_table({"url": u, "caption": c} for u, c in zip(urls, captions, strict=True))


def token_line(line: str) -> tuple[str, str | None]:
    """One line of Flickr30K's or Flickr8K's token file, `1000092795.jpg#0<tab>caption`: (file, caption)."""
    name, tab, caption = line.partition("\t")
    return name.rpartition("#")[0] or name, caption if tab else None


def objects_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """JSON objects as a table over the union of their keys; values that fit no one type become JSON text."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    present = [v for v in values if v is not None]
    kinds = {type(v) for v in present}
    if kinds <= {str}:
        return pa.array([None if v is None else clean(v) for v in values], pa.string())
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int} and all(-(2**63) <= v < 2**63 for v in present):
        return pa.array(values, pa.int64())
    if kinds <= {int, float}:
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    texts = [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
    return pa.array([None if t is None else clean(t) for t in texts], pa.string())


def clean(text: str) -> str:
    """JSON may spell half a surrogate pair, which no UTF-8 file can hold."""
    return text.encode("utf-8", "replace").decode()
