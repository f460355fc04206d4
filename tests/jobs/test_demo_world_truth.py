"""What the chain kept, compared with what was planted."""

from __future__ import annotations

import random

import pytest

from jobs.demo.truth import Fate, compare, ranking_auc


def _row(url: str, fault: str, *, is_wrong: bool | None, overlap: str = "none") -> dict:
    return {"url": url, "fault": fault, "is_wrong": is_wrong, "overlap": overlap}


PLANTED = [
    _row("r1", "right", is_wrong=False),
    _row("r2", "right", is_wrong=False),
    _row("r3", "moved", is_wrong=False),
    _row("w1", "wrong_caption", is_wrong=True),
    _row("w2", "wrong_caption", is_wrong=True, overlap="object"),
    _row("w3", "wrong_caption", is_wrong=True),
    _row("c1", "duplicate_bytes", is_wrong=False),
    _row("c2", "duplicate_bytes", is_wrong=False),
    _row("b1", "boilerplate_alt", is_wrong=None),
    _row("d1", "dead_link", is_wrong=None),
    _row("o1", "opt_out", is_wrong=None),
    _row("s1", "short_alt", is_wrong=None),
]
FATES = {
    "r1": Fate(crawled=True, score=0.9, kept=True),
    "r2": Fate(crawled=True, score=0.2, kept=False),
    "r3": Fate(crawled=False, score=None, kept=False, reason="timeout"),
    "c1": Fate(crawled=True, score=None, kept=True),
    "c2": Fate(crawled=True, score=None, kept=False),
    "w1": Fate(crawled=True, score=0.1, kept=False),
    "w2": Fate(crawled=True, score=0.5, kept=True),
    "w3": Fate(crawled=False, score=None, kept=False, reason="timeout"),
    "b1": Fate(crawled=True, score=0.0, kept=False),
    "d1": Fate(crawled=False, score=None, kept=False, reason="http_status"),
    "o1": Fate(crawled=True, score=0.8, kept=True),
}


def test_counts_caught_and_missed_of_what_was_crawled() -> None:
    verdict = compare(PLANTED, FATES)
    assert verdict.wrong == {"planted": 3, "crawled": 2, "missed": 1, "caught": 1}
    assert verdict.right == {"planted": 3, "crawled": 2, "kept": 1, "dropped": 1}
    assert verdict.duplicates == {"planted": 2, "crawled": 2, "kept": 1, "dropped": 1}
    assert verdict.boilerplate == {"planted": 1, "crawled": 1, "missed": 0, "caught": 1}
    assert verdict.fates["dead_link"] == {"http_status": 1}
    assert verdict.fates["short_alt"] == {"not tried": 1}


def test_says_what_met_another_fate_than_it_ought_to() -> None:
    surprises = " ".join(compare(PLANTED, FATES).surprises)
    assert "1 of 1 'opt_out' pictures were kept" in surprises
    assert "1 of 1 'moved' pictures could not be fetched: {'timeout': 1}" in surprises
    assert "dead_link" not in surprises


def test_auc_is_over_crawled_pairs_and_by_overlap() -> None:
    verdict = compare(PLANTED, FATES)
    assert verdict.auc == pytest.approx(3 / 4)  # of (0.9, 0.2) x (0.1, 0.5) only 0.2 > 0.5 fails
    assert verdict.auc_by_overlap == {"none": 1.0, "object": 0.5}


def test_auc_equals_its_definition() -> None:
    rng = random.Random(0)
    right = [rng.randint(0, 9) for _ in range(50)]
    wrong = [rng.randint(0, 7) for _ in range(40)]
    wins = sum((a > b) + 0.5 * (a == b) for a in right for b in wrong)
    assert ranking_auc(right, wrong) == pytest.approx(wins / 2000)
    assert ranking_auc([], wrong) is None
