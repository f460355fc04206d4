"""Tokenizers: a WordPiece trained from captions, or any tokenizer folder, behind one small class.

    train_wordpiece(captions, vocab_size=4000, folder="runs/tokenizer")
    tokenizer = load_tokenizer("runs/tokenizer")
    ids_BT, mask_BT = tokenizer.encode(["a red car"], max_length=32)

A folder is what `save_pretrained` of Hugging Face writes; nothing is looked up on the network.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
#: tokens that `fit` appends to a vocabulary for the recipes whose config has the field (BLIP), in this order
ADDED_TOKENS = {"dec_id": "[DEC]", "enc_id": "[ENC]"}
_DROPPED = re.compile(r"[,.'!?\"()*#:;~]")

ConfigT = TypeVar("ConfigT")


def clean_caption(caption: str, *, max_words: int = 30) -> str:
    """A caption as ALBEF reads it: lower case, punctuation dropped, joiners as spaces, cut by words."""
    text = _DROPPED.sub("", caption.lower())
    text = text.replace("-", " ").replace("/", " ").replace("<person>", "person")
    return " ".join(text.split()[:max_words])


def clean_all(captions: Iterable[str], max_words: int) -> Iterable[str]:
    """Each caption cleaned, or as it is where `max_words` is 0."""
    return (clean_caption(c, max_words=max_words) for c in captions) if max_words else captions


class Tokenizer:
    """A Hugging Face tokenizer reduced to what training and inference need.

    clean_words: texts are cleaned as captions of ALBEF and cut at so many words before all else; 0: not.
    Ids a vocabulary lacks (CLIP's has no mask) are None.
    """

    def __init__(self, backend: Any, *, clean_words: int = 0) -> None:
        if backend.pad_token_id is None:
            raise ValueError(
                f"tokenizer {backend.name_or_path!r} has no padding token; add one and save it again"
            )
        self.backend = backend
        self.clean_words = clean_words

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included: the rows an embedding needs."""
        return len(self.backend)

    @property
    def pad_id(self) -> int:
        return self.backend.pad_token_id

    @property
    def cls_id(self) -> int | None:
        """The token that opens a text."""
        return _first(self.backend.cls_token_id, self.backend.bos_token_id)

    @property
    def sep_id(self) -> int | None:
        """The token that closes a text."""
        return _first(self.backend.sep_token_id, self.backend.eos_token_id)

    @property
    def mask_id(self) -> int | None:
        return self.backend.mask_token_id

    @property
    def special_ids(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.backend.all_special_ids)))

    def continues(self) -> Tensor:
        """bool [vocab_size]: WordPiece's `##` pieces, which continue a word. Another kind of vocabulary has
        none: each of its tokens counts as a word."""
        return torch.tensor([t.startswith("##") for t in self.tokens(list(range(self.vocab_size)))])

    def encode(self, texts: list[str], max_length: int, *, pad_to_max: bool = False) -> tuple[Tensor, Tensor]:
        """Ids and mask, int64 [B, T], with the opening and closing tokens.

        Longer texts are cut, the closing token kept; T is the longest text, or max_length on request.
        """
        out = self.backend(
            list(clean_all(texts, self.clean_words)),
            max_length=max_length,
            truncation=True,
            padding="max_length" if pad_to_max else "longest",
            return_token_type_ids=False,
        )
        return torch.tensor(out["input_ids"]), torch.tensor(out["attention_mask"])

    def decode(self, ids: list[int] | Tensor, *, skip_special: bool = True) -> str:
        return self.backend.decode(ids, skip_special_tokens=skip_special)

    def tokens(self, ids: list[int]) -> list[str]:
        """The vocabulary entry of each id."""
        return self.backend.convert_ids_to_tokens(ids)

    def save(self, folder: str | Path) -> None:
        """Writes a folder that `load_tokenizer` and transformers read."""
        self.backend.save_pretrained(str(folder))

    def fit(self, config: ConfigT) -> ConfigT:
        """A recipe's config with this vocabulary: vocab_size and the special ids that the config has.

        Appends those of ADDED_TOKENS that the config has and the vocabulary lacks: `save` then writes them,
        so that the folder of an exported model holds them. Encoding stays as it was. A config with a
        `prompt` gets its `prompt_ids`.

        Raises ValueError when the config wants an id that the vocabulary lacks.
        """
        asked = {f.name for f in fields(config)}  # type: ignore[arg-type]
        values: dict[str, Any] = {n: self._added_id(token) for n, token in ADDED_TOKENS.items() if n in asked}
        names = asked & {"vocab_size", "pad_id", "cls_id", "sep_id", "mask_id"}
        values |= {name: getattr(self, name) for name in sorted(names)}
        if {"prompt", "prompt_ids"} <= asked:
            prompt = config.prompt  # type: ignore[attr-defined]
            values["prompt_ids"] = tuple(self.backend(prompt, add_special_tokens=False)["input_ids"])
        missing = [name for name, value in values.items() if value is None]
        if missing:
            raise ValueError(
                f"the tokenizer has no {', '.join(missing)}, which this recipe needs; use another one"
            )
        return replace(config, **values)  # type: ignore[type-var]

    def _added_id(self, token: str) -> int:
        """The id of a special token, appended to the vocabulary where it is missing."""
        if token not in self.backend.get_vocab():
            # by place, for its name differs between versions: False keeps those added before
            self.backend.add_special_tokens({"additional_special_tokens": [token]}, False)
        return self.backend.convert_tokens_to_ids(token)


def load_tokenizer(folder: str | Path, *, clean_words: int = 0) -> Tokenizer:
    """Any tokenizer folder; raises ValueError when `folder` is not one."""
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no tokenizer folder; give a folder with tokenizer.json or vocab.txt")
    from transformers import AutoTokenizer  # slow to import, and only needed here

    try:
        backend = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        return Tokenizer(backend, clean_words=clean_words)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} holds no readable tokenizer ({error})") from error


def train_wordpiece(
    captions: Iterable[str], *, vocab_size: int, folder: str | Path, max_alphabet: int = 1000
) -> Tokenizer:
    """Trains a lower-casing WordPiece as BERT's and saves it in `folder`.

    [PAD] is 0, then [UNK], [CLS], [SEP], [MASK]. The same captions give the same vocabulary, id by id:
    the library numbers the pieces of its alphabet in the order of a hash table, and breaks ties by these
    numbers, so the alphabet is counted and numbered here. Of the alphabet the `max_alphabet` most frequent
    characters are kept. Raises ValueError when no caption holds a word.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from tokenizers.trainers import WordPieceTrainer
    from transformers import PreTrainedTokenizerFast

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for caption in captions:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)))
    if not words:
        raise ValueError("no caption holds a word; give the captions that the tokenizer shall be trained on")
    alphabet = _alphabet(words, limit=min(max_alphabet, (vocab_size - len(SPECIAL_TOKENS)) // 2))
    numbered = [*SPECIAL_TOKENS, *alphabet, *(f"##{letter}" for letter in alphabet)]

    learner = Backend(WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = WordPieceTrainer(
        vocab_size=max(vocab_size, len(numbered)),
        special_tokens=numbered,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator(_repeated(words), trainer)

    backend = Backend(WordPiece(vocab=learner.get_vocab(), unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizer, splitter
    backend.decoder = decoders.WordPiece()
    cls, sep = SPECIAL_TOKENS.index("[CLS]"), SPECIAL_TOKENS.index("[SEP]")
    backend.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    tokenizer = Tokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=backend,
            pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
        )
    )  # fmt: skip
    tokenizer.save(folder)
    return tokenizer


def _alphabet(words: Counter[str], *, limit: int) -> list[str]:
    """The most frequent characters, sorted; ties go to the lower code point."""
    letters: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word:
            letters[letter] += count
    ranked = sorted(letters, key=lambda letter: (-letters[letter], letter))
    return sorted(ranked[: max(1, limit)])


def _repeated(words: Counter[str], *, line: int = 1000) -> Iterable[str]:
    """The counted words again, in sorted order, as lines of up to `line` words."""
    for word in sorted(words):
        for start in range(0, words[word], line):
            yield " ".join([word] * min(line, words[word] - start))


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
