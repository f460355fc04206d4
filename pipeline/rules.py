"""The rules of the known datasets: which pairs they keep. The one place where such thresholds stand.

A preset is a list of rules. A rule says which columns it needs, the earliest stage that has them, and its
condition: as SQL, which pack evaluates, and, where discover can apply it already, as a Python function of the
same columns. A test holds both against each other.

    PRESETS["laion400m"].rules_for("discover")       what needs no picture
    PRESETS["laion400m"].predicate()                 the whole preset as one SQL expression
    print(PRESETS["laion400m"].explain())

Sources: LAION-400M (arXiv:2111.02114), LAION-5B (arXiv:2210.08402) and the code that collected it
(github.com/rvencu/crawlingathome-gpu-hcloud), LAION-COCO (laion.ai/blog/laion-coco), COYO-700M
(github.com/kakaobrain/coyo-dataset), DataComp (arXiv:2304.14108), MetaCLIP (arXiv:2309.16671). Where they say
"5 KB", their code compares with 5000 bytes. docs/presets.md has each preset with its thresholds, the commands
that write its columns, and what is not as published.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from pipeline.errors import ConfigError

#: the stages that may apply rules, in their order
STAGES = ("discover", "crawl", "pack")

#: which stage writes a column, in the words of an error message
COLUMN_SOURCES = {
    "caption": "`pairmill discover`, or the captions of a list",
    "url": "`pairmill discover`, or the URLs of a list",
    "bytes": "`pairmill crawl` (folders of img2dataset do not have it)",
    "original_width": "`pairmill crawl`",
    "original_height": "`pairmill crawl`",
    "clip_score": "`pairmill score --kind clip`",
    "language": "`pairmill score --kind language`",
    "duplicate_of": "`pairmill dedup`",
    "contaminated_by": "`pairmill dedup --method contamination`, over `pairmill score --kind hash`",
    "unsafe": "`pairmill score --kind safety`",
    "metaclip_matches": "`pairmill balance`",
    "metaclip_keep": "`pairmill balance`",
}

# Words are runs of what is no ASCII white space. Captions from discover hold no other; captions of foreign
# lists may, and both functions must count them alike.
_SPACES = " \t\n\x0b\x0c\r"
_WORD_COUNT = r"len(regexp_extract_all(caption, '[^ \t\n\x0B\f\r]+'))"
# No lower(): Python and DuckDB differ on letters such as the Turkish dotted I.
_SVG_OR_GIF = r"^[^?#]*\.([sS][vV][gG][zZ]?|[gG][iI][fF])([?#]|$)"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One condition.

    reason: its name, which is the reason that is counted for what it drops.
    columns: what it needs.
    earliest: the first stage that has these columns.
    sql: true for what is kept, over the columns.
    keeps: the same of the values of `columns`, for rules that discover applies.
    """

    reason: str
    columns: tuple[str, ...]
    earliest: str
    sql: str
    keeps: Callable[..., bool] | None = None

    def __post_init__(self) -> None:
        assert self.earliest in STAGES
        assert (self.keeps is not None) == (self.earliest == "discover"), self.reason


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The rules of one dataset, asked in this order: the first that fails gives the reason.

    captions: the caption policy that pack takes where none is asked for (`pipeline.stages.pack.captions`).
    max_per_text: pairs with one caption that pack keeps at most.
    """

    name: str
    about: str
    table: tuple[Rule, ...]
    captions: str | None = None
    max_per_text: int | None = None

    def rules_for(self, stage: str) -> list[Rule]:
        """The rules that a stage can apply: those whose columns are there by then.

        Raises:
            ConfigError: no such stage applies rules.
        """
        if stage not in STAGES:
            raise ConfigError(f"stage {stage!r} applies no rules; these do: {', '.join(STAGES)}")
        last = STAGES.index(stage)
        return [rule for rule in self.table if STAGES.index(rule.earliest) <= last]

    def rules(self, stage: str = "pack") -> list[tuple[str, str]]:
        """(reason, SQL) of each rule that a stage can apply."""
        return [(rule.reason, rule.sql) for rule in self.rules_for(stage)]

    def predicate(self, stage: str = "pack") -> str:
        """All rules that a stage can apply as one SQL expression; `true` where there are none."""
        return " AND ".join(f"({rule.sql})" for rule in self.rules_for(stage)) or "true"

    def columns(self, stage: str = "pack") -> list[str]:
        """The columns that the rules of a stage need, each once."""
        return list(dict.fromkeys(name for rule in self.rules_for(stage) for name in rule.columns))

    def check_columns(self, available: Collection[str], stage: str = "pack") -> None:
        """Raises ConfigError when a column is missing, saying which rule needs it and what writes it."""
        for rule in self.rules_for(stage):
            for name in rule.columns:
                if name not in available:
                    raise ConfigError(
                        f"preset {self.name!r} needs column {name!r} (rule {rule.reason}: {rule.sql}), which "
                        f"is not there; it comes from {COLUMN_SOURCES[name]}. Run that and name its folder "
                        "in --columns, or take another preset"
                    )

    def explain(self) -> str:
        """The preset for people: a line for each rule with its stage, reason and condition."""
        lines = [f"{self.name}: {self.about}"]
        lines += [f"  {rule.earliest:<8}  {rule.reason:<16}  {rule.sql}" for rule in self.table]
        return "\n".join(lines)


def caption_chars(low: int, high: int | None = None) -> tuple[Rule, ...]:
    """Length of the caption in code points, both ends included."""
    rules = [
        Rule(
            reason="short_caption",
            columns=("caption",),
            earliest="discover",
            sql=f"length(caption) >= {low}",
            keeps=lambda caption: len(caption) >= low,
        )
    ]
    if high is not None:
        rules.append(long_caption(high))
    return tuple(rules)


def long_caption(high: int) -> Rule:
    return Rule(
        reason="long_caption",
        columns=("caption",),
        earliest="discover",
        sql=f"length(caption) <= {high}",
        keeps=lambda caption: len(caption) <= high,
    )


def caption_words(low: int, high: int | None = None) -> tuple[Rule, ...]:
    """Number of words, both ends included."""
    rules = [
        Rule(
            reason="few_words",
            columns=("caption",),
            earliest="discover",
            sql=f"{_WORD_COUNT} >= {low}",
            keeps=lambda caption: count_words(caption) >= low,
        )
    ]
    if high is not None:
        rules.append(
            Rule(
                reason="many_words",
                columns=("caption",),
                earliest="discover",
                sql=f"{_WORD_COUNT} <= {high}",
                keeps=lambda caption: count_words(caption) <= high,
            )
        )
    return tuple(rules)


def count_words(caption: str) -> int:
    """Runs of characters between ASCII white space."""
    if caption.isprintable():  # no white space but the plain one
        return len(caption.split())
    for space in _SPACES[1:]:
        if space in caption:
            caption = caption.replace(space, " ")
    return sum(1 for word in caption.split(" ") if word)


def long_url(high: int) -> Rule:
    return Rule(
        reason="long_url",
        columns=("url",),
        earliest="discover",
        sql=f"length(url) <= {high}",
        keeps=lambda url: len(url) <= high,
    )


def is_svg_or_gif(url: str) -> bool:
    """By the end of the path; what a server really sends shows in the crawl."""
    path = url.partition("?")[0].partition("#")[0]
    return path[-5:].lower().endswith((".svg", ".svgz", ".gif"))


SVG_OR_GIF = Rule(
    reason="svg_or_gif",
    columns=("url",),
    earliest="discover",
    sql=f"NOT regexp_matches(url, '{_SVG_OR_GIF}')",
    keeps=lambda url: not is_svg_or_gif(url),
)
SMALL_FILE = Rule(reason="small_file", columns=("bytes",), earliest="crawl", sql="bytes >= 5000")
#: in pixels, the limit at which Pillow warns of a decompression bomb
TOO_MANY_PIXELS = Rule(
    reason="too_many_pixels",
    columns=("original_width", "original_height"),
    earliest="crawl",
    sql="CAST(original_width AS BIGINT) * original_height <= 89478484",
)
# Both sides are named, since SQL's least() and greatest() pass over nulls.
ELONGATED = Rule(
    reason="elongated",
    columns=("original_width", "original_height"),
    earliest="crawl",
    sql="CAST(original_width AS BIGINT) <= 3 * CAST(original_height AS BIGINT) "
    "AND CAST(original_height AS BIGINT) <= 3 * CAST(original_width AS BIGINT)",
)
SMALL_SIDE = Rule(
    reason="small_side",
    columns=("original_width", "original_height"),
    earliest="crawl",
    sql="original_width >= 200 AND original_height >= 200",
)
NOT_ENGLISH = Rule(
    reason="not_english", columns=("language",), earliest="pack", sql="coalesce(language, '') = 'en'"
)
DUPLICATE = Rule(reason="duplicate", columns=("duplicate_of",), earliest="pack", sql="duplicate_of IS NULL")
UNSAFE = Rule(reason="unsafe", columns=("unsafe",), earliest="pack", sql="unsafe <= 0.5")
IN_BENCHMARK = Rule(
    reason="in_benchmark", columns=("contaminated_by",), earliest="pack", sql="contaminated_by IS NULL"
)
NO_ENTRY = Rule(reason="no_entry", columns=("metaclip_matches",), earliest="pack", sql="metaclip_matches > 0")
BALANCED_AWAY = Rule(reason="balanced_away", columns=("metaclip_keep",), earliest="pack", sql="metaclip_keep")


def clip_at_least(threshold: str) -> Rule:
    """A floor of the score, the threshold itself kept. SQL puts NaN above all numbers, so it is named."""
    return Rule(
        reason="low_clip_score",
        columns=("clip_score",),
        earliest="pack",
        sql=f"NOT isnan(clip_score) AND clip_score >= {threshold}",
    )


#: LAION's collector skips shorter texts. It is left to pack, since discover takes this preset where none is
#: named, and what discover drops no other preset can have
LAION5B_SHORT_CAPTION = Rule(
    reason="short_caption", columns=("caption",), earliest="pack", sql="length(caption) >= 5"
)
#: captions of no known language count as not English. The scores of these are to come from a multilingual
#: CLIP, the others from ViT-B/32
LAION5B_CLIP = Rule(
    reason="low_clip_score",
    columns=("clip_score", "language"),
    earliest="pack",
    sql="NOT isnan(clip_score) AND clip_score >= CASE WHEN language = 'en' THEN 0.28 ELSE 0.26 END",
)

#: what LAION-5B asks before a model judges the pair
_LAION5B = (
    long_caption(2000),
    long_url(2000),
    SVG_OR_GIF,
    SMALL_FILE,
    TOO_MANY_PIXELS,
    LAION5B_SHORT_CAPTION,
)

_ALL = (
    Preset(name="none", about="no rule: every picture with an http address and an alt text", table=()),
    Preset(
        name="laion400m",
        about="LAION-400M, de-duplicated on URL and alt text, CLIP ViT-B/32 >= 0.30",
        table=(*caption_chars(5), SMALL_FILE, DUPLICATE, clip_at_least("0.30")),
    ),
    Preset(
        name="laion5b",
        about="LAION-5B, CLIP >= 0.28 for English (ViT-B/32), >= 0.26 otherwise (multilingual model)",
        table=(*_LAION5B, LAION5B_CLIP),
    ),
    Preset(
        name="laion-coco",
        about="LAION-COCO: the English part of LAION-5B, with the best of many generated captions",
        table=(*_LAION5B, NOT_ENGLISH, clip_at_least("0.28")),
        captions="laion-coco",
    ),
    Preset(
        name="coyo",
        about="COYO-700M: English, NSFW score <= 0.5, (pHash, text) once, no benchmark's picture, 10 a text",
        table=(
            *caption_chars(6, 1000),
            *caption_words(3, 256),
            SMALL_FILE,
            SMALL_SIDE,
            ELONGATED,
            NOT_ENGLISH,
            UNSAFE,
            IN_BENCHMARK,
            DUPLICATE,
        ),
        max_per_text=10,
    ),
    Preset(
        name="datacomp-basic",
        about="DataComp's basic filter: English, more than 2 words and 5 characters, sides and aspect",
        table=(*caption_chars(6), *caption_words(3), SMALL_SIDE, ELONGATED, NOT_ENGLISH),
    ),
    Preset(
        name="datacomp-laion2b",
        about="DataComp's LAION-2B filter: English, CLIP ViT-B/32 >= 0.28",
        table=(NOT_ENGLISH, clip_at_least("0.28")),
    ),
    Preset(
        name="metaclip",
        about="MetaCLIP: texts that hold a query entry, balanced over the entries",
        table=(NO_ENTRY, BALANCED_AWAY),
    ),
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}


def get_preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        ConfigError: there is none of that name; the message lists all.
    """
    if name not in PRESETS:
        raise ConfigError(f"rules {name!r} are not known; presets: {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
