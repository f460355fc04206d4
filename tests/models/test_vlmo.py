"""VLMo's parts: positions, routes, whole words, stages, stochastic depth, names of published checkpoints."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

from models.batch import Batch, StepContext
from models.blocks.multiway import kept_paths
from models.blocks.relative_positions import (
    RelativePositions,
    image_rows,
    joint_index,
    resize_table,
    text_rows,
)
from models.objectives.gather import pad_columns
from models.objectives.mlm import mask_tokens
from models.recipes import vlmo, vlmo_keys
from models.training.optim import parameter_groups
from tests.fidelity.vlmo_reference import joint_table
from tests.models.test_recipes import SMALL, make_batch

DATA = Path(__file__).parent / "data"
CONFIG: vlmo.Config = SMALL["vlmo"]
ABSOLUTE: dict[str, Any] = {"positions": "absolute", "layer_scale": 0.0}
CONTEXT = StepContext(seed=1, step=3)


def build(**changes: Any) -> vlmo.VlmoSystem:
    torch.manual_seed(0)
    system = vlmo.build(replace(CONFIG, **changes))
    with torch.no_grad():
        for weight in system.model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return system


def losses(system: vlmo.VlmoSystem, batch: Batch) -> dict[str, Tensor]:
    return system.model(batch, CONTEXT, system.prepare([batch], CONTEXT)[0])


# positions


def test_the_index_is_that_of_the_notes_for_several_grids_and_lengths() -> None:
    for grid, length, window in ((2, 3, 5), (4, 12, 196), (3, 7, 7)):
        expected = torch.tensor(joint_table(grid, length, window))
        assert torch.equal(joint_index(length, grid=grid, window=window), expected)
    assert int(joint_index(40, grid=14, window=196).max()) == 1125  # the base model's table has 1126 rows


def test_biases_of_a_layer_and_head_are_a_column_and_a_shorter_text_reads_the_same_ones() -> None:
    positions = RelativePositions(grid=2, window=8, max_text_length=6, layers=3, heads=2)
    torch.nn.init.normal_(positions.table)
    whole = positions(6, picture=True)
    assert whole.shape == (3, 2, 11, 11)
    index = joint_index(6, grid=2, window=8)
    assert torch.equal(whole[2, 1], positions.table[index, 2 * 2 + 1])
    keep = torch.tensor([0, 1, 2, 3, *range(6, 11)])
    assert torch.equal(positions(4, picture=True), whole[:, :, keep[:, None], keep])
    assert torch.equal(positions(0, picture=True), whole[:, :, 6:, 6:])
    assert torch.equal(positions(3, picture=False), whole[:, :, :3, :3])


@pytest.mark.parametrize("changes", [{}, ABSOLUTE], ids=["relative", "absolute"])
def test_padding_to_the_longest_text_changes_nothing(changes: dict[str, Any]) -> None:
    model, batch = build(**changes).model.eval(), make_batch()
    ids_BT, mask_BT = batch.text_ids_BT[:, :8], batch.text_mask_BT[:, :8]
    longer_BT, wider_BT = pad_columns(ids_BT, 10), pad_columns(mask_BT, 10)
    image = model.encode_image(batch.pictures).tokens_BND
    short, long = model.encode_text(ids_BT, mask_BT), model.encode_text(longer_BT, wider_BT)
    torch.testing.assert_close(short.feature_BE, long.feature_BE)
    torch.testing.assert_close(
        model.match(image, short.states_BTD, mask_BT), model.match(image, long.states_BTD, wider_BT)
    )
    seen = mask_BT.bool()
    torch.testing.assert_close(
        model.mlm_logits(ids_BT, mask_BT, image)[seen],
        model.mlm_logits(longer_BT, wider_BT, image)[:, :8][seen],
    )


@pytest.mark.parametrize(("old", "new"), [(14, 24), (4, 6), (6, 4), (3, 5)])
def test_a_resized_table_is_scipys_spline_through_offsets_in_geometric_progression(
    old: int, new: int
) -> None:
    g = torch.Generator().manual_seed(0)
    table = torch.randn(image_rows(old) + 2 + text_rows(6), 2, generator=g, dtype=torch.float64)
    resized = resize_table(table, grid=(old, new), window=(6, 6))
    assert len(resized) == image_rows(new) + 2 + text_rows(6)
    q = ratio(old - 1, new - 1)
    known = [sum(q**i for i in range(n + 1)) for n in range(old - 1)]
    places = [-x for x in reversed(known)] + [0.0, *known]
    wanted = [min(max(float(x), places[0]), places[-1]) for x in range(1 - new, new)]
    for column in range(2):
        z = table[: (2 * old - 1) ** 2, column].reshape(2 * old - 1, -1).numpy()
        expected = RectBivariateSpline(places, places, z, kx=3, ky=3, s=0)(wanted, wanted)
        found = resized[: (2 * new - 1) ** 2, column].reshape(2 * new - 1, -1)
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-5, atol=1e-5)
    assert torch.equal(resized[(2 * new - 1) ** 2 :], table[(2 * old - 1) ** 2 :])


def ratio(count: int, reach: int) -> float:
    """q with 1 + q + ... (`count` terms) = `reach`, by Newton's method."""
    q = 1.0
    for _ in range(200):
        value = sum(q**i for i in range(count)) - reach
        q -= value / sum(i * q ** (i - 1) for i in range(1, count))
    return q


def test_a_table_for_longer_texts_continues_with_the_farthest_offset_and_one_for_shorter_is_cut() -> None:
    table = torch.arange(image_rows(2) + 2 + text_rows(5), dtype=torch.float32)[:, None]
    start = image_rows(2) + 2
    longer = resize_table(table, grid=(2, 2), window=(5, 7))[start:, 0] - start
    assert longer.tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 6, 6, 7, 8, 9]
    shorter = resize_table(table, grid=(2, 2), window=(5, 4))[start:, 0] - start
    assert shorter.tolist() == [1, 2, 3, 4, 5, 7, 8, 9]
    with pytest.raises(ValueError, match="a table of 24 rows, but a grid of 3"):
        resize_table(table, grid=(3, 3), window=(5, 5))


# routes


def test_below_the_joint_experts_each_token_takes_its_own_and_above_all_take_the_joint_one() -> None:
    model, batch = build().model, make_batch()
    image = model.embed_image(batch.pictures)
    text = model.embed_text(batch.text_ids_BT)
    model.fuse(text, batch.text_mask_BT, image).sum().backward()
    for layer, block in enumerate(model.transformer.blocks):
        used = {
            name for name, expert in block.experts.items() if expert.feed_forward.up.weight.grad is not None
        }
        assert used == ({"joint"} if layer >= CONFIG.joint_start else {"text", "image"})


def test_the_features_of_evaluation_are_those_of_the_first_branch_and_differ_from_the_joint_one() -> None:
    model, batch = build().model.eval(), make_batch()
    found = model.features(batch, CONTEXT, model.embed_image(batch.pictures))
    image = model.encode_image(batch.pictures)
    text = model.encode_text(batch.text_ids_BT, batch.text_mask_BT)
    torch.testing.assert_close(found[0], image.feature_BE)
    torch.testing.assert_close(found[1], text.feature_BE)
    assert not torch.allclose(found[2], found[0], atol=0.1)


def test_few_pictures_for_many_texts_and_the_negatives_of_a_step_are_matched_pair_by_pair() -> None:
    system, batch = build(), make_batch()
    model = system.model.eval()
    tokens = model.encode_image(batch.pictures).tokens_BND
    states = model.encode_text(batch.text_ids_BT, batch.text_mask_BT).states_BTD
    features = model.features(batch, CONTEXT, tokens)
    no_text, no_image = model.negatives(batch, CONTEXT, features[0], features[1], model.scales()[0])
    own = torch.arange(6)
    assert bool((no_text.index_B != own).all())
    wrong_picture = torch.stack([
        model.match(tokens[j : j + 1], states[i : i + 1], batch.text_mask_BT[i : i + 1])[0]
        for i, j in enumerate(no_image.index_B.tolist())
    ])  # fmt: skip
    torch.testing.assert_close(
        model.match(tokens, states, batch.text_mask_BT, rows_B=no_image.index_B), wrong_picture
    )
    logits = torch.cat([
        model.match(tokens, states, batch.text_mask_BT),
        wrong_picture,
        model.match(tokens, states[no_text.index_B], batch.text_mask_BT[no_text.index_B]),
    ])  # fmt: skip
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([1] * 6 + [0] * 12))
    torch.testing.assert_close(losses(system, batch)["itm"], expected)


# whole words


def test_all_pieces_of_a_word_are_masked_or_none() -> None:
    g = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(5, 30, (64, 12), generator=g)
    ids_BT[:, 0], ids_BT[:, -1] = 2, 3
    continues_V = torch.arange(30) >= 18

    def chosen(continues: Tensor | None) -> Tensor:
        masked = mask_tokens(
            ids_BT, torch.ones_like(ids_BT), context=CONTEXT, row_B=torch.arange(64), probability=0.3,
            mask_id=4, vocab_size=30, keep_ids=(0, 2, 3), continues_V=continues,
        )  # fmt: skip
        found = torch.zeros(ids_BT.numel(), dtype=torch.bool)
        found[masked.index_X] = True
        return found.view_as(ids_BT)

    whole, single = chosen(continues_V), chosen(None)
    split = 0
    for row, ids in enumerate(ids_BT.tolist()):
        for place in range(2, 11):
            if ids[place] >= 18 and place > 1:
                assert whole[row, place] == whole[row, place - 1]
                split += int(single[row, place] != single[row, place - 1])
    assert split > 20, "tokens alone would pass as well"
    assert 0.2 < whole[:, 1:-1].float().mean() < 0.4
    assert not whole[:, [0, -1]].any()


def test_a_system_learns_its_words_from_the_tokenizer_and_refuses_those_of_another() -> None:
    system = build()
    with pytest.raises(ValueError, match="59 ids, but vocab_size is 60"):
        system.learn_words(torch.zeros(59, dtype=torch.bool))
    batch = make_batch()
    before = system.prepare([batch], CONTEXT)[0]["masked"].index_X
    system.learn_words(torch.arange(60) >= 30)
    assert not torch.equal(system.prepare([batch], CONTEXT)[0]["masked"].index_X, before)


# stages


@pytest.mark.parametrize("changes", [{}, ABSOLUTE], ids=["relative", "absolute"])
def test_each_stage_has_the_same_names_and_a_gradient_for_all_it_trains(changes: dict[str, Any]) -> None:
    names, batch = set(), make_batch()
    for stage in vlmo.STAGES:
        system = build(stage=stage, **changes)
        names.add(tuple(sorted(system.model.state_dict())))
        losses(system, batch)["loss"].backward()
        for name, weight in system.model.named_parameters():
            learns = weight.grad is not None and bool(weight.grad.abs().sum() > 0)
            assert learns == weight.requires_grad, f"{name} in stage {stage}"
    assert len(names) == 1


def test_stage_text_needs_no_pictures_and_the_others_say_so() -> None:
    batch = replace(make_batch(), image_BCHW=None)
    assert losses(build(stage="text"), batch)["loss"].isfinite()
    for stage in ("image", "vision_language"):
        with pytest.raises(ValueError, match="texts without pictures"):
            losses(build(stage=stage), batch)


def test_a_step_of_stage_text_leaves_pictures_encoded_as_before() -> None:
    system, batch = build(stage="text"), make_batch()
    before = system.model.encode_image(batch.pictures).feature_BE.detach()
    optimizer = torch.optim.AdamW(parameter_groups(system.model, weight_decay=0.5), lr=0.1)
    first = losses(system, batch)["loss"]
    first.backward()
    optimizer.step()
    assert losses(system, batch)["loss"] != first
    assert torch.equal(system.model.encode_image(batch.pictures).feature_BE, before)


def test_stage_image_predicts_hidden_patches_from_the_visible_ones_alone() -> None:
    system, batch = build(stage="image"), make_batch()
    hidden_BN = vlmo.hide_patches(CONTEXT, batch.row_B, patches=4, probability=0.4)
    assert hidden_BN.sum(dim=1).tolist() == [2] * 6
    whole = losses(system, batch)["loss"]
    scaled = batch.pictures.clone()
    patches = scaled.unfold(2, 8, 8).unfold(3, 8, 8)  # [B, C, 2, 2, 8, 8], a view
    for row, places in enumerate(hidden_BN.tolist()):
        for place, hidden in enumerate(places):
            if hidden:
                patches[row, :, place // 2, place % 2] *= 3.0
    # targets are normalised, so a hidden patch of another scale must not be noticed
    torch.testing.assert_close(losses(system, replace(batch, image_BCHW=scaled))["loss"], whole)
    seen = losses(system, replace(batch, image_BCHW=batch.pictures * 3))["loss"]
    assert (seen - whole).abs() > 1e-4


def test_impossible_configurations_are_refused() -> None:
    for changes, message in (
        ({"stage": "audio"}, "stage 'audio' is unknown; use image, text, vision_language"),
        ({"positions": "rotary"}, "positions 'rotary' is unknown"),
        ({"sep_id": 60}, "sep_id 60 lies outside vocab_size 60"),
        ({"drop_path": 1.0}, "drop_path 1.0 must be at least 0 and below 1"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            replace(CONFIG, **changes)
    with pytest.raises(ValueError, match="joint_start 3 must lie between 0 and depth 3 - 1"):
        build(joint_start=3)
    with pytest.raises(ValueError, match="max_text_length 10 exceeds text_window 8"):
        build(text_window=8)


def test_branches_are_dropped_by_sample_more_often_in_later_layers_and_never_in_evaluation() -> None:
    rows = torch.arange(4000)
    kept = kept_paths(CONTEXT, "x", rows, depth=5, probability=0.4)
    assert kept is not None
    assert torch.equal(kept[7:9], kept_paths(CONTEXT, "x", rows[7:9], depth=5, probability=0.4))
    dropped = (kept == 0).double().mean(dim=(0, 2))
    torch.testing.assert_close(dropped, torch.linspace(0, 0.4, 5).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(kept.mean(dim=(0, 2)), torch.ones(5).double(), atol=0.03, rtol=0)
    system, batch = build(drop_path=0.5), make_batch()
    assert losses(system, batch)["itc"] != losses(build(drop_path=0.0), batch)["itc"]
    system.model.eval()
    plain = build(drop_path=0.0)
    assert losses(system, batch)["loss"] == losses(plain, batch)["loss"]


def test_a_group_of_micro_batches_has_the_contrast_of_the_whole_batch_with_the_same_branches_dropped() -> (
    None
):
    system, batch = build(drop_path=0.5), make_batch()
    whole = losses(system, batch)["itc"]
    parts = []
    for rows in (slice(0, 3), slice(3, 6)):
        parts.append(
            Batch(
                image_BCHW=batch.pictures[rows], text_ids_BT=batch.text_ids_BT[rows],
                text_mask_BT=batch.text_mask_BT[rows], image_id_B=batch.image_id_B[rows],
                row_B=batch.row_B[rows],
            )
        )  # fmt: skip
    with torch.no_grad():
        group = system.prepare(parts, CONTEXT)
    for part, extras in zip(parts, group, strict=True):
        torch.testing.assert_close(system.model(part, CONTEXT, extras)["itc"], whole)
    alone = losses(system, parts[0])["itc"]
    assert not torch.isclose(alone, whole)


def test_biases_by_position_never_decay_and_all_other_matrices_do() -> None:
    groups = parameter_groups(build(stage="text").model, weight_decay=0.1)
    names = {p: n for n, p in build(stage="text").model.named_parameters()}
    assert names
    decayed = [p for g in groups if g["weight_decay"] for p in g["params"]]
    table = build().model.transformer.positions.table.shape
    assert all(p.ndim >= 2 and p.shape != table for p in decayed)
    assert any(p.shape == table for g in groups if not g["weight_decay"] for p in g["params"])


# names


def saved(kind: str) -> dict[str, Any]:
    return json.loads((DATA / f"{kind}_checkpoint.json").read_text())


@pytest.mark.parametrize("kind", ["vlmo", "vlmo_plus"])
def test_every_weight_of_a_published_vlmo_has_its_place_and_every_place_a_weight(kind: str) -> None:
    sizes, published = saved(kind)["config"], saved(kind)["state_dict"]
    relative = kind == "vlmo"
    config = vlmo.Config(
        image_size=sizes["image_size"], patch_size=sizes["patch_size"], width=sizes["hidden"],
        depth=sizes["layers"], heads=sizes["heads"], joint_start=sizes["vl_expert_start_layer"],
        mlp_ratio=sizes["mlp_hidden"] // sizes["hidden"], embed_dim=sizes["hidden"],
        vocab_size=sizes["vocab_size"], max_text_length=sizes["max_text_length"],
        positions="relative" if relative else "absolute", layer_scale=0.1 if relative else 0.0,
    )  # fmt: skip
    with torch.device("meta"):
        ours = vlmo.build(config).model.state_dict()
    placed: dict[str, str] = {}
    for name, shape in published.items():
        place = vlmo_keys.KEYS.ours(name)
        if place is None:
            assert name == "text_embeddings.position_ids"
            continue
        assert place not in placed, f"{name} and {placed[place]} go to {place}"
        assert list(ours[place].shape) == shape, f"{name} -> {place}"
        assert vlmo_keys.KEYS.published(place) == [name]
        placed[place] = name
    fresh = ours.keys() - placed.keys()
    assert fresh == {"pixels.weight", "pixels.bias", "image_embed.mask_token"}
    assert all(any(re.fullmatch(pattern, name) for pattern in vlmo_keys.KEYS.fresh) for name in fresh)
    for name in ("relative_position_index", "text_imag_relative_position_index"):
        assert vlmo_keys.KEYS.ours(name) is None
    with pytest.raises(KeyError):
        vlmo_keys.KEYS.ours("vqa_classifier.0.weight")


def test_beit_fills_the_shared_parts_and_the_image_experts_and_the_rest_is_fresh() -> None:
    with torch.device("meta"):
        ours = vlmo.build(CONFIG).model.state_dict()
    for keys in (vlmo_keys.BEIT_TIMM, vlmo_keys.BEIT_TRANSFORMERS, vlmo_keys.BEIT_TRANSFORMERS_HEADED):
        filled = {name for name in ours if keys.published(name)}
        fresh = {name for name in ours if any(re.fullmatch(pattern, name) for pattern in keys.fresh)}
        assert filled | fresh == ours.keys()
        assert {name.split(".")[0] for name in filled} == {"image_embed", "transformer"}
        blocks = {name.split(".", 3)[3] for name in filled if "blocks" in name}
        assert not any(name.startswith(("experts.text", "experts.joint")) for name in blocks)


def test_one_table_puts_the_tables_of_layers_side_by_side() -> None:
    tables = {f"blocks.{n}.attn.relative_position_bias_table": torch.full((4, 2), n + 1.0) for n in (1, 0)}
    merged = vlmo_keys.one_table({**tables, "norm.bias": torch.ones(1)}, depth=2, rows=6)
    assert merged.keys() == {"norm.bias", "relative_position_bias_table"}
    assert merged["relative_position_bias_table"][[0, 3, 4]].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [0] * 4]
    shared = {"rel_pos_bias.relative_position_bias_table": torch.ones(4, 2)}
    assert vlmo_keys.one_table(shared, depth=3, rows=6)["relative_position_bias_table"].shape == (6, 6)
    with pytest.raises(ValueError, match=r"layers \[0, 1\] of 3"):
        vlmo_keys.one_table(tables, depth=3, rows=6)


def test_base_is_of_the_papers_size() -> None:
    with torch.device("meta"):
        model = vlmo.build(vlmo.SIZES["base"]).model
    d, layers, joint, rows, words = 768, 12, 2, 1126, 30522
    block = 3 * d * d + 2 * d + d * d + d + 2 * d + 2 * d  # qkv, its two biases, out, norm1, both scales
    expert = 2 * d + 8 * d * d + 5 * d
    image = d * 3 * 256 + d + d  # patch projection and [CLS]
    text = words * d + 2 * d + 2 * d  # words, token types, norm: the table of positions is idle
    word_head = d * d + d + 2 * d + words * d + words
    heads = d * d + d + 2 * d + 2 + 4 * d * d + 2  # pooler, matching, four projections, two scales
    total = layers * (block + 2 * expert) + joint * expert + 2 * d + rows * layers * 12
    total += image + text + 2 * d + word_head + heads
    assert sum(p.numel() for p in model.parameters()) == total
    assert math.prod(model.text_embed.position.shape) == 40 * d
