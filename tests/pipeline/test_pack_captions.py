"""Caption policies: which texts a sample gets, how they are written, and who reads them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.cli import main
from models.draws import Draws
from models.training.captions import CaptionRule
from pipeline import rules
from pipeline.errors import ConfigError, InputError
from pipeline.settings import semantic_config
from pipeline.shards.format import sample_uid
from pipeline.stages.pack import Pack, PackConfig
from pipeline.stages.pack.captions import CaptionOptions, CaptionPolicy
from tests.pipeline.folders import crawled, make_columns, make_images, read_tar, run_here

NAN = float("nan")
FLOATS = pa.list_(pa.float32())
CAPTION_COLUMNS: dict[str, pa.DataType] = {
    "synthetic_captions": pa.list_(pa.string()),
    **dict.fromkeys(("synthetic_itm", "synthetic_clip", "synthetic_clip2"), FLOATS),
    **dict.fromkeys(("web_itm", "web_clip"), pa.float32()),
}


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows of a joined table; `key` and `caption` have defaults, what is left out is null."""
    columns = {"key": pa.string(), "caption": pa.string(), **CAPTION_COLUMNS}
    full = [{"key": f"{n:012d}", "caption": "web", **row} for n, row in enumerate(rows)]
    return pa.table({name: pa.array([row.get(name) for row in full], kind) for name, kind in columns.items()})


def chosen(rows: list[dict[str, Any]], *, seed: int = 0, **options: Any) -> list[list[str] | str]:
    """The texts of each row, or the reason why it has none."""
    policy = CaptionPolicy(CaptionOptions(**options), seed=seed)
    table = table_of(rows)
    policy.check(table.schema)
    found = policy.choose(table)
    assert found.texts is not None
    return [
        reason or [text.text for text in texts]
        for reason, texts in zip(found.reasons.to_pylist(), found.texts, strict=True)
    ]


def below(value: float) -> float:
    """The next 32-bit float below."""
    return float(np.nextafter(np.float32(value), np.float32(-1)))


def synthetic(texts: list[str], **scores: Any) -> dict[str, Any]:
    return {"synthetic_captions": texts, **{f"synthetic_{name}": values for name, values in scores.items()}}


def test_capfilt_keeps_what_the_filter_lets_pass() -> None:
    one = synthetic(["s"], itm=[0.9])
    assert chosen(
        [
            {"web_itm": 0.9, **one},
            {"web_itm": 0.1, **one},
            {"web_itm": 0.9, **synthetic(["s"], itm=[0.1])},
            {"web_itm": 0.1, **synthetic(["s"], itm=[0.1])},
            {"web_itm": 0.5, **synthetic(["s"], itm=[0.5])},  # the border passes
            {"web_itm": below(0.5), **synthetic(["s"], itm=[below(0.5)])},
            {"web_itm": None, **one},
            {"web_itm": NAN, **synthetic(["s"], itm=[NAN])},
            {},  # no row of the caption stage
            {"web_itm": 0.9, "caption": " ", **one},
            {"web_itm": 0.9, "caption": None},
            {"web_itm": 0.9, **synthetic(["web"], itm=[0.9])},  # writes what stands there
            {"web_itm": 0.9, **synthetic([" "], itm=[0.9])},
        ],
        policy="capfilt",
    ) == [
        ["web", "s"], ["s"], ["web"], "no_caption_left", ["web", "s"], "no_caption_left", ["s"],
        "no_caption_left", "no_caption_left_null", ["s"], "no_caption_left", ["web"], ["web"],
    ]  # fmt: skip


def test_capfilt_takes_the_best_synthetic_texts() -> None:
    row = {"web_itm": 0.6, **synthetic(["a", "b", "c", "c"], itm=[0.7, 0.9, 0.7, 0.95])}
    assert chosen([row], policy="capfilt") == [["web", "c"]]
    assert chosen([row], policy="capfilt", max_synthetic=3) == [["web", "c", "b", "a"]]
    tied = {"web_itm": 0.0, **synthetic(["a", "b", "c"], itm=[0.7, 0.9, 0.9])}
    assert chosen([tied], policy="capfilt", max_synthetic=2) == [["b", "c"]]  # equals as they were written
    assert chosen([row], policy="capfilt", max_synthetic=0) == [["web"]]  # the filter alone
    assert chosen([row], policy="capfilt", threshold=0.8) == [["c"]]
    # 32-bit scores against the decimal that people write
    assert chosen([{"web_itm": 0.7}], policy="capfilt", threshold=0.7) == [["web"]]
    assert chosen([{"web_itm": below(0.7)}], policy="capfilt", threshold=0.7) == ["no_caption_left"]


def test_laion_coco_asks_two_clips() -> None:
    texts = list("abcdefgh")
    first = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]  # the five best are d to h
    second = [None, None, None, 0.3, 0.9, 0.5, 0.4, 0.2]
    outside = [0.99, 0.99, 0.99, 0.3, 0.9, 0.5, 0.4, 0.2]
    assert chosen(
        [
            synthetic(texts, clip=first, clip2=second),
            synthetic(texts, clip=first, clip2=outside),  # what the first did not hand on has no part
            synthetic(texts, clip=first),
            synthetic(texts, clip=first, clip2=[None] * 8),
            synthetic(texts, clip=first, clip2=[None] * 7 + [-0.5]),
            synthetic(texts, clip=first, clip2=[None] * 3 + [0.9, NAN, 0.5, 0.4, 0.2]),
            synthetic(["a", "b"], clip=[0.5, 0.5]),  # equals: as they were written
            synthetic(["a", "b", "c"], clip=[0.5, 0.6, 0.6], clip2=[0.7, 0.7, 0.7]),  # by the first CLIP
            synthetic(["a", "b"], clip=[NAN, 0.1]),
            synthetic(["a"], clip=[NAN]),
            synthetic(["", "b"], clip=[0.9, 0.1]),
            synthetic([]),
            {"web_itm": 0.9},
            {},
        ],
        policy="laion-coco",
    ) == [
        ["e"], ["e"], ["h"], ["h"], ["h"], ["d"], ["a"], ["b"], ["b"], "no_caption_left", ["b"],
        "no_caption_left_null", "no_caption_left", "no_caption_left_null",
    ]  # fmt: skip
    assert chosen([synthetic(texts, clip=first, clip2=second)], policy="laion-coco", max_synthetic=3) == [
        ["e", "f", "g"]
    ]


def test_mix_draws_which_comes_first() -> None:
    rows = [synthetic(["s"]) for _ in range(4000)]
    for weights, share in (({}, 0.5), ({"web": 3, "synthetic": 1}, 0.75), ({"web": 1, "synthetic": 9}, 0.1)):
        found = chosen(rows, policy="mix", weights=weights)
        assert all(sorted(texts) == ["s", "web"] for texts in found)
        assert abs(sum(texts[0] == "web" for texts in found) / len(rows) - share) < 0.03
    assert found == chosen(rows, policy="mix", weights={"synthetic": 9, "web": 1})
    assert found != chosen(rows, policy="mix", weights={"synthetic": 9, "web": 1}, seed=1)
    assert chosen(rows[:1], policy="mix", weights={"web": 1}) == [["web"]]  # a source without weight
    assert chosen(rows[:1], policy="mix", weights={"web": 0, "synthetic": 2}) == [["s"]]
    odd = [{"caption": "", **synthetic(["s"])}, {}, {"caption": None}, {"caption": None, **synthetic([" "])}]
    assert chosen(odd, policy="mix") == [["s"], ["web"], "no_caption_left_null", "no_caption_left"]
    assert chosen([{}], policy="mix", weights={"synthetic": 1}) == ["no_caption_left_null"]


def test_mix_orders_synthetic_texts_by_their_best_judge() -> None:
    texts = ["a", "b", "c"]
    rows = [
        synthetic(texts),
        synthetic(texts, itm=[0.1, 0.3, 0.2]),
        synthetic(texts, itm=[0.1, 0.3, 0.2], clip=[0.1, 0.2, 0.3]),
        synthetic(texts, clip=[0.1, 0.2, 0.3], clip2=[0.5, 0.1, 0.2]),
    ]
    found = chosen(rows, policy="mix", weights={"synthetic": 1}, max_synthetic=2)
    assert found == [["a", "b"], ["b", "c"], ["c", "b"], ["a", "c"]]


scores = st.one_of(
    st.none(), st.just(NAN), st.sampled_from([0.0, 0.5, below(0.5), 1.0]), st.floats(0, 1, width=32)
)


@st.composite
def judged_rows(draw: st.DrawFn) -> dict[str, Any]:
    texts = draw(st.lists(st.sampled_from(["", " ", "web", "s", "t", "u"]), max_size=8))
    lists = {
        n: draw(st.lists(scores, min_size=len(texts), max_size=len(texts))) for n in ("itm", "clip", "clip2")
    }
    web = draw(st.sampled_from([None, "", "web"]))
    return {"caption": web, "web_itm": draw(scores), **synthetic(texts, **lists)}


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(judged_rows(), min_size=1, max_size=6),
    policy=st.sampled_from(["capfilt", "laion-coco", "mix"]),
    most=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
)
def test_whatever_the_scores_texts_are_sound(rows: list[dict], policy: str, most: int, order: Any) -> None:
    rows = [{"key": f"{n:012d}", **row} for n, row in enumerate(rows)]
    found = dict(zip((r["key"] for r in rows), chosen(rows, policy=policy, max_synthetic=most), strict=True))
    for row in rows:
        texts = found[row["key"]]
        if isinstance(texts, str):
            assert texts in ("no_caption_left", "no_caption_left_null")
            continue
        assert texts
        assert len(set(texts)) == len(texts) <= most + (policy != "laion-coco")
        assert all(text.strip() for text in texts)
        assert set(texts) <= {row["caption"], *row["synthetic_captions"]}
        if policy == "capfilt":
            passed = [
                t
                for t, s in zip(row["synthetic_captions"], row["synthetic_itm"], strict=True)
                if (s or 0) >= 0.5
            ]
            assert set(texts) - {row["caption"]} <= set(passed)
    # neither the order of the rows nor their company says anything
    shuffled = order.sample(rows, len(rows))[: max(1, len(rows) // 2)]
    again = chosen(shuffled, policy=policy, max_synthetic=most)
    assert again == [found[row["key"]] for row in shuffled]


def test_the_web_policy_leaves_the_table_alone() -> None:
    table = table_of([{"caption": "a"}, {"caption": None}]).select(["key", "caption"])
    for policy in (None, "web"):
        picker = CaptionPolicy(CaptionOptions(policy=policy), seed=0)
        picker.check(table.schema)
        found = picker.choose(table)
        assert found.reasons.null_count == 2
        assert found.written(table) is table
    assert "captions" not in semantic_config(PackConfig())  # digests of what was packed before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": "best"}, "'best' is not known; use one of web, capfilt, laion-coco, mix"),
        ({"policy": "capfilt", "threshold": 1.5}, "threshold 1.5 must be a probability"),
        ({"policy": "capfilt", "threshold": NAN}, "must be a probability"),
        ({"policy": "mix", "threshold": 0.7}, "means nothing to captions.policy 'mix'.*take capfilt"),
        ({"max_synthetic": 2}, "means nothing to captions.policy 'web'"),
        ({"policy": "capfilt", "weights": {"web": 1}}, "means nothing to captions.policy 'capfilt'"),
        ({"policy": "capfilt", "max_synthetic": -1}, "max_synthetic -1 must be at least 0"),
        ({"policy": "laion-coco", "max_synthetic": 0}, "max_synthetic 0 must be at least 1"),
        ({"policy": "mix", "weights": {"human": 1}}, "names human; the sources are web, synthetic"),
        ({"policy": "mix", "weights": {"web": -1}}, "none below 0, and one above"),
        ({"policy": "mix", "weights": {"web": 0, "synthetic": 0}}, "none below 0, and one above"),
        ({"policy": "mix", "weights": {"web": NAN}}, "none below 0, and one above"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Pack(PackConfig(captions=CaptionOptions(**options)))


def test_columns_are_checked_before_anything_runs() -> None:
    full = table_of([{}])
    for policy, column in (
        ("capfilt", "web_itm"),
        ("laion-coco", "synthetic_clip"),
        ("mix", "synthetic_captions"),
    ):
        picker = CaptionPolicy(CaptionOptions(policy=policy), seed=0)
        picker.check(full.schema)
        with pytest.raises(ConfigError, match=f"needs column '{column}'.*`pairmill caption`.*--columns"):
            picker.check(full.drop_columns([column]).schema)
    filter_alone = CaptionPolicy(CaptionOptions(policy="capfilt", max_synthetic=0), seed=0)
    filter_alone.check(full.select(["key", "caption", "web_itm"]).schema)
    taken = full.append_column("Caption_1", pa.array(["x"]))
    with pytest.raises(ConfigError, match="have caption_1 already"):
        CaptionPolicy(CaptionOptions(policy="mix"), seed=0).check(taken.schema)
    CaptionPolicy(CaptionOptions(policy="laion-coco"), seed=0).check(taken.schema)  # writes no such field


def test_captions_without_the_scores_that_are_asked_for_are_refused() -> None:
    with pytest.raises(InputError, match="synthetic_itm is null: they were made without a filter"):
        chosen([{"web_itm": None, **synthetic(["s"])}], policy="capfilt")
    with pytest.raises(InputError, match="synthetic_clip is null: they were made without a CLIP"):
        chosen([synthetic(["s"], itm=[0.9])], policy="laion-coco")
    with pytest.raises(InputError, match="2 synthetic captions and 1 values of synthetic_itm"):
        chosen([synthetic(["s", "t"], itm=[0.9])], policy="mix")


# -- the stage ---------------------------------------------------------------------------------------------

SHARDS, ROWS = 2, 12


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two image shards; in each the web's text of even rows and the synthetic ones of rows 0-5 are good."""
    base = tmp_path_factory.mktemp("captions")
    images = {
        n: [crawled(n, i) for i in range(ROWS - 1)] + [crawled(n, ROWS - 1, reason="timeout")]
        for n in range(SHARDS)
    }
    make_images(base / "images", images)
    shards: dict[int, dict[str, list]] = {}
    for n, rows in images.items():
        done = rows[:-1]
        shards[n] = {
            "key": [row["key"] for row in done],
            "synthetic_captions": [[f"first of {n} {i}", f"second of {n} {i}"] for i in range(ROWS - 1)],
            "synthetic_itm": [[0.6, 0.9] if i < 6 else [0.1, 0.2] for i in range(ROWS - 1)],
            "synthetic_clip": [[0.25, 0.2]] * (ROWS - 1),
            "synthetic_clip2": [[0.25, 0.5]] * (ROWS - 1),
            "web_itm": [0.9 if i % 2 == 0 else 0.1 for i in range(ROWS - 1)],
        }
    make_columns(base / "caption", shards, stage="caption")
    return base


def packed(
    world: Path, output: Path, *, options: CaptionOptions, **changes: Any
) -> dict[str, dict[str, bytes]]:
    config = PackConfig(
        input=str(world / "images"), columns=(str(world / "caption"),), captions=options, group=2, **changes
    )
    run_here(Pack(config), output)
    return read_tar(output / "00000000.tar")


def test_a_packed_sample_has_all_its_texts(world: Path, tmp_path: Path) -> None:
    found = packed(world, tmp_path / "out", options=CaptionOptions(policy="capfilt", max_synthetic=2))
    table = pq.read_table(tmp_path / "out/00000000.parquet")
    assert table["key"].to_pylist() == list(found)
    stats = json.loads((tmp_path / "out/00000000_stats.json").read_text())
    assert stats["dropped"] == {"timeout": SHARDS, "no_caption_left": SHARDS * 2}  # rows 7 and 9
    for row in table.to_pylist():
        shard, i = int(row["key"][:8]), int(row["key"][8:])
        members, meta = found[row["key"]], json.loads(found[row["key"]]["json"])
        web, best, next_best = (
            f"picture {i} of shard {shard}",
            f"second of {shard} {i}",
            f"first of {shard} {i}",
        )
        texts = [web] * (i % 2 == 0) + [best, next_best] * (i < 6)
        assert members["txt"].decode() == meta["caption"] == row["caption"] == texts[0]
        assert meta["caption_source"] == ("web" if i % 2 == 0 else "synthetic")
        assert meta["web_caption"] == row["web_caption"] == web
        assert meta["uid"] == row["uid"] == sample_uid(web, row["url"])
        padded = texts + [""] * (3 - len(texts))
        assert [meta[f"caption_{n}"] for n in range(3)] == [row[f"caption_{n}"] for n in range(3)] == padded
        assert "caption_3" not in meta
        assert not any(v is None or isinstance(v, list | dict) for v in meta.values())
        assert row["synthetic_captions"] == [next_best, best]  # the columns stay as they were made


def test_one_text_at_most_has_no_numbers(world: Path, tmp_path: Path) -> None:
    found = packed(world, tmp_path / "out", options=CaptionOptions(policy="laion-coco"))
    for key, members in found.items():
        meta = json.loads(members["json"])
        assert members["txt"].decode() == meta["caption"] == f"second of {int(key[:8])} {int(key[8:])}"
        assert not [name for name in meta if name.startswith("caption_") and name != "caption_source"]


def test_policies_and_bytes(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`web` gives the bytes that no policy gives; a preset's policy those of the option; twice the same."""
    preset = rules.Preset(name="best-text", about="", table=(), captions="laion-coco")
    monkeypatch.setitem(rules.PRESETS, "best-text", preset)
    made = {
        "none": (CaptionOptions(), {}),
        "web": (CaptionOptions(policy="web"), {}),
        "asked": (CaptionOptions(policy="laion-coco"), {}),
        "preset": (CaptionOptions(), {"preset": "best-text"}),
        "over preset": (CaptionOptions(policy="web"), {"preset": "best-text"}),
        "mix": (CaptionOptions(policy="mix"), {}),
        "mix again": (CaptionOptions(policy="mix"), {}),
    }
    for name, (options, changes) in made.items():
        packed(world, tmp_path / name, options=options, **changes)
    data = {name: (tmp_path / name / "00000000.tar").read_bytes() for name in made}
    assert data["none"] == data["web"] == data["over preset"]
    assert data["asked"] == data["preset"] != data["web"]
    assert data["mix"] == data["mix again"] != data["web"]
    assert "caption_source" not in pq.read_schema(tmp_path / "web/00000000.parquet").names


def test_another_policy_of_a_preset_is_another_input(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PackConfig(input=str(world / "images"), columns=(str(world / "caption"),), preset="best-text")
    marks = set()
    for captions in (None, "laion-coco", "mix"):
        preset = rules.Preset(name="best-text", about="", table=(), captions=captions)
        monkeypatch.setitem(rules.PRESETS, "best-text", preset)
        marks |= {i.fingerprint for i in Pack(config).plan([])[0].inputs if i.url.startswith("preset:")}
    assert len(marks) == 3


def test_the_command_line(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pack", "--input", str(world / "images"), "--output", str(tmp_path / "out")]
    assert main([*words, "--captions.policy", "capfilt"]) == 2
    assert (
        "needs column 'web_itm', which is not there; make it with `pairmill caption`"
        in capsys.readouterr().err
    )
    assert main([*words, "--captions.policy", "capflit"]) == 2
    assert main([*words, "--captions.policy", "mix", "--captions.weights", '{"webb": 1}']) == 2
    assert "names webb; the sources are web, synthetic" in capsys.readouterr().err
    words += ["--columns", f"[{world / 'caption'}]", "--captions.policy", "mix"]
    assert main([*words, "--captions.weights", '{"web": 0.5, "synthetic": 0.5}', "--workers", "1"]) == 0
    sources = Counter(pq.read_table(tmp_path / "out/00000000.parquet")["caption_source"].to_pylist())
    assert sources.keys() == {"web", "synthetic"}


# -- readers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples with one, two and three texts."""
    folder = tmp_path_factory.mktemp("packed") / "shards"
    packed(world, folder, options=CaptionOptions(policy="capfilt", max_synthetic=2))
    return folder


def test_our_trainer_draws_every_text_equally(shards: Path) -> None:
    def draw(sample: dict, step: int) -> str:
        return CaptionRule().choose(sample["txt"].decode(), json.loads(sample["json"]), Draws(1, step))

    check_draws(list(read_tar(shards / "00000000.tar").values()), draw)


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_datasets_loses_no_text(shards: Path, tmp_path: Path, streaming: bool) -> None:
    """Its schema comes from the first five samples: a field that is missing there would be lost silently."""
    import datasets

    dataset = datasets.load_dataset(
        "webdataset",
        data_files=str(shards / "*.tar"),
        split="train",
        streaming=streaming,
        cache_dir=str(tmp_path),
    )
    found = {sample["__key__"].rpartition("/")[2]: sample["json"] for sample in dataset}
    expected = {key: json.loads(m["json"]) for key, m in read_tar(shards / "00000000.tar").items()}
    assert {len([n for n in range(3) if meta[f"caption_{n}"]]) for meta in expected.values()} == {1, 2, 3}
    assert found == expected


def test_open_clip(shards: Path) -> None:
    """Its releases up to 3.3 read `.txt`, the first choice. Later ones draw among fields of the json, with
    `--json-text-key "caption_0;caption_1;caption_2" --json-text-key-probs 1 1 1`."""
    import open_clip_train.data
    import webdataset

    samples = list(webdataset.WebDataset(str(shards / "00000000.tar"), shardshuffle=False))
    assert samples
    for sample in samples:
        assert open_clip_train.data.filter_no_caption_or_no_image(sample)
        assert sample["txt"].decode() == json.loads(sample["json"])["caption_0"]
    if hasattr(open_clip_train.data, "JsonCaptionExtractor"):
        names = ["caption_0", "caption_1", "caption_2"]
        extract = open_clip_train.data.JsonCaptionExtractor(";".join(names), sample_probs=[1, 1, 1])
        check_draws(samples, lambda sample, step: extract(sample["json"]))


def check_draws(samples: list[dict], draw: Callable[[dict, int], str], *, draws: int = 1200) -> None:
    """Every text of a sample is drawn equally often."""
    for sample in samples:
        meta = json.loads(sample["json"])
        texts = [t for n in range(3) if (t := meta[f"caption_{n}"])]
        found = Counter(draw(sample, step) for step in range(draws))
        assert found.keys() == set(texts)
        assert all(abs(n / draws - 1 / len(texts)) < 0.05 for n in found.values())
