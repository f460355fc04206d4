"""The systems that can be trained: one file each, listed here. A new one is its file and its line."""

from __future__ import annotations

from types import ModuleType

from models.recipes import albef, blip, clip, vlmo

#: name -> module with Config, SIZES and build (the contract is in `models.recipes.base`)
RECIPES: dict[str, ModuleType] = {
    "albef": albef,
    "blip": blip,
    "clip": clip,
    "vlmo": vlmo,
}
