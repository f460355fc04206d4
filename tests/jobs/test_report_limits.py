"""What pack chose among all samples together is told by the report as pack counted it."""

from __future__ import annotations

from pathlib import Path

from jobs.report import ReportConfig
from jobs.reporting.gather import gather
from pipeline.shards.format import sample_key
from pipeline.stages.pack import PackConfig, pack_stages
from tests.pipeline.folders import crawled, make_columns, make_images, run_here


def test_pictures_below_the_best_share_are_not_called_kept(tmp_path: Path) -> None:
    texts = ["a dog", "a dog", "a dog", "a cat", "a bird", "a fish"]
    images = make_images(tmp_path / "images", {0: [crawled(0, n, caption=t) for n, t in enumerate(texts)]})
    keys = [sample_key(0, n) for n in range(6)]
    clip = make_columns(
        tmp_path / "clip", {0: {"key": keys, "clip_score": [0.9, 0.8, 0.7, 0.6, 0.1, float("nan")]}}
    )
    shards = str(tmp_path / "shards")
    config = PackConfig(
        input=str(images), columns=(str(clip),), where="clip_score > 0.05 OR isnan(clip_score)",
        top="50%", by="clip_score", max_per_text=2,
    )  # fmt: skip
    for stage, output in pack_stages(config, shards):
        packed = run_here(stage, output)
    assert packed.to_json()["dropped"] == {"below_top": 2, "below_top_null": 1, "max_per_text": 1}
    facts = gather(
        ReportConfig(images=str(images), columns=[str(clip)], shards=shards, output=str(tmp_path / "r.html"))
    )
    assert facts.rows is not None
    assert dict(facts.rows.verdicts) == {
        "kept": 2,
        "below_top": 2,
        "below_top_null": 1,
        "max_per_text": 1,
    }
    assert not facts.notes
