"""BLIP: names of published checkpoints, what each mode sees, objectives on and off, added tokens."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models.batch import Batch, StepContext
from models.exported import unique_weights
from models.objectives.lm import continuation, lm_loss
from models.recipes import blip, blip_keys
from models.recipes.renames import KeyMap
from models.tokenizer import load_tokenizer, train_wordpiece
from tests.fidelity.blip import shaken, written

DATA = Path(__file__).parent / "data"
SMALL = blip.Config(
    image_size=16, patch_size=8, vision_width=32, vision_depth=2, vision_heads=2, text_width=24,
    text_depth=2, text_heads=2, embed_dim=16, vocab_size=60, sep_id=3, dec_id=58, enc_id=59,
    max_text_length=10, text_positions=14, queue_size=20, dropout=0.0,
)  # fmt: skip


def make_batch(size: int = 6, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(5, 58, (size, 10), generator=g)
    ids_BT[:, 0] = 2
    mask_BT = torch.ones_like(ids_BT)
    ids_BT[::2, 7:], mask_BT[::2, 7:] = 0, 0
    return Batch(
        image_BCHW=torch.randn(size, 3, 16, 16, generator=g),
        text_ids_BT=ids_BT,
        text_mask_BT=mask_BT,
        image_id_B=torch.arange(size) + 100 * seed,
    )


def build(**changes: Any) -> Any:
    torch.manual_seed(0)
    return blip.build(replace(SMALL, **changes))


def published() -> tuple[blip.Config, dict[str, list[int]], list[list[str]]]:
    saved = json.loads((DATA / "blip_checkpoint.json").read_text())
    sizes, special = saved["config"], saved["config"]["special_token_ids"]
    config = blip.Config(
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        vision_width=sizes["vision_hidden"],
        vision_depth=sizes["vision_layers"],
        vision_heads=sizes["vision_heads"],
        mlp_ratio=sizes["vision_mlp_hidden"] // sizes["vision_hidden"],
        text_width=sizes["text_hidden"],
        text_depth=sizes["text_layers"],
        text_heads=sizes["text_heads"],
        text_mlp_ratio=sizes["text_intermediate"] // sizes["text_hidden"],
        embed_dim=sizes["projection_dim"],
        vocab_size=sizes["vocab_size"],
        text_positions=sizes["max_position_embeddings"],
        max_text_length=sizes["max_text_length"],
        queue_size=sizes["queue_size"],
        pad_id=special["pad"],
        sep_id=special["sep"],
        dec_id=special["dec_bos"],
        enc_id=special["enc"],
    )
    return config, saved["state_dict"], saved["tied"]["shared_groups"]


def placed(keys: KeyMap, names: dict[str, list[int]], ours: dict[str, Any]) -> dict[str, list[str]]:
    """Our name -> the published ones that go there; the shapes agree."""
    found: dict[str, list[str]] = {}
    for name, shape in names.items():
        place = keys.ours(name)
        if place is None:
            assert name.endswith("position_ids")
            continue
        change = keys.change(name)
        value = ours[place] if change is None else change.to_published(ours[place])
        assert list(value.shape) == shape, f"{name} -> {place}"
        found.setdefault(place, []).append(name)
    for place, known in found.items():
        assert sorted(keys.published(place)) == sorted(known)
    return found


def test_every_weight_of_a_published_blip_has_its_place_and_every_place_a_weight() -> None:
    config, names, shared = published()
    system = blip.build(config)
    ours = dict(system.model.state_dict()) | system.state_dict()
    found = placed(blip_keys.KEYS, names, ours)
    # the teacher's temperature is idle, and our queue remembers more
    assert ours.keys() - found.keys() == {"teacher.temperature", "queue.id", "queue.filled"}
    # what is tied there is one weight here, and nothing else is
    together = sorted(sorted(group) for group in found.values() if len(group) > 1)
    assert together == sorted(sorted(group) for group in shared)
    with pytest.raises(KeyError):
        blip_keys.KEYS.ours("text_encoder.pooler.dense.weight")


def test_retrieval_and_captioning_files_have_their_places() -> None:
    config, names, _ = published()
    system = blip.build(config)
    ours = dict(system.model.state_dict()) | system.state_dict()
    queue = {"idx_queue": [1, 32], "ptr_queue": [1]}
    retrieval = {n: s for n, s in names.items() if "decoder" not in n and n != "queue_ptr"} | queue
    found = placed(blip_keys.RETRIEVAL, retrieval, ours)
    check_fresh(blip_keys.RETRIEVAL, system.model, found)
    captioning = {n: s for n, s in names.items() if n.startswith(("visual_encoder.", "text_decoder."))}
    found = placed(blip_keys.CAPTIONING, captioning, ours)
    check_fresh(blip_keys.CAPTIONING, system.model, found)


def check_fresh(keys: KeyMap, model: torch.nn.Module, found: dict[str, list[str]]) -> None:
    """The weights without a published name are exactly those that the map calls fresh."""
    missing = {name for name in model.state_dict() if name not in found}
    assert missing == {n for n in model.state_dict() if any(re.fullmatch(p, n) for p in keys.fresh)} != set()


@pytest.mark.parametrize("objectives", [("lm",), ("itc", "itm"), ("itc",), ("itc", "lm")])
def test_what_no_objective_asks_is_frozen_and_all_else_learns(objectives: tuple[str, ...]) -> None:
    system = build(objectives=objectives, itm_similarity="online")
    batch, context = make_batch(), StepContext(seed=1, step=3, epoch_steps=2)
    system.begin_step(context, system.model)
    losses = system.model(batch, context, system.prepare([batch], context)[0])
    assert set(objectives) == losses.keys() & set(blip.OBJECTIVES)
    losses["loss"].backward()
    for name, weight in system.model.named_parameters():
        learns = weight.grad is not None and bool(weight.grad.abs().sum() > 0)
        assert learns == weight.requires_grad, name
    frozen = {n for n, p in system.model.named_parameters() if not p.requires_grad}
    assert ("lm_head.bias" in frozen) == ("lm" not in objectives)
    assert ("temperature" in frozen) == ("itc" not in objectives)
    assert ("text.layers.0.attention.query.weight" in frozen) == (objectives == ("lm",))


def test_writing_alone_keeps_no_state() -> None:
    system = build(objectives=("lm",))
    assert system.state_dict() == {}
    with pytest.raises(ValueError, match="itm draws its negatives by the contrast"):
        replace(SMALL, objectives=("itm", "lm"))
    with pytest.raises(ValueError, match="give one or more of itc, itm, lm"):
        replace(SMALL, objectives=("mlm",))
    with pytest.raises(ValueError, match="prompt of 5 tokens"):
        replace(SMALL, prompt_ids=(1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match=r"'a picture of ' has no prompt_ids"):
        build(prompt="a picture of ")


def test_modes_see_what_they_should() -> None:
    model, batch = build().model.eval(), make_batch()
    ids, mask, tokens = batch.text_ids_BT, batch.text_mask_BT, model.encode_image(batch.image_BCHW).tokens_BND
    changed = ids.clone()
    changed[:, 5] = 7 + (ids[:, 5] == 7).long()
    # the decoder: token 5 changes what is predicted from there on, nothing before
    logits, other = (model.lm_logits(blip.opened(x, 58), mask, tokens) for x in (ids, changed))
    assert torch.equal(logits[:, :5], other[:, :5])
    assert not torch.isclose(logits[:, 5:7], other[:, 5:7]).all(dim=-1).any()
    assert not torch.allclose(logits, model.lm_logits(blip.opened(ids, 58), mask, tokens.flip(0)))
    # the grounded encoder: every token and the picture matter to the first state, padding does not
    text, elsewhere = model.encode_text(ids, mask), model.encode_text(changed, mask)
    matched = model.match(tokens, text.states_BTD, mask)
    assert not torch.isclose(matched, model.match(tokens, elsewhere.states_BTD, mask)).any()
    assert not torch.isclose(matched, model.match(tokens.flip(0), text.states_BTD, mask)).any()
    padded = ids.clone()
    padded[::2, 8] = 9
    assert torch.allclose(matched, model.match(tokens, model.encode_text(padded, mask).states_BTD, mask))
    # its first token is [ENC]
    grounded = model.text.run(model.text.embed(blip.opened(ids, 59)), mask, tokens)
    assert torch.allclose(matched, model.itm_head(grounded[:, 0]))


def test_one_pass_equals_each_mode_alone() -> None:
    system = build()
    model, batch, context = system.model, make_batch(), StepContext(seed=1, step=3, epoch_steps=2)
    [extras] = system.prepare([batch], context)
    seen: dict[str, Any] = {}
    hook = model.itm_head.register_forward_hook(lambda module, given, out: seen.update(itm=out))
    losses = model(batch, context, extras)
    hook.remove()
    ids, mask = batch.text_ids_BT, batch.text_mask_BT
    image, text = model.encode_image(batch.image_BCHW), model.encode_text(ids, mask)
    torch.testing.assert_close(seen["itm"][:6], model.match(image.tokens_BND, text.states_BTD, mask))
    logits = model.lm_logits(blip.opened(ids, 58), mask, image.tokens_BND)
    target = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    expected = F.cross_entropy(logits[:, :-1].transpose(1, 2), target, label_smoothing=0.1)
    torch.testing.assert_close(losses["lm"], expected)
    parts = losses["itc"] + losses["itm"] + losses["lm"]
    torch.testing.assert_close(losses["loss"].detach(), parts)


def test_a_prompt_is_read_and_not_predicted() -> None:
    ids = torch.tensor([[2, 7, 8, 3, 0], [2, 9, 10, 11, 3]])
    text = continuation(ids, (ids != 0).long(), first_id=58, prompt_ids=(40, 41))
    assert text.ids_BT.tolist() == [[58, 40, 41, 7, 8, 3, 0], [58, 40, 41, 9, 10, 11, 3]]
    assert text.mask_BT.tolist() == [[1, 1, 1, 1, 1, 1, 0], [1] * 7]
    assert text.target_X.tolist() == [7, 8, 3, 9, 10, 11, 3]
    assert text.index_X.tolist() == [2, 3, 4, 9, 10, 11, 12]  # the position before each target


def test_transformers_names_read_as_they_were_written() -> None:
    model = build().model
    shaken(model, seed=1)
    ours = model.state_dict()
    for keys in (
        blip_keys.TRANSFORMERS,
        blip_keys.TRANSFORMERS_CAPTIONING,
        blip_keys.TRANSFORMERS_RETRIEVAL,
        blip_keys.KEYS,
    ):
        names = written(model, keys)
        for name, value in names.items():
            place = keys.ours(name)
            assert place is not None
            assert torch.equal(ours[place], value)
        fresh = {n for n in ours if any(re.fullmatch(p, n) for p in keys.fresh)}
        assert {keys.ours(name) for name in names} == ours.keys() - fresh


def test_dropout_is_the_students_and_only_in_training() -> None:
    batch, context = make_batch(), StepContext(seed=1, step=3, epoch_steps=2)
    plain, dropped = build(), build(dropout=0.3)
    expected = plain.prepare([batch], context)[0]
    extras = dropped.prepare([batch], context)[0]
    assert torch.equal(extras["teacher_text_BE"], expected["teacher_text_BE"])
    without = plain.model(batch, context, expected)
    for name in ("itc", "itm", "lm"):
        assert dropped.model.train()(batch, context, extras)[name] != without[name]
        assert dropped.model.eval()(batch, context, extras)[name] == without[name]


def test_label_smoothing_spreads_over_the_whole_vocabulary() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([1, 0, 4])
    wanted = torch.full((3, 5), 0.1 / 5)
    wanted[torch.arange(3), target] += 0.9
    expected = -(wanted * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(lm_loss(logits, target, smoothing=0.1), expected)
    assert lm_loss(logits[:0], target[:0]) == 0


def test_negatives_by_the_online_similarity_are_those_of_the_student() -> None:
    """With a teacher of other weights the two similarities draw otherwise; only `teacher` asks it."""
    batch, context = make_batch(), StepContext(seed=1, step=3, epoch_steps=2)
    itm = {}
    for kind in ("teacher", "online"):
        for moved in (False, True):
            system = build(itm_similarity=kind, objectives=("itc", "itm"), temperature=0.01)
            with torch.no_grad():
                if moved:
                    for weight in system.teacher.module.parameters():
                        weight.mul_(torch.linspace(-2, 2, weight.numel()).reshape(weight.shape))
            [extras] = system.prepare([batch], context)
            itm[kind, moved] = system.model(batch, context, extras)["itm"].item()
    assert itm["online", True] == itm["online", False] == pytest.approx(itm["teacher", False])
    assert itm["teacher", True] != itm["teacher", False]


def test_each_weight_is_exported_once() -> None:
    weights, tied = unique_weights(build().model)
    assert tied == {}
    names = [n for n in weights if "word" in n]
    assert names == ["text.embed.word.weight"]


def test_a_group_of_micro_batches_is_contrasted_with_itself() -> None:
    system = build()
    batches = [make_batch(seed=s) for s in range(3)]
    group = system.prepare(batches, StepContext(seed=1, step=3))
    for extras in group:
        assert extras["keys"].id_K.tolist() == torch.cat([b.image_id_B for b in batches]).tolist()


def test_base_and_large_have_the_published_sizes() -> None:
    def count(size: str) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in blip.BlipModel(blip.SIZES[size]).parameters())

    # embeddings, 12 layers of two self-attentions, cross-attention and feed-forward, word predictor
    attention, feed_forward, norm = 4 * (768 * 768 + 768), 2 * 768 * 3072 + 3072 + 768, 2 * 768

    def text(memory: int) -> int:
        cross = 2 * (768 * 768 + 768) + 2 * (memory * 768 + 768)
        layers = 12 * (2 * (attention + norm) + cross + norm + feed_forward + norm)
        return (30524 + 512) * 768 + norm + layers + (768 * 768 + 768 + norm + 30524)

    heads = 768 * 256 + 256 + 768 * 2 + 2 + 1
    base = 85_798_656  # timm's vit_base_patch16_224 without its classifier
    large = 303_301_632  # vit_large_patch16_224
    assert count("base") == base + text(768) + heads + 768 * 256 + 256
    assert count("large") == large + text(1024) + heads + 1024 * 256 + 256


def test_fitting_adds_the_tokens_and_the_saved_folder_holds_them(tmp_path: Path) -> None:
    words = ["a red square", "a picture of a blue square"]
    tokenizer = train_wordpiece(words, vocab_size=80, folder=tmp_path / "trained")
    before, plain = tokenizer.vocab_size, tokenizer.encode(words, 12)[0].tolist()
    config = tokenizer.fit(replace(blip.SIZES["tiny"], prompt="a picture of "))
    assert (config.vocab_size, config.dec_id, config.enc_id) == (before + 2, before, before + 1)
    assert tokenizer.encode(words, 12)[0].tolist() == plain
    # a text with the prompt in front is the prompt's tokens and then the text's
    whole = tokenizer.encode(["a picture of a red square"], 12)[0][0].tolist()
    assert whole[1 : 1 + len(config.prompt_ids)] == list(config.prompt_ids)
    assert whole[1 + len(config.prompt_ids) :] == plain[0][1 : 1 + len(whole) - len(config.prompt_ids) - 1]
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.fit(config) == config
    assert again.vocab_size == before + 2
    assert again.decode([config.dec_id, *plain[0][1:-1], 3]) == "a red square"
