"""The chains that come with the package: every option of every step is one of today's."""

from __future__ import annotations

from pathlib import Path

import pytest

import jobs.chains
from jobs.chain import load_chain

CHAINS = sorted(Path(jobs.chains.__file__).parent.glob("*.yaml"))


@pytest.mark.parametrize("path", CHAINS, ids=lambda path: path.stem)
def test_is_parsed(path: Path) -> None:
    assert load_chain(str(path))
