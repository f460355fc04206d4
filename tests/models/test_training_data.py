"""Loading: the same batches whatever ranks, workers and stops; captions, mixtures; what is damaged."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from models.batch import Batch
from models.exported import ExportedConfig, read_exported_tokenizer, write_exported
from models.images import ImageTransform, decode
from models.tokenizer import clean_all, train_wordpiece
from models.training import catalogue, index
from models.training.captions import CaptionRule, NoCaptionError
from models.training.catalogue import TrainingData, open_data
from models.training.config import CLIP_MEAN, CLIP_STD, MixEntry, TrainConfig, check_data, from_dict, to_dict
from models.training.data import LoadedBatch, PairDataset, RankSampler, training_loader
from models.training.index import IndexFolder
from models.training.stopping import LocalError, TrainingError
from models.training.table import build_table, find_shards
from tests.models.toy_shards import add, draw_scene, write_shards

TRANSFORM = ImageTransform(
    size=16, mean=CLIP_MEAN, std=CLIP_STD, crop_scale=(0.4, 1.0), flip=True, rand_ops=2, rand_magnitude=5
)


class LetterTokenizer:
    """One id per letter."""

    def encode(self, texts: list[str], max_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [[ord(c) for c in t[:max_length]] + [0] * (max_length - len(t)) for t in texts]
        ids = torch.tensor(rows)
        return ids, (ids > 0).long()


def letters(batch: Batch) -> list[str]:
    return ["".join(chr(i) for i in row if i) for row in batch.text_ids_BT.tolist()]


def configure(shards: object = "", **options: object) -> TrainConfig:
    return TrainConfig(
        **{"shards": shards, "output": "", "batch_size": 12, "steps": 1, "seed": 5, **options}  # type: ignore
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), shards=3, samples=20)


@pytest.fixture(scope="module")
def data(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return open_data(configure(str(shards), window=2), tmp_path_factory.mktemp("run"))


def load(
    data: TrainingData,
    *,
    first: int,
    steps: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    cut: int = 1,
) -> list[LoadedBatch]:
    sampler = RankSampler(data.plan, first, steps, rank, world, cut)
    dataset = PairDataset(data.reader, TRANSFORM, LetterTokenizer(), max_text_tokens=40, seed=5)
    return list(training_loader(dataset, sampler, workers=workers, pin=False))


def joined(batches: list[Batch], name: str) -> torch.Tensor:
    return torch.cat([getattr(b, name) for b in batches])


@pytest.mark.parametrize(
    ("world", "workers", "cut", "stop"),
    [(1, 2, 1, 3), (1, 0, 3, 1), (2, 0, 1, 4), (2, 2, 3, 2), (3, 1, 2, 5), (4, 0, 1, 1), (4, 3, 3, 3)],
)
def test_global_batches_are_the_same_whatever_ranks_workers_cuts_and_stops(
    data: TrainingData, world: int, workers: int, cut: int, stop: int
) -> None:
    """Nine workers and twelve readers of three shards hang no more than one."""
    whole = [loaded.batch for loaded in load(data, first=0, steps=6)]
    ranks = [
        load(data, first=0, steps=stop, rank=r, world=world, workers=workers, cut=cut)
        + load(data, first=stop, steps=6, rank=r, world=world, workers=workers, cut=cut)
        for r in range(world)
    ]
    parts = [ranks[r][micro].batch for micro in range(6 * cut) for r in range(world)]
    assert all(len(part) == 12 // world // cut for part in parts)
    for name in ("image_BCHW", "text_ids_BT", "image_id_B", "row_B"):
        assert torch.equal(joined(parts, name), joined(whole, name)), name
    assert torch.equal(joined(parts, "row_B"), torch.arange(12).repeat(6))


def test_an_epoch_is_every_sample_once_augmented_anew_in_the_next(data: TrainingData) -> None:
    batches = [loaded.batch for loaded in load(data, first=0, steps=10)]
    epochs = [batches[:5], batches[5:]]
    first, second = (
        dict(zip(joined(e, "image_id_B").tolist(), joined(e, "image_BCHW"), strict=True)) for e in epochs
    )
    assert len(first) == 60
    assert first.keys() == second.keys()
    assert sum(torch.equal(first[name], second[name]) for name in first) < 10


def test_pictures_travel_as_bytes_and_are_normalised_on_arrival(data: TrainingData) -> None:
    [loaded] = load(data, first=0, steps=1)
    assert loaded.batch.image_BCHW is not None
    assert loaded.batch.image_BCHW.dtype == torch.uint8
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    expected = (loaded.batch.image_BCHW.double() / 255 - mean) / std
    assert torch.allclose(loaded.to("cpu").pictures.double(), expected, atol=1e-6)
    assert loaded.to("cpu", image_dtype=torch.bfloat16).pictures.dtype == torch.bfloat16


def test_one_read_gives_what_the_members_hold(shards: Path) -> None:
    table = build_table(find_shards(str(shards)))
    sample = table.read(25)
    with tarfile.open(shards / "00000001.tar") as tar:
        assert sample.image == tar.extractfile("000000010005.jpg").read()
        assert sample.caption == tar.extractfile("000000010005.txt").read().decode()
    assert sample.meta["key"] == sample.key == table.keys[25] == "000000010005"
    assert 0 <= sample.image_id < 2**63


def write(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for suffix, content in members.items():
                add(tar, f"{key}.{suffix}", content)
    return path


@pytest.fixture(scope="module")
def picture() -> bytes:
    return draw_scene(np.random.default_rng(0), 32)[0]


def test_samples_without_a_pair_are_counted_and_left_out(tmp_path: Path, picture: bytes) -> None:
    members = {"a": {"jpg": picture, "txt": b"a"}, "b": {"txt": b"b"}, "c": {"jpg": picture}}
    write(tmp_path / "00000000.tar", {**members, "d": {"jpg": picture, "txt": b""}})
    table = build_table(find_shards(str(tmp_path)))
    assert table.keys == ["a"]
    assert table.skipped == {"no_image": 1, "no_caption": 2}
    data = open_data(configure(str(tmp_path), batch_size=1), tmp_path / "run")
    assert len(data) == 1
    assert list(data.captions(10)) == ["a"]


@pytest.mark.parametrize("sizes", [False, True])
def test_an_unreadable_sample_is_replaced_by_the_next_and_named(
    tmp_path: Path, picture: bytes, sizes: bool
) -> None:
    """Counted from a sizes.json, a sample without a picture has a place in the order, which another takes."""
    samples = {
        "a": {"jpg": picture[:200], "txt": b"a"},
        "b": {"txt": b"b"},
        "c": {"jpg": picture, "txt": b"\xff"},
        "d": {"jpg": picture, "txt": b"d", "json": b"{"},
        "e": {"jpg": picture, "txt": b"e"},
    }
    write(tmp_path / "00000000.tar", samples)
    write(tmp_path / "00000001.tar", {"f": {"jpg": picture, "txt": b"f"}})
    if sizes:
        (tmp_path / "sizes.json").write_text('{"00000000.tar": 5, "00000001.tar": 1}')
    data = open_data(configure(str(tmp_path), batch_size=3), tmp_path / "run")
    assert len(data) == (6 if sizes else 5)
    loaded = load(data, first=0, steps=2)
    again = load(data, first=0, steps=2, workers=1)
    assert [letters(b.batch) for b in loaded] == [letters(b.batch) for b in again]
    assert {text for b in loaded for text in letters(b.batch)} == {"e", "f"}
    corrupt = {(Path(shard).name, key) for b in loaded for shard, key, _ in b.corrupt}
    assert corrupt == {("00000000.tar", key) for key in "acd"}


def test_too_many_unreadable_samples_and_a_wrong_count_are_errors(tmp_path: Path, picture: bytes) -> None:
    write(tmp_path / "00000000.tar", {str(n): {"jpg": picture[:99], "txt": b"a"} for n in range(20)})
    data = open_data(configure(str(tmp_path), batch_size=1), tmp_path / "run")
    with pytest.raises(LocalError, match="16 samples in a row"):
        load(data, first=0, steps=1)
    (tmp_path / "sizes.json").write_text('{"00000000.tar": 21}')
    data = open_data(configure(str(tmp_path), batch_size=1), tmp_path / "other")
    with pytest.raises(LocalError, match=r"holds 20 samples \(20 of them usable\), but 21"):
        load(data, first=0, steps=1, workers=1)


@pytest.mark.parametrize("keep", [0, 5000])
def test_a_damaged_shard_is_an_error(tmp_path: Path, keep: int) -> None:
    path = write_shards(tmp_path, shards=1) / "00000000.tar"
    path.write_bytes(path.read_bytes()[:keep] or b"\x01" * 4000)
    with pytest.raises(TrainingError, match=r"00000000\.tar"):
        build_table([str(path)])
    with pytest.raises(TrainingError, match=r"00000000\.tar"):
        open_data(configure(str(tmp_path)), tmp_path / "run")


def test_no_shards_or_too_few_samples_are_errors(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.tar files"):
        find_shards(str(tmp_path))
    with pytest.raises(ValueError, match="batch_size 61"):
        open_data(configure(str(shards), batch_size=61), tmp_path)


def test_headers_are_read_once_for_all_processes_and_counts_once_for_the_run(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = index.index_tar
    monkeypatch.setattr(index, "index_tar", lambda url: (read.append(url), real(url))[1])
    for start in range(2):
        data = open_data(configure(str(shards)), tmp_path)
        load(data, first=0, steps=5)
        assert len(read) == 3, f"start {start}"
    counts = json.loads((tmp_path / "counts.json").read_text())["datasets"][0]
    assert counts["samples"] == [20, 20, 20]
    # a process that does not count reads what the main one wrote
    assert len(open_data(configure(str(shards)), tmp_path, is_main=False)) == 60
    # a shard that is written anew is read anew; of many files the oldest go
    path = write_shards(tmp_path / "own", shards=1, samples=4) / "00000000.tar"
    folder = IndexFolder(tmp_path / "few")
    monkeypatch.setattr(index, "KEPT_FILES", 2)
    for samples in (4, 5, 6, 7):
        write_shards(tmp_path / "own", shards=1, samples=samples, seed=samples)
        assert len(folder.get(str(path), kind="pairs", needs="txt")) == samples
    assert len(list((tmp_path / "few").glob("*.npz"))) < 4


def test_remote_shards_are_read_by_ranges_and_their_keys_stay_out_of_the_run(
    shards: Path, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    remote = open_data(configure("memory://bucket", window=2), tmp_path)
    reads: list[int] = []
    real = MemoryFileSystem.cat_file
    monkeypatch.setattr(
        MemoryFileSystem, "cat_file", lambda *a, **k: (reads.append(k["end"] - k["start"]), real(*a, **k))[1]
    )
    [loaded], [local] = load(remote, first=2, steps=3), load(data, first=2, steps=3)
    assert torch.equal(loaded.batch.pictures, local.batch.pictures)
    assert len(reads) == 12
    assert max(reads) < 8000  # a sample, not a shard
    monkeypatch.setattr(catalogue, "find_shards", lambda shards, kind: ["s3://user:key@host/a.tar?sig=1"])
    monkeypatch.setattr(catalogue, "count_samples", lambda *a, **k: ([20], {}))
    secret = open_data(configure("s3://user:key@host"), tmp_path / "secret")
    assert secret.reader.sets[0].urls == ["s3://user:key@host/a.tar?sig=1"]
    assert "key" not in (tmp_path / "secret/counts.json").read_text()


def test_captions_are_drawn_by_weights_among_those_that_a_sample_has(tmp_path: Path, picture: bytes) -> None:
    def draw(rule: CaptionRule, meta: dict, text: str = "txt") -> list[str]:
        from models.draws import Draws

        return [rule.choose(text, meta, Draws(1, n)) for n in range(300)]

    several = {"caption_0": "a", "caption_1": "b", "caption_2": "c", "caption_4": "unreachable"}
    drawn = draw(CaptionRule(), several)
    assert set(drawn) == {"a", "b", "c"}
    assert 70 < drawn.count("b") < 130
    drawn = draw(CaptionRule(weights=(3.0, 1.0, 0.0)), several)
    assert 195 < drawn.count("a") < 255
    assert drawn.count("c") == 0
    assert set(draw(CaptionRule(), {"caption": "other"})) == {"txt"}
    assert set(draw(CaptionRule(weights=(0.0, 1.0)), {})) == {"txt"}
    both = CaptionRule(("caption", "synthetic_caption"))
    assert set(draw(both, {"caption": "x", "synthetic_caption": "y"})) == {"x", "y"}
    assert set(draw(both, {"caption": " ", "synthetic_caption": "y"})) == {"y"}
    assert set(draw(CaptionRule(("txt", "synthetic_caption")), {"synthetic_caption": "y"})) == {"txt", "y"}
    with pytest.raises(NoCaptionError, match="caption, synthetic_caption"):
        draw(both, {"url": "u", "caption": 7})

    meta = {"caption": "web", "synthetic_caption": "made"}
    samples = {str(n): {"jpg": picture, "txt": b"web", "json": json.dumps(meta).encode()} for n in range(12)}
    write(tmp_path / "00000000.tar", samples)
    config = configure(str(tmp_path), captions=["caption", "synthetic_caption"])
    data = open_data(config, tmp_path / "run")
    whole = [letters(b.batch) for b in load(data, first=0, steps=3)]
    assert {text for batch in whole for text in batch} == {"web", "made"}
    halves = [load(data, first=0, steps=3, rank=r, world=2, workers=r) for r in range(2)]
    assert [letters(a.batch) + letters(b.batch) for a, b in zip(*halves, strict=True)] == whole
    assert sorted(data.captions(100)) == ["made"] * 12 + ["web"] * 12


def test_texts_are_cleaned_in_training_and_wherever_the_model_is_used(tmp_path: Path) -> None:
    config = ExportedConfig(
        recipe="clip", size="tiny", model={}, image_mean=CLIP_MEAN, image_std=CLIP_STD, max_text_tokens=9,
        training={}, clean_captions=4,
    )  # fmt: skip
    learned = train_wordpiece(["a red circle on the left"], vocab_size=60, folder=tmp_path / "words")
    write_exported(tmp_path / "model", model=torch.nn.Linear(1, 1), config=config, tokenizer=learned)
    cleaning = read_exported_tokenizer(tmp_path / "model")
    messy, clean = ["A red, CIRCLE -- on the left!"], ["a red circle on"]
    assert torch.equal(cleaning.encode(messy, 20)[0], learned.encode(clean, 20)[0])
    assert not torch.equal(learned.encode(messy, 20)[0], learned.encode(clean, 20)[0])
    assert list(clean_all(messy, 4)) == clean
    assert list(clean_all(messy, 0)) == messy


def test_a_mixture_of_pairs_and_texts(tmp_path: Path, shards: Path, picture: bytes) -> None:
    """Texts come from lines of a `.txt`, and from samples without (or in spite of) pictures."""
    (tmp_path / "lines.txt").write_bytes(b"first line\r\n\n  \nzweite Zeile\nlast")
    write(tmp_path / "t.tar", {"a": {"txt": b"alone"}, "b": {"txt": b"shown", "jpg": picture}})
    mix = [
        MixEntry(shards=str(shards), weight=2),
        MixEntry(shards=[str(tmp_path / "lines.txt"), str(tmp_path / "t.tar")], weight=1, kind="texts"),
    ]
    config = configure(mix=mix, batch_size=4)
    check_data(config)
    assert from_dict(TrainConfig, to_dict(config)) == config
    data = open_data(config, tmp_path / "run")
    loaded = load(data, first=0, steps=9)
    texts = [b.batch for b in loaded if b.batch.image_BCHW is None]
    assert len(texts) == 3
    assert {t for b in texts for t in letters(b)} == {"first line", "zweite Zeile", "last", "alone", "shown"}
    assert all(len(set(b.image_id_B.tolist())) == 4 for b in texts)
    assert texts[0].to("cpu").image_BCHW is None
    assert all("on the" in t for b in loaded if b.batch.image_BCHW is not None for t in letters(b.batch))
    assert set(data.captions(1000)) >= {"first line", "alone"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shards": ""}, "either shards"),
        ({"mix": [MixEntry(shards="x")]}, "either shards"),
        ({"shards": "", "mix": [MixEntry(shards="x", weight=0)]}, "weight 0"),
        ({"shards": "", "mix": [MixEntry(shards="x", kind="vqa")]}, "kind 'vqa'"),
        ({"captions": ["a", "b"], "caption_weights": [1.0]}, "one for each"),
        ({"caption_weights": [0.0]}, "none below 0"),
        ({"window": 0}, "window 0"),
        ({"clean_captions": -1}, "clean_captions"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_data(configure(**{"shards": "s", **options}))
    check_data(configure("s"))
    augment = replace(configure("s").augment, rand_magnitude=11)
    with pytest.raises(ValueError, match="rand_magnitude 11"):
        check_data(configure("s", augment=augment))


def test_evaluation_sees_the_whole_picture(picture: bytes) -> None:
    plain = ImageTransform(size=16, mean=CLIP_MEAN, std=CLIP_STD)
    pixels = plain(decode(picture))
    assert pixels.shape == (3, 16, 16)
    assert torch.equal(pixels, replace(plain, crop_scale=(0.2, 1.0), flip=True, rand_ops=2)(decode(picture)))
