"""Kind `language`: the language of a caption, by CLD3 (github.com/google/cld3, PyPI cld3-py).

    pairmill score --kind language --input candidates --output columns/language \
                   --columns columns/candidates-dedup --where "duplicate_of IS NULL"

As LAION-5B (arXiv:2210.08402) has it: a caption for which CLD3 calls its own answer unreliable has no
language. Nor has one without a letter, for which CLD3 would say Japanese. Codes are CLD3's: ISO 639-1 where
there is one (`en`, `de`; Hebrew is `iw`), with a script where that is unusual (`ru-Latn`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.stages.score.kind import Judge, Judgement, Kind, Row

if TYPE_CHECKING:
    from pipeline.stages.score.config import ScoreConfig

NO_TEXT, UNRELIABLE = "no_text", "unreliable"
#: of the text's letters; with 0, CLD3 judges texts that have none
MIN_BYTES = 1
#: of a longer text CLD3 takes samples up to this size
MAX_BYTES = 1000
#: what CLD3 says of texts below MIN_BYTES
UNKNOWN = "und"


class Language(Kind):
    """Two columns: the code, and CLD3's probability for it (0..1)."""

    column = "language"
    pictures = False

    def schema(self, name: str) -> pa.Schema:
        return pa.schema([(name, pa.string()), (f"{name}_probability", pa.float32())])

    def load(self, config: ScoreConfig) -> Judge:
        return LanguageJudge()


class LanguageJudge:
    """CLD3, loaded."""

    name = "cld3"

    def __init__(self) -> None:
        import gcld3  # a library of its own, which only workers need

        self._find: Any = gcld3.NNetLanguageIdentifier(MIN_BYTES, MAX_BYTES).FindLanguage

    def judge(self, rows: Iterable[Row]) -> Iterator[Judgement]:
        for row in rows:
            # by position: the binding takes str alone, and half a surrogate pair is none
            found = self._find(_clean(row.caption))
            if found.language == UNKNOWN:
                yield Judgement(row.key, None, NO_TEXT)
            elif not found.is_reliable:
                yield Judgement(row.key, None, UNRELIABLE)
            else:
                yield Judgement(row.key, (found.language, found.probability))


def _clean(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
