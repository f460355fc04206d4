"""A recipe's Config for weights: read from their shapes, completed by a size, a file and overrides.

    --size base                 one of the recipe's sizes: what shapes do not tell, such as heads
    --size albef.json           our Config's fields, or a `config` block in the names of the reference
    --model '{"text_heads": 8}' single fields

A named size gives the architecture; picture size, vocabulary, positions and queue are those of the weights.
What a file or an override says must agree with the shapes in everything that shapes tell.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from models.published.formats import HEAD_WIDTH, Format, Shapes
from models.recipes import RECIPES
from models.tokenizer import Tokenizer

#: what a published model may have otherwise than a named size
OWN = ("image_size", "vocab_size", "text_positions", "max_text_length", "queue_size")
SPECIAL_IDS = {
    "pad": "pad_id", "cls": "cls_id", "sep": "sep_id", "mask": "mask_id", "dec_bos": "dec_id", "enc": "enc_id"
}  # fmt: skip


def config_of(
    known: Format,
    shapes: Shapes,
    tokenizer: Tokenizer,
    *,
    size: str | None = None,
    beside: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Any, list[str]]:
    """The Config, and remarks on what was assumed; `beside` is what a configuration beside the weights says.

    Raises:
        ValueError: unknown size or field; a size, override or tokenizer that the shapes contradict.
    """
    kind = RECIPES[known.recipe].Config
    valid = {f.name for f in dataclasses.fields(kind)}
    overrides = dict(overrides or {})
    if unknown := sorted(overrides.keys() - valid):
        raise ValueError(
            f"model: {known.recipe} has no {', '.join(unknown)}; valid: {', '.join(sorted(valid))}"
        )
    told = {name: value for name, value in known.infer(shapes).items() if name in valid}
    named, said, ids = _sized(known, size, valid)
    said = {**(beside or {}), **said, **overrides}
    against = [
        f"{name} {value} by {'--model' if name in overrides else '--size'}, {told[name]} by the shapes"
        for name, value in ({n: v for n, v in named.items() if n not in OWN and n not in said} | said).items()
        if name in told and told[name] != value
    ]
    if against:
        raise ValueError(f"the weights have other dimensions: {'; '.join(against)}")
    guessed = {h: max(1, told[w] // HEAD_WIDTH) for h, w in known.heads.items() if w in told}
    missing = [h for h in guessed if h not in named and h not in said and h not in told]
    remarks = [
        f"{name} {guessed[name]} assumed (width/{HEAD_WIDTH}; shapes do not tell heads); "
        f"`--model '{{\"{name}\": N}}'` or --size says otherwise"
        for name in missing
    ]
    base = tokenizer.fit(kind())
    values = {**guessed, **known.changes, **named, **told, **said}
    if "max_text_length" not in told and "text_positions" in told:
        values["max_text_length"] = min(
            values.get("max_text_length", base.max_text_length), told["text_positions"]
        )
    rows = told.get("vocab_size", base.vocab_size)
    if base.vocab_size != rows:
        raise ValueError(
            f"the tokenizer has {base.vocab_size} tokens, the weights {rows}; give the tokenizer folder that "
            "the checkpoint was trained with"
        )
    fixed = {"vocab_size", *SPECIAL_IDS.values(), "prompt_ids"}
    changes = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items() if n not in fixed}
    config = tokenizer.fit(dataclasses.replace(base, **changes))
    wrong = [
        f"{name} {getattr(config, name)} by the tokenizer, {value} by --size"
        for name, value in ids.items()
        if getattr(config, name, value) != value
    ]
    if wrong:
        raise ValueError(f"{'; '.join(wrong)}: give the tokenizer folder of the checkpoint")
    return config, remarks


def _sized(
    known: Format, size: str | None, valid: set[str]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """What a named size gives; what a file says; the special ids that a file says."""
    if size is None:
        return {}, {}, {}
    sizes = RECIPES[known.recipe].SIZES
    if size in sizes:
        chosen = sizes[size]
        return {f.name: getattr(chosen, f.name) for f in dataclasses.fields(chosen)}, {}, {}
    path = Path(size)
    if not path.is_file():
        raise ValueError(
            f"size {size!r} is neither one of {known.recipe} ({', '.join(sizes)}) nor a .json or .yaml file"
        )
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no JSON or YAML ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, not fields and values")
    special = dict(found.get("config") or found).get("special_token_ids", {})
    ids = {SPECIAL_IDS[name]: value for name, value in special.items() if name in SPECIAL_IDS}
    if isinstance(block := found.get("config"), dict):
        # the reference's own names, among much that is no dimension
        ours = {known.fields[name]: value for name, value in block.items() if name in known.fields}
        return {}, ours, ids
    ours = {known.fields.get(name, name): v for name, v in found.items() if name != "special_token_ids"}
    if unknown := sorted(ours.keys() - valid):
        raise ValueError(
            f"{path}: {known.recipe} has no {', '.join(unknown)}; valid: {', '.join(sorted(valid))}"
        )
    return {}, ours, ids


def plain(config: Any) -> dict[str, Any]:
    """A Config as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
