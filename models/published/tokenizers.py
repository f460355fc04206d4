"""OpenAI's byte-pair vocabulary, which the open_clip package carries, as a tokenizer folder.

49,152 merges of bytes (arXiv 2103.00020, after Sennrich et al.), ids in the order of the file: the 256 bytes,
the same as ends of words, the merges, then start and end of text. Padding is the end of text, as transformers
has it; CLIP never looks behind it.
"""

from __future__ import annotations

import gzip
from pathlib import Path

from models.tokenizer import Tokenizer, load_tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY = 49408


def tokenizer_for(recipe: str, folder: str | Path | None, *, vocab_size: int) -> Tokenizer:
    """The tokenizer of a folder; without one OpenAI's, where it fits.

    Raises:
        ValueError: no folder, and none that is known without.
    """
    if folder is not None:
        return load_tokenizer(folder)
    if recipe == "clip" and vocab_size == VOCABULARY:
        return clip_tokenizer()
    raise ValueError(
        f"a {recipe} of {vocab_size} tokens needs its tokenizer: give the folder with --tokenizer (vocab.txt "
        "of bert-base-uncased for the published ALBEF, BLIP and VLMo)"
    )


def clip_tokenizer() -> Tokenizer:
    """OpenAI's, from the vocabulary file in the open_clip package."""
    import open_clip.tokenizer
    from transformers import CLIPTokenizer

    with gzip.open(open_clip.tokenizer.default_bpe(), "rt", encoding="utf-8") as stream:
        lines = stream.read().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : VOCABULARY - 2 - 512 + 1]]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), START, END]
    backend = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges)  # type: ignore[arg-type]
    tokenizer = Tokenizer(backend)
    assert tokenizer.vocab_size == VOCABULARY, tokenizer.vocab_size
    return tokenizer
