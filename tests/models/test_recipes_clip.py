"""CLIP's sizes and initial weights against open_clip's, and FLIP's dropping of patches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import open_clip
import pytest
import torch
from torch import Tensor, nn

from models.batch import StepContext
from models.blocks.vision import keep_patches, kept_patches
from models.recipes import clip, clip_keys
from tests.fidelity.clip import open_clip_of
from tests.models.test_recipes import SMALL, make_batch

SMALL_CLIP: clip.Config = SMALL["clip"]
CONTEXT = StepContext(seed=1, step=3)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("size", "name"),
    [("small", "ViT-S-16"), ("base", "ViT-B-16"), ("base32", "ViT-B-32"), ("large", "ViT-L-14")],
)
def test_sizes_have_the_weights_of_open_clips_of_that_name(size: str, name: str) -> None:
    with torch.device("meta"):
        ours = clip.ClipModel(clip.SIZES[size])
        theirs = open_clip.model.CLIP(**open_clip.get_model_config(name))
    weights = dict(ours.named_parameters())
    placed = set()
    for key, value in theirs.named_parameters():
        place, change = clip_keys.KEYS.ours(key), clip_keys.KEYS.change(key)
        assert place is not None
        mine = weights[place]
        assert shapes_of(mine if change is None else change.to_published(mine)) == shapes_of(value), key
        placed.add(place)
    assert placed == weights.keys()
    towers = theirs.visual.transformer, theirs.transformer
    heads = tuple(tower.resblocks[0].attn.num_heads for tower in towers)
    assert heads == (clip.SIZES[size].vision_heads, clip.SIZES[size].text_heads)


def shapes_of(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)


def test_fresh_text_weights_are_drawn_as_the_released_code_draws_them() -> None:
    config = replace(clip.SIZES["tiny"], text_depth=3)
    torch.manual_seed(0)
    ours, theirs = clip.ClipModel(config), open_clip_of(config)
    weights = dict(ours.named_parameters())
    compared = 0
    for key, value in theirs.named_parameters():
        if key.startswith("visual.transformer") or value.numel() < 1000:
            continue  # the released code leaves torch's in the image tower
        place = clip_keys.KEYS.ours(key)
        assert place is not None
        assert weights[place].std().item() == pytest.approx(value.std().item(), rel=0.1), key
        compared += 1
    assert compared >= 3 * 4 + 5
    assert ours.scale().item() == pytest.approx(1 / 0.07)


def test_kept_patches_are_those_of_the_largest_numbers_in_raster_order() -> None:
    uniform = torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.2], [0.6, 0.0, 0.8, 0.1, 0.9]])
    assert kept_patches(uniform, 0.5).tolist() == [[1, 3], [2, 4]]
    assert kept_patches(uniform, 0.75).tolist() == [[1, 2, 3], [0, 2, 4]]
    assert kept_patches(uniform, 0.01).tolist() == [[1], [4]]
    x_BND = torch.arange(12.0).reshape(2, 6, 1)
    kept = keep_patches(x_BND, torch.tensor([[1, 3], [2, 4]]))
    assert kept[:, :, 0].tolist() == [[0, 2, 4], [6, 9, 11]]  # [CLS] and the patches behind it


def test_patches_are_dropped_after_positions_and_in_training_alone() -> None:
    torch.manual_seed(0)
    model = clip.ClipModel(replace(SMALL_CLIP, patch_dropout=0.5))
    batch = make_batch()
    seen: list[Tensor] = []
    for block in (model.vision.entry_norm, model.vision.blocks[0]):
        assert block is not None
        block.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    kept = model.kept(batch, CONTEXT)
    assert kept is not None
    model.features(batch, CONTEXT)
    embedded = model.vision.embed(batch.pictures)
    assert [x.shape[1] for x in seen] == [3, 3]  # of 1 + 4 tokens
    for row in range(len(batch)):
        assert torch.equal(seen[0][row, 1:], embedded[row, 1 + kept[row]])
        assert torch.equal(seen[0][row, 0], embedded[row, 0])
    assert len({tuple(row) for row in kept.tolist()}) > 1  # each picture loses its own
    assert not torch.equal(model.kept(batch, replace(CONTEXT, step=4)), kept)
    seen.clear()
    model.encode_image(batch.pictures)
    model.eval().features(batch, CONTEXT)
    assert [x.shape[1] for x in seen] == [5] * 4


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_a_patch_dropout_that_leaves_nothing_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"patch_dropout {share} must lie in \[0, 1\)"):
        clip.Config(patch_dropout=share)


def test_every_dimension_can_be_set_and_a_patch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="patch_size 14 must divide image_size 100"):
        clip.ClipModel(replace(SMALL_CLIP, image_size=100, patch_size=14))
    for changes in settings():
        config = replace(SMALL_CLIP, **changes)
        with torch.device("meta"):
            assert shapes(clip.ClipModel(config)) != shapes(clip.ClipModel(SMALL_CLIP)), changes


def settings() -> Iterator[dict[str, int]]:
    """Dimensions that weights have."""
    yield from (
        {"image_size": 24}, {"patch_size": 4}, {"vision_width": 64}, {"vision_depth": 3}, {"text_width": 64},
        {"text_depth": 3}, {"mlp_ratio": 2}, {"embed_dim": 8}, {"vocab_size": 61}, {"max_text_length": 11},
    )  # fmt: skip
