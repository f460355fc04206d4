"""The ordered shard: any order of arrival, any bound on memory, the same tar."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shards.reader import Sample
from pipeline.shards.writer import ShardWriter
from pipeline.stages.crawl.ordered import OrderedShard


def sample(position: int) -> Sample | None:
    if position % 5 == 4:
        return None
    return Sample(f"{position:012d}", {"jpg": bytes([position]) * (100 * position), "txt": b"t"})


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(20)), st.sampled_from([0, 1000, 1 << 20]))
def test_order_of_arrival_and_memory_leave_no_trace(order: list[int], held: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shard = OrderedShard(folder, "shard", held=held)
        for position in order:
            shard.put(position, sample(position))
        shard.close(len(order))
        with ShardWriter(folder / "plain.tar") as plain:
            for one in map(sample, range(20)):
                if one is not None:
                    plain.write(one)
        assert shard.path.read_bytes() == (folder / "plain.tar").read_bytes()
        assert sorted(p.name for p in folder.iterdir()) == ["plain.tar", "shard.tar"], "no spool is left"


def test_a_position_is_put_once_and_none_is_left_out(tmp_path: Path) -> None:
    shard = OrderedShard(tmp_path, "shard")
    shard.put(1, sample(1))
    with pytest.raises(AssertionError, match="put before"):
        shard.put(1, sample(1))
    with pytest.raises(AssertionError, match="0 of 2"):
        shard.close(2)
