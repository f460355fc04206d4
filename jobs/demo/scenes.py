"""What is to be seen: scenes of two groups of objects, drawn at random from a seed.

A scene says: some objects of one kind stand left of, right of, above or below some objects of another kind,
on a coloured background. Its *combination* is the unordered pair of kinds. Every combination belongs to
exactly one part of the world (trusted, web, held out), so the parts show the same objects, but never the
same two together: what a model learns on one part has to be recombined to be right on another.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

PARTS = ("trusted", "web", "heldout")
#: share of all combinations that each part may draw from
PART_SHARES = {"trusted": 0.4, "web": 0.4, "heldout": 0.2}

RELATIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
COLOURS = ("red", "yellow", "green", "blue", "pink", "gray")
MAX_COUNT = 3


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture, as its caption tells it: `count_a` of `kind_a` are `relation` of `count_b` of `kind_b`.

    Attributes:
        number: position in its part, which also seeds the painting
        part: trusted, web or heldout
        kind_a: index into the objects
        count_a: 1 to 3
        kind_b: index into the objects, never `kind_a`
        count_b: 1 to 3
        relation: left, right, above or below
        colour: colour of the background
    """

    number: int
    part: str
    kind_a: int
    count_a: int
    kind_b: int
    count_b: int
    relation: str
    colour: str

    @property
    def name(self) -> str:
        """`web-00012`: the scene's identity in file names and in the truth table."""
        return f"{self.part}-{self.number:05d}"

    @property
    def combination(self) -> tuple[int, int]:
        return min(self.kind_a, self.kind_b), max(self.kind_a, self.kind_b)

    @property
    def content(self) -> tuple[int, int, int, int, str, str]:
        """Equal for two scenes that show the same: `a left of b` is `b right of a`."""
        if self.kind_a < self.kind_b:
            return self.kind_a, self.count_a, self.kind_b, self.count_b, self.relation, self.colour
        opposite = OPPOSITE[self.relation]
        return self.kind_b, self.count_b, self.kind_a, self.count_a, opposite, self.colour


def split_combinations(kinds: int, *, seed: int) -> dict[str, list[tuple[int, int]]]:
    """Deals all pairs of `kinds` objects to the three parts, disjointly."""
    pairs = list(itertools.combinations(range(kinds), 2))
    random.Random(f"{seed}:combinations").shuffle(pairs)
    first = round(len(pairs) * PART_SHARES["trusted"])
    second = first + round(len(pairs) * PART_SHARES["web"])
    return {"trusted": pairs[:first], "web": pairs[first:second], "heldout": pairs[second:]}


def draw_scenes(part: str, count: int, *, kinds: int, seed: int) -> list[Scene]:
    """`count` scenes of one part, no two of the same content, the combinations used evenly."""
    combinations = split_combinations(kinds, seed=seed)[part]
    rng = random.Random(f"{seed}:{part}")
    scenes: list[Scene] = []
    seen: set[tuple[int, int, int, int, str, str]] = set()
    while len(scenes) < count:
        pair = combinations[len(scenes) % len(combinations)]
        scene = _draw(len(scenes), part, pair, rng)
        if scene.content not in seen:
            seen.add(scene.content)
            scenes.append(scene)
    return scenes


def _draw(number: int, part: str, pair: tuple[int, int], rng: random.Random) -> Scene:
    kind_a, kind_b = rng.sample(pair, 2)
    return Scene(
        number=number,
        part=part,
        kind_a=kind_a,
        count_a=rng.randint(1, MAX_COUNT),
        kind_b=kind_b,
        count_b=rng.randint(1, MAX_COUNT),
        relation=rng.choice(RELATIONS),
        colour=rng.choice(COLOURS),
    )
