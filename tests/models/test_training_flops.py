"""Operations counted by running a model, against counts written out from the dimensions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.recipes import albef, clip
from models.training.flops import Flops, count_flops, made_up_batch, measured_peak

CPU = torch.device("cpu")


def block(tokens: int, width: int, hidden: int) -> float:
    """Self-attention and feed-forward: four projections, scores, their sum over values, two more products."""
    return 2 * (4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * hidden)


def vision(c: albef.Config | clip.Config) -> tuple[float, float]:
    """(patch projection, blocks) of one picture."""
    patches = (c.image_size // c.patch_size) ** 2
    width = c.vision_width
    blocks = c.vision_depth * block(patches + 1, width, c.mlp_ratio * width)
    return 2.0 * patches * 3 * c.patch_size**2 * width, blocks


def albef_by_hand(c: albef.Config, *, texts: int, masked: float, batch: int) -> Flops:
    """One pair of ALBEF as it is computed here, per sample.

    texts: tokens of a text. masked: of them, those that are predicted.
    """
    patch, blocks = vision(c)
    image_tokens = (c.image_size // c.patch_size) ** 2 + 1
    width, memory = c.text_width, c.vision_width
    layer = block(texts, width, c.mlp_ratio * width)
    text_half = c.fusion_start * layer
    fusion_layers = c.text_depth - c.fusion_start
    cross = 2 * (2 * texts * width**2 + 2 * texts * image_tokens * width)
    fused_row = fusion_layers * (layer + cross)
    keys_values = fusion_layers * 2 * (2 * image_tokens * memory * width)  # once a picture
    words = masked * 2 * (width**2 + width * c.vocab_size)
    projections = 2 * (c.vision_width + c.text_width) * c.embed_dim
    keys = batch + c.queue_size
    contrast = 2 * 2 * c.embed_dim * keys  # two directions
    drawing = 2 * 2 * c.embed_dim * batch  # of negatives

    tower = blocks + 2 * text_half + keys_values + words + projections
    student = tower + 4 * fused_row + 3 * 2 * width * 2
    teacher = patch + tower + fused_row
    forward = patch + student + 2 * contrast + drawing  # the contrast of the teacher as well
    # two products for each one forward; pixels and keys need no gradient
    backward = patch + 2 * student + contrast
    return Flops(teacher=teacher, forward=forward, backward=backward)


def clip_by_hand(c: clip.Config, *, texts: int, batch: int) -> Flops:
    patch, blocks = vision(c)
    text = c.text_depth * block(texts, c.text_width, c.mlp_ratio * c.text_width)
    projections = 2 * (c.vision_width + c.text_width) * c.embed_dim
    contrast = 2 * 2 * c.embed_dim * batch
    both = blocks + text + projections + contrast
    return Flops(teacher=0, forward=patch + both, backward=patch + 2 * both)


def assert_near(counted: Flops, by_hand: Flops, tolerance: float) -> None:
    for name in ("teacher", "forward", "backward"):
        assert getattr(counted, name) == pytest.approx(getattr(by_hand, name), rel=tolerance), name


def test_albef_is_counted_as_by_hand() -> None:
    config = replace(
        albef.SIZES["tiny"], image_size=48, patch_size=16, vision_width=48, vision_depth=3, vision_heads=4,
        text_width=64, text_depth=5, fusion_start=2, text_heads=4, queue_size=24, vocab_size=60, embed_dim=40,
    )  # fmt: skip
    texts, samples = 25, 16
    counted = count_flops(albef, config, samples=samples, tokens=texts, device=CPU)
    # [CLS] is an id of its own, which none of the made-up ones is: each token is masked by the same chance
    by_hand = albef_by_hand(config, texts=texts, masked=0.15 * texts, batch=samples)
    assert_near(counted, by_hand, 0.01)


def test_clip_is_counted_as_by_hand_and_recomputation_is_not() -> None:
    config = replace(
        clip.SIZES["tiny"], image_size=32, patch_size=8, vision_width=48, text_width=32, embed_dim=24,
        gradient_checkpointing=True,
    )  # fmt: skip
    counted = count_flops(clip, config, samples=6, tokens=20, device=CPU)
    assert_near(counted, clip_by_hand(config, texts=20, batch=6), 1e-6)


def test_the_papers_albef_at_224_pixels_with_25_tokens() -> None:
    """186 + 46 GFLOP a sample, computed plainly; 203 in all with keys and values once a picture and the word
    predictor on masked tokens alone."""
    paper = replace(albef.SIZES["base"], image_size=224)
    assert albef_by_hand(paper, texts=25, masked=3.75, batch=512).total == pytest.approx(203e9, rel=0.01)
    # plainly: keys and values for each of the four rows, every token predicted, no queue to speak of
    ours = albef_by_hand(paper, texts=25, masked=25, batch=512)
    again = 6 * 2 * (2 * 197 * 768 * 768)
    student = ours.forward + ours.backward + 3 * 3 * again
    assert student == pytest.approx(186e9, rel=0.01)
    assert ours.teacher == pytest.approx(46e9, rel=0.01)


def test_made_up_pairs_differ_and_a_peak_is_measured() -> None:
    config = albef.SIZES["tiny"]
    batch = made_up_batch(config, samples=3, tokens=7, seed=1)
    assert batch.text_ids_BT.shape == (3, 7)
    assert int(batch.text_ids_BT.max()) < config.vocab_size
    assert not torch.equal(batch.pictures, made_up_batch(config, samples=3, tokens=7, seed=2).pictures)
    assert 1e8 < measured_peak(CPU, torch.float32) < 1e14
