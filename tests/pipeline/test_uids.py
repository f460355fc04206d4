"""Sets of uids: membership is exact over all 128 bits."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline import uids
from pipeline.uids import UidSet

#: neighbours, both ends, and values on either side of what a signed or a 53-bit number holds
halves = st.sampled_from(
    [0, 1, 2**53, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]
) | st.integers(0, 2**64 - 1)
pairs = st.tuples(halves, halves)


def text(pair: tuple[int, int]) -> str:
    return f"{pair[0]:016x}{pair[1]:016x}"


@given(st.lists(pairs, max_size=12), st.lists(pairs, max_size=12))
def test_a_set_holds_what_was_put_in_and_nothing_else(inside: list, others: list) -> None:
    found = UidSet(np.array(inside, "u8,u8")).contains(
        pa.array([text(p) for p in inside + others], pa.string())
    )
    assert found.to_pylist() == [pair in set(inside) for pair in inside + others]


def test_what_is_no_uid_is_in_no_set() -> None:
    one = UidSet(np.array([(0, 0)], "u8,u8"))
    assert one.contains(pa.array([None, "", "0" * 31, "z" * 32, "0" * 32])).to_pylist() == [False] * 4 + [
        True
    ]


@given(st.lists(pairs, max_size=12))
def test_a_list_is_written_once_each_and_sorted(given_pairs: list) -> None:

    found = np.load(io.BytesIO(uids.dump(pa.chunked_array([[text(p) for p in given_pairs]], pa.string()))))
    assert found.tolist() == sorted(set(given_pairs))
