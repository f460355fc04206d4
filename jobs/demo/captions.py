"""What a page says about a scene: one template per language and style, filled from the scene.

English inflects. The other languages write as alt texts often do, telegraphically and with the noun in the
singular beside a number (`2x Hund links von 1x Auto`), because the names come from a dictionary that knows
no plural.
"""

from __future__ import annotations

import random

from jobs.demo.objects import Thing
from jobs.demo.scenes import COLOURS, RELATIONS, Scene

#: how often a caption is in a language; mostly English, as the web is
LANGUAGE_WEIGHTS = {"en": 0.85, "de": 0.05, "fr": 0.05, "es": 0.05}

TEMPLATES = {
    "en": (
        "{a} {relation} {b}, {colour} background",
        "{a} {relation} {b} on {colour}",
        "{colour} picture of {a} {relation} {b}",
    ),
    "de": ("{a} {relation} {b}, Hintergrund {colour}", "Bild: {a} {relation} {b} auf {colour}"),
    "fr": ("{a} {relation} {b}, fond {colour}", "image de {a} {relation} {b} sur fond {colour}"),
    "es": ("{a} {relation} {b}, fondo {colour}", "imagen de {a} {relation} {b} sobre fondo {colour}"),
}
ENGLISH_NUMBERS = ("zero", "one", "two", "three")
RELATION_PHRASES = {
    "en": {"left": "left of", "right": "right of", "above": "above", "below": "below"},
    "de": {"left": "links von", "right": "rechts von", "above": "über", "below": "unter"},
    "fr": {"left": "à gauche de", "right": "à droite de", "above": "au-dessus de", "below": "en dessous de"},
    "es": {
        "left": "a la izquierda de",
        "right": "a la derecha de",
        "above": "encima de",
        "below": "debajo de",
    },
}
COLOUR_WORDS = {
    "en": {colour: colour for colour in COLOURS},
    "de": {
        "red": "rot",
        "yellow": "gelb",
        "green": "grün",
        "blue": "blau",
        "pink": "rosa",
        "gray": "grau",
    },
    "fr": {
        "red": "rouge",
        "yellow": "jaune",
        "green": "vert",
        "blue": "bleu",
        "pink": "rose",
        "gray": "gris",
    },
    "es": {
        "red": "rojo",
        "yellow": "amarillo",
        "green": "verde",
        "blue": "azul",
        "pink": "rosa",
        "gray": "gris",
    },
}


def caption(scene: Scene, things: tuple[Thing, ...], *, language: str, style: int = 0) -> str:
    """The caption of a scene; `style` chooses among the language's templates (modulo their number)."""
    templates = TEMPLATES[language]
    return templates[style % len(templates)].format(
        a=_group(things[scene.kind_a], scene.count_a, language),
        b=_group(things[scene.kind_b], scene.count_b, language),
        relation=RELATION_PHRASES[language][scene.relation],
        colour=COLOUR_WORDS[language][scene.colour],
    )


def draw_caption(scene: Scene, things: tuple[Thing, ...], *, seed: int) -> tuple[str, str]:
    """(caption, language), drawn by the scene's own seed: the same scene is always captioned alike."""
    rng = random.Random(f"{seed}:{scene.name}:caption")
    language = rng.choices(list(LANGUAGE_WEIGHTS), weights=list(LANGUAGE_WEIGHTS.values()))[0]
    return caption(scene, things, language=language, style=rng.randrange(6)), language


def telling_words(things: tuple[Thing, ...]) -> dict[str, list[str]]:
    """The English words that tell what is to be seen, by class, for asking a model to fill them in."""
    objects = sorted({thing.english(count) for thing in things for count in (1, 2)})
    return {
        "object": objects,
        "colour": list(COLOUR_WORDS["en"].values()),
        "relation": list(RELATIONS),
    }


def _group(thing: Thing, count: int, language: str) -> str:
    if language == "en":
        return f"{ENGLISH_NUMBERS[count]} {thing.english(count)}"
    return f"{count}x {thing.names[language]}"
