"""What the manifests of an output folder say: one `StageFacts` per stage, the bars of the funnel.

Counts come from the manifests alone (`pipeline.manifest`), so the funnel of a billion pairs costs one small
file per unit. A folder written by img2dataset has no manifests; there the `_stats.json` files are summed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pipeline import manifest, storage
from pipeline.stage import Counts

#: what a stage's counts mean, as a sentence; `{out}` and `{of}` are formatted numbers
SENTENCES = {
    "discover": "{out} of {of} image tags became candidate pairs",
    "crawl": "{out} of {of} image links became pictures",
    "dedup": "{out} of {of} pictures are no duplicate of another; duplicates are marked, pack may drop them",
    "dedup-near": "{out} of {of} pictures look like no other; near duplicates are marked, pack may drop them",
    "dedup-semantic": "{out} of {of} pictures show what no other does; pack may drop the others",
    "dedup-contamination": "{out} of {of} pictures look like none of the named benchmarks'",
    "balance": "{out} of {of} captions are kept by the balance over query entries",
    "caption": "{out} of {of} pictures were captioned, or their captions judged",
    "pack": "{out} of {of} pictures became training pairs",
}


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """One output folder as its books tell it.

    Attributes:
        role: what the report asked the folder for: discover, crawl, column, pack.
        stage: the stage that wrote it, or the role where nothing stands.
        name: what it is called here: the stage, or a column's own folder.
        folder: its location.
        state: `done`, `partial` (units are missing), `absent` (no such folder, or no finished unit).
        taken: rows that went in.
        kept: rows that came out.
        dropped: (reason, rows), the most frequent first.
        units: finished units.
        planned: planned units; 0 where nobody planned.
        quarantined: (unit, error) of the units given up.
        seconds: work, summed over the units.
        finished: when the last unit was committed, UTC; empty where unknown.
        settings: the stage's semantic configuration.
        mixed: whether units made with different settings stand side by side.
        resolved: the resolved configuration of the last run, as YAML; empty where none was saved.
    """

    role: str
    stage: str
    name: str
    folder: str
    state: str = "absent"
    taken: int = 0
    kept: int = 0
    dropped: tuple[tuple[str, int], ...] = ()
    units: int = 0
    planned: int = 0
    quarantined: tuple[tuple[int, str], ...] = ()
    seconds: float = 0.0
    finished: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    mixed: bool = False
    resolved: str = ""

    @property
    def sentence(self) -> str:
        text = SENTENCES.get(self.stage) or SENTENCES.get(self.role)
        if text is None:
            return f"{self.kept:,} of {self.taken:,} pictures were judged"
        return text.format(out=f"{self.kept:,}", of=f"{self.taken:,}")


def read_stage(folder: str, role: str) -> StageFacts:
    """Reads the books of one output folder; a missing or empty one is `absent`, never an error."""
    name = storage.basename(folder) if role == "column" else role
    if not storage.isdir(folder):
        return StageFacts(role=role, stage=role, name=name, folder=folder)
    if not manifest.is_output(folder):
        return _foreign(folder, role)
    manifests = manifest.read_all(folder)
    planned = len(manifest.read_units(folder))
    quarantined = _quarantined(folder)
    if not manifests:
        return StageFacts(
            role=role, stage=role, name=name, folder=folder, planned=planned, quarantined=quarantined
        )
    counts = manifest.total_counts(manifests)
    newest = max(manifests, key=lambda m: m["finished"])
    return StageFacts(
        role=role,
        stage=newest["stage"],
        name=name if role == "column" else newest["stage"],
        folder=folder,
        state="done" if len(manifests) >= planned and not quarantined else "partial",
        taken=counts.taken,
        kept=counts.kept,
        dropped=by_frequency(counts),
        units=len(manifests),
        planned=planned,
        quarantined=quarantined,
        seconds=sum(m["seconds"] for m in manifests),
        finished=newest["finished"],
        settings=newest["config"],
        mixed=any(m["config"] != newest["config"] for m in manifests),
        resolved=read_text(storage.join(folder, manifest.BOOKS, "config.yaml")),
    )


def by_frequency(counts: Counts) -> tuple[tuple[str, int], ...]:
    return tuple(
        sorted(((r, n) for r, n in counts.dropped.items() if n), key=lambda item: (-item[1], item[0]))
    )


def read_text(url: str) -> str:
    """The text of a small file; empty where it does not exist."""
    return storage.read_bytes(url).decode("utf-8", "replace") if storage.exists(url) else ""


def _quarantined(folder: str) -> tuple[tuple[int, str], ...]:
    found = []
    for info in storage.list_files(storage.join(folder, manifest.BOOKS, "quarantine")):
        stem = storage.basename(info.url).removesuffix(".json")
        if stem.isdigit():
            found.append((int(stem), str(_json(storage.read_bytes(info.url)).get("error", ""))))
    return tuple(found)


def _foreign(folder: str, role: str) -> StageFacts:
    """An img2dataset folder: its `00000_stats.json` files."""
    places = [f.url for f in storage.list_files(folder) if f.url.endswith("_stats.json")]
    with ThreadPoolExecutor(8) as pool:
        stats = [_json(data) for data in pool.map(storage.read_bytes, places)]
    total = Counts()
    for one in stats:
        total.keep(int(one.get("successes", 0)))
        for reason, number in one.get("status_dict", {}).items():
            if reason != "success":
                total.drop(str(reason), int(number))
    if not total.taken:
        return StageFacts(role=role, stage=role, name=role, folder=folder)
    return StageFacts(
        role=role,
        stage=role,
        name=role,
        folder=folder,
        state="done",
        taken=total.taken,
        kept=total.kept,
        dropped=by_frequency(total),
        units=len(stats),
        seconds=float(sum(one.get("duration", 0.0) for one in stats)),
    )


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def named(stages: Sequence[StageFacts], role: str) -> StageFacts | None:
    """The first stage of a role that stands."""
    return next((s for s in stages if s.role == role and s.state != "absent"), None)
