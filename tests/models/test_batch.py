"""The draws of a step: uniform, and a function of seed, step, purpose and row alone."""

from __future__ import annotations

import zlib

import pytest
import torch

from models.batch import Batch, StepContext

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def splitmix64(x: int) -> int:
    """The finaliser of Steele, Lea and Flood (2014), in Python's integers."""
    x &= MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def expected(seed: int, step: int, purpose: str, row: int, column: int) -> float:
    key = zlib.crc32(f"{seed}:{step}:{purpose}".encode())
    inner = splitmix64(row + (key + 1) * GOLDEN)
    return (splitmix64(inner + (column + 1) * GOLDEN) >> 11) / 2**53


CONTEXT = StepContext(seed=3, step=41)


def test_finaliser_here_is_the_published_one() -> None:
    # splitmix64 with state 0: its first outputs, as published with the reference code
    assert [splitmix64(n * GOLDEN) for n in (1, 2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_equals_the_hash_in_pure_python() -> None:
    drawn = CONTEXT.uniform("mlm choice", torch.tensor([0, 5, 2**40]), 3)
    for i, row in enumerate((0, 5, 2**40)):
        for column in range(3):
            assert drawn[i, column].item() == expected(3, 41, "mlm choice", row, column)


def test_uniform_and_uncorrelated() -> None:
    drawn = CONTEXT.uniform("patches", torch.arange(2000), 50)
    assert drawn.dtype == torch.float64
    assert drawn.min() >= 0
    assert drawn.max() < 1
    share = torch.histc(drawn, bins=20, min=0, max=1) / drawn.numel()
    torch.testing.assert_close(share, torch.full_like(share, 0.05), atol=0.003, rtol=0)
    for other in (
        CONTEXT.uniform("words", torch.arange(2000), 50),
        StepContext(seed=3, step=42).uniform("patches", torch.arange(2000), 50),
        StepContext(seed=4, step=41).uniform("patches", torch.arange(2000), 50),
        drawn.roll(1, 0),
        drawn.roll(1, 1),
    ):
        together = torch.stack([drawn.flatten(), other.flatten()])
        assert torch.corrcoef(together)[0, 1].abs() < 0.02


def test_more_columns_change_nothing_in_the_first() -> None:
    rows = torch.arange(7)
    assert torch.equal(CONTEXT.uniform("x", rows, 9)[:, :4], CONTEXT.uniform("x", rows, 4))


def test_rows_may_be_dealt_in_any_way() -> None:
    rows = torch.arange(12)
    whole = CONTEXT.uniform("x", rows, 3)
    for parts in (rows.chunk(4), (rows[::2], rows[1::2])):
        assert torch.equal(torch.cat([CONTEXT.uniform("x", p, 3) for p in parts]), whole[torch.cat(parts)])
    elsewhere = StepContext(seed=3, step=41, micro_step=2, rank=1, world_size=4)
    assert torch.equal(elsewhere.uniform("x", rows, 3), whole)


def test_a_batch_of_texts_has_rows_but_no_pictures() -> None:
    ids_BT = torch.ones(3, 4, dtype=torch.int64)
    batch = Batch(image_BCHW=None, text_ids_BT=ids_BT, text_mask_BT=ids_BT, image_id_B=ids_BT[:, 0])
    assert batch.row_B.tolist() == [0, 1, 2]
    assert batch.to("cpu", image_dtype=torch.bfloat16).image_BCHW is None
    with pytest.raises(ValueError, match="texts without pictures"):
        _ = batch.pictures
