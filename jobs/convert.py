"""Published checkpoints into model folders, and back.

    pairmill convert --from albef ALBEF.pth models/albef --tokenizer bert-base-uncased
    pairmill convert --from clip ViT-B-32.pt models/clip
    pairmill convert --from albef-parts --vision deit.pth --text bert.safetensors models/start --tokenizer ...
    pairmill convert --to albef runs/albef/model albef.pth
    pairmill convert --to transformers runs/clip/model clip-hf

Strict: names that are unknown or missing and shapes that do not fit are listed, and nothing is written. Files
are read without running code of theirs. docs/checkpoints.md has the formats.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, RunError
from pipeline.summary import EXIT_DONE


def main(argv: Sequence[str]) -> int:
    """Converts one checkpoint; returns 0. Raises ConfigError (a bad command), RunError (a bad file)."""
    known = _parser().parse_args(list(argv))
    places = [Path(p) for p in known.places]
    if (known.source is None) == (known.target is None):
        raise ConfigError("convert: give either --from FORMAT IN OUT or --to FORMAT IN OUT")
    parts = (known.source or "").endswith("-parts")
    if len(places) != (1 if parts else 2):
        raise ConfigError(f"convert: give {'OUT alone' if parts else 'IN and OUT'}, not {len(places)} places")
    out = places[-1]
    if any(place.resolve() == out.resolve() for place in places[:-1]):
        raise ConfigError(f"convert: {out} is IN and OUT; give another place for OUT")
    if out.exists() and not known.overwrite:
        raise ConfigError(f"convert: {out} exists; pass --overwrite to replace it, or give another place")
    if out.is_dir() and not any((out / name).is_file() for name in ("config.json", "open_clip_config.json")):
        raise ConfigError(f"convert: {out} is a folder that holds no model, and is not replaced")
    overrides = _overrides(known.model)
    try:
        remarks = _convert(known, places, overrides, parts=parts)
    except ValueError as error:
        raise RunError(str(error)) from error
    for remark in remarks:
        print(f"{out}: {remark}")
    return EXIT_DONE


def _convert(
    known: argparse.Namespace, places: list[Path], overrides: dict[str, Any], *, parts: bool
) -> list[str]:
    # torch and the recipes are slow to import, and a bad command is told without them
    from models.published.parts import Parts, convert_parts
    from models.published.reading import Reading, convert
    from models.published.writing import write

    if known.target is not None:
        return write(places[0], places[1], known.target)
    if parts:
        return convert_parts(
            places[0],
            Parts(
                recipe=known.source.removesuffix("-parts"), vision=known.vision, text=known.text,
                tokenizer=known.tokenizer, size=known.size or "base", overrides=overrides,
                ignore=known.ignore,
            ),
        )  # fmt: skip
    return convert(
        places[0],
        places[1],
        Reading(
            source=known.source, tokenizer=known.tokenizer, size=known.size, overrides=overrides,
            ignore=known.ignore, fresh=known.fresh,
        ),
    )  # fmt: skip


def _overrides(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"convert: --model {text!r} is no JSON ({error}); such as '{{\"text_heads\": 8}}'"
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"convert: --model {text!r} holds no names and values; such as '{{\"text_heads\": 8}}'"
        )
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pairmill convert",
        description="Read a published checkpoint into a model folder, or write one in published names.",
        epilog="Formats: albef, blip, vlmo, beit, clip, open_clip, transformers; albef-parts, blip-parts.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="source", metavar="FORMAT", help="the format of IN; OUT is a model folder"
    )
    parser.add_argument(
        "--to", dest="target", metavar="FORMAT", help="the format of OUT; IN is a model folder"
    )
    parser.add_argument("places", nargs="+", metavar="IN OUT", help="what is read, what is written")
    parser.add_argument("--tokenizer", help="tokenizer folder (vocab.txt of bert-base-uncased, ...)")
    parser.add_argument("--size", help="a size of the recipe, or a .json or .yaml with the dimensions")
    parser.add_argument("--model", default="{}", help="fields of the recipe's Config, as JSON")
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="REGEX", help="published names to leave out"
    )
    parser.add_argument(
        "--fresh", action="append", default=[], metavar="REGEX", help="names of ours that may begin random"
    )
    parser.add_argument("--vision", help="of -parts: a ViT in timm's names (DeiT)")
    parser.add_argument("--text", help="of -parts: a BERT in transformers' names")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT")
    return parser
