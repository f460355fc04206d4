"""Pack's choices among all samples: limits a text and a domain, the top; against a plain computation of the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline import manifest, tombstones
from pipeline.errors import ConfigError, InputError
from pipeline.stages.pack import Pack, PackConfig, pack_stages
from pipeline.stages.pack.rule import Limits, RuleOptions, parse_top, taken_of
from pipeline.stages.pack.select import Rows, Top
from pipeline.stages.pack.select.state import domain_of, normal_text
from pipeline.stages.pack.select.top import TopConfig, order_strings
from tests.pipeline.folders import crawled, make_columns, make_foreign, make_images, run_here

PICTURE = b"no picture that anybody decodes"
TEXTS = ["a cat", "A  CAT ", "a dog", "", "ein Hund"]
HOSTS = ["a.example.co.uk", "b.example.co.uk", "example.org", "www.example.org", "10.0.0.1"]
SCORES = [0.1, 0.25, 0.25, 0.3, float("nan"), None, -0.0, 0.0, -1.5, float("inf")]

rows = st.lists(
    st.tuples(st.sampled_from(TEXTS), st.sampled_from(HOSTS), st.sampled_from(SCORES), st.booleans()),
    min_size=1,
    max_size=24,
)


def _world(folder: Path, given_rows: Sequence[tuple[str, str, float | None, bool]], shards: int = 3) -> None:
    """Rows dealt to shards; a row whose last value is false is a failed download."""
    images: dict[int, list[dict[str, Any]]] = {n: [] for n in range(shards)}
    scores: dict[int, dict[str, list]] = {n: {"key": [], "clip_score": []} for n in range(shards)}
    for at, (text, host, score, there) in enumerate(given_rows):
        shard = at % shards
        failed = {} if there else {"reason": "timeout"}
        url = f"http://{host}/{at}.jpg"
        row = crawled(shard, at // shards, caption=text, url=url, picture=PICTURE, **failed)
        images[shard].append(row)
        if there:
            scores[shard]["key"].append(row["key"])
            scores[shard]["clip_score"].append(score)
    make_images(folder / "images", images)
    tables = {
        n: {**s, "clip_score": pa.array(s["clip_score"], pa.float32()).to_pylist()} for n, s in scores.items()
    }
    make_columns(folder / "clip", tables)


def _pack(folder: Path, name: str = "out", **rule: Any) -> Counter[str]:
    """Runs all stages; the reasons of pack's manifests, `kept` for what came out."""
    config = PackConfig(
        input=str(folder / "images"), columns=(str(folder / "clip"),), group=2, buckets=3, **rule
    )
    for stage, output in pack_stages(config, str(folder / name)):
        run_here(stage, output)
    total = manifest.total_counts(manifest.read_all(str(folder / name)))
    return Counter({**total.dropped, "kept": total.kept})


def _kept(folder: Path, name: str = "out") -> set[str]:
    tables = [pq.read_table(path)["key"].to_pylist() for path in sorted((folder / name).glob("*.parquet"))]
    return {key for keys in tables for key in keys}


def _expected(folder: Path, where: str | None, limits: Limits) -> tuple[set[str], Counter[str]]:
    """The same rule in pandas, a row at a time."""
    parts = []
    for path in sorted((folder / "images").glob("*.parquet")):
        images = pd.read_parquet(path)
        scores = pd.read_parquet(folder / "clip" / path.name)
        parts.append(images.merge(scores, on="key", how="left"))
    table = pd.concat(parts).sort_values("key").reset_index(drop=True)
    table["why"] = np.where(table["status"] == "success", "", "timeout")
    everybody = table[table["why"] == ""]
    if where is not None:
        bad = (table["why"] == "") & ~(table["url"].str.contains("org"))
        table.loc[bad, "why"] = "predicate"
    best = table.assign(rank=-table["clip_score"].fillna(-math.inf), no=table["clip_score"].isna())
    best = best.sort_values(["no", "rank", "key"])
    for reason, limit, name in (
        ("max_per_text", limits.per_text, lambda r: " ".join(r["caption"].lower().split())),
        (
            "max_per_domain",
            limits.per_domain,
            lambda r: {"k": "example.co.uk", "g": "example.org", "1": "1"}[r["url"].split("/")[2][-1]],
        ),
    ):
        seen: Counter[str] = Counter()
        for at, row in best.iterrows():
            what = name(row)
            if not limit or table.loc[at, "why"] or not what:
                continue
            seen[what] += 1
            if seen[what] > limit:
                table.loc[at, "why"] = reason
    if limits.top is not None:
        pool = everybody.index if limits.of_all else table.index[table["why"] == ""]
        order = [at for at in best.index if at in set(pool) and not best.loc[at, "no"]]
        wanted = limits.top if isinstance(limits.top, int) else math.floor(limits.top * len(pool))
        chosen = set(order[:wanted])
        for at in table.index[table["why"] == ""]:
            if at not in chosen:
                table.loc[at, "why"] = "below_top_null" if best.loc[at, "no"] else "below_top"
    reasons = Counter(why or "kept" for why in table["why"])
    return set(table.loc[table["why"] == "", "key"]), reasons


@given(
    rows=rows,
    where=st.sampled_from([None, "url LIKE '%org%'"]),
    per_text=st.sampled_from([0, 1, 2]),
    per_domain=st.sampled_from([0, 1, 3]),
    top=st.sampled_from([None, "30%", "66.6%", "100%", 1, 5, 1000]),
    of=st.sampled_from(["kept", "all"]),
)
@settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # a world takes too long to make for shrinking
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_choices_are_those_of_a_plain_computation(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, float | None, bool]],
    where: str | None,
    per_text: int,
    per_domain: int,
    top: str | int | None,
    of: str,
) -> None:
    tmp_path = tmp_path_factory.mktemp("world")
    valued = any(score is not None and not math.isnan(score) for _, _, score, there in rows if there)
    if not valued:
        rows = [*rows, ("a bird", "example.org", 0.5, True)]
    _world(tmp_path, rows)
    rule: dict[str, Any] = {"where": where, "max_per_text": per_text, "max_per_domain": per_domain}
    if top is not None:
        rule |= {"top": top, "of": of, "by": "clip_score"}
    elif per_text or per_domain:
        rule["by"] = "clip_score"
    limits = Limits.of(RuleOptions(**rule))
    keys, reasons = _expected(tmp_path, where, limits)
    competing = reasons["kept"] + reasons["below_top"] + reasons["below_top_null"]
    if top is not None and of == "kept" and competing and competing == reasons["below_top_null"]:
        with pytest.raises(InputError, match="no value in any"):
            _pack(tmp_path, **rule)
        return
    assert +_pack(tmp_path, **rule) == +reasons
    assert _kept(tmp_path) == keys
