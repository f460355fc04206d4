"""VLMo against timm's and transformers' BEiT (the image path) and a reference from the paper (the rest)."""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models.beit import Beit
from torch import Tensor
from transformers import BeitConfig, BeitModel

from models.batch import Batch, StepContext
from models.objectives.gather import pad_columns
from models.recipes import vlmo, vlmo_keys
from models.recipes.renames import KeyMap, Part, join
from tests.fidelity.case import Answers, Case, gradients, shake
from tests.fidelity.vlmo_reference import Reference, Shape

SMALL = vlmo.Config(
    image_size=12, patch_size=4, width=32, depth=3, heads=4, joint_start=2, embed_dim=32, vocab_size=40,
    cls_id=2, sep_id=3, mask_id=4, max_text_length=9, text_window=14, mlm_probability=0.7, drop_path=0.0,
)  # fmt: skip
PLUS = vlmo.Config(**{**vars(SMALL), "positions": "absolute", "layer_scale": 0.0})
CONTEXT = StepContext(seed=2, step=7)


def make_batch(config: vlmo.Config, dtype: torch.dtype) -> Batch:
    """Four pairs; the texts are of different lengths, and none as long as they may be."""
    g = torch.Generator().manual_seed(0)
    lengths = [4, 7, 5, 6]
    ids_BT = torch.zeros(4, max(lengths), dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    for row, length in enumerate(lengths):
        ids_BT[row, :length] = torch.randint(5, config.vocab_size, (length,), generator=g)
        ids_BT[row, 0], ids_BT[row, length - 1], mask_BT[row, :length] = config.cls_id, config.sep_id, 1
    pixels = torch.randn(4, 3, config.image_size, config.image_size, generator=g, dtype=torch.float64)
    return Batch(
        image_BCHW=pixels.to(dtype), text_ids_BT=ids_BT, text_mask_BT=mask_BT, image_id_B=torch.arange(4)
    )


def published(model: vlmo.VlmoModel) -> dict[str, Tensor]:
    """Copies of the weights under their published names, ready for gradients."""
    found = {}
    for name, value in model.state_dict().items():
        for other in vlmo_keys.KEYS.published(name):
            found[other] = value.detach().clone().requires_grad_()
    return found


def shape_of(config: vlmo.Config) -> Shape:
    return Shape(
        heads=config.heads, layers=config.depth, vl_start=config.joint_start, patch=config.patch_size,
        grid=config.image_size // config.patch_size, text_len=config.max_text_length,
        window=config.text_window,
    )  # fmt: skip


def build(config: vlmo.Config, dtype: torch.dtype) -> tuple[vlmo.VlmoSystem, Reference]:
    torch.manual_seed(0)
    system = vlmo.build(config)
    shake(system.model, by=0.2)
    with torch.no_grad():  # two different ones
        system.model.joint_logit_scale.add_(0.3)
    system.model.to(dtype)
    return system, Reference(published(system.model), shape_of(config))


def labels(batch: Batch, extras: dict[str, Any], length: int) -> tuple[Tensor, Tensor]:
    """What the masked texts are and what they hide, padded to `length`, -100 elsewhere."""
    masked = extras["masked"]
    hidden_BT = torch.full_like(batch.text_ids_BT, -100)
    hidden_BT.view(-1)[masked.index_X] = masked.target_X
    assert len(masked.index_X) > 4, "too few words are masked for a comparison"
    missing = torch.full((len(batch), length - hidden_BT.shape[1]), -100)
    return pad_columns(masked.ids_BT, length), torch.cat([hidden_BT, missing], dim=1)


def vision_language(dtype: torch.dtype, *, config: vlmo.Config) -> Answers:
    system, reference = build(config, dtype)
    model, batch = system.model, make_batch(config, dtype)
    [extras] = system.prepare([batch], CONTEXT)
    ours = model(batch, CONTEXT, extras)
    ours["loss"].backward()

    features = model.features(batch, CONTEXT, model.embed_image(batch.pictures))
    no_text, no_image = model.negatives(batch, CONTEXT, features[0], features[1], model.scales()[0])
    pictures = batch.pictures
    ids, mask = (pad_columns(x, config.max_text_length) for x in (batch.text_ids_BT, batch.text_mask_BT))
    holes, hidden = labels(batch, extras, config.max_text_length)
    itc = reference.itc(pictures, ids, mask)
    itm = reference.itm(pictures, ids, mask, no_image.index_B.tolist(), no_text.index_B.tolist())
    states = [reference.together(*sample) for sample in zip(holes, mask, pictures, strict=True)]
    mlm = reference.mlm(states, hidden)
    loss = itc + itm + 0.25 * mlm
    loss.backward()

    tokens, texts = model.encode_image(pictures), model.encode_text(batch.text_ids_BT, batch.text_mask_BT)
    seen = batch.text_mask_BT.bool()
    words = torch.stack([reference.words(state) for state in states])[:, : seen.shape[1]]
    pairs = list(zip(ids, mask, pictures, strict=True))
    alone = [reference.text(t, m) for t, m, _ in pairs]
    shown = [reference.image(p) for p in pictures]
    return {
        "outputs": {
            "image feature": (tokens.feature_BE, _stack(reference, shown, 0, "itc_image_proj")),
            "text feature": (texts.feature_BE, _stack(reference, alone, 0, "itc_text_proj")),
            "joint image feature": (features[2], _stack(reference, shown, 1, "itc_vl_image_proj")),
            "joint text feature": (features[3], _stack(reference, alone, 1, "itc_vl_text_proj")),
            "match": (
                model.match(tokens.tokens_BND, texts.states_BTD, batch.text_mask_BT),
                torch.stack([reference.match(*pair) for pair in pairs]),
            ),
            "words": (
                model.mlm_logits(holes[:, : seen.shape[1]], batch.text_mask_BT, tokens.tokens_BND)[seen],
                words[seen],
            ),
        },
        "losses": {
            "itc": (ours["itc"], itc),
            "itm": (ours["itm"], itm),
            "mlm": (ours["mlm"], mlm),
            "loss": (ours["loss"], loss),
        },
        "gradients": compared(model, reference),
    }


def _stack(reference: Reference, branches: list[tuple[Tensor, Tensor]], index: int, head: str) -> Tensor:
    return torch.stack([reference.feature(branch[index], head) for branch in branches])


def compared(model: vlmo.VlmoModel, reference: Reference) -> dict[str, tuple[Tensor, Tensor]]:
    """Gradients; the row of padding has none here, as torch's embedding (and the released code) has it."""
    found = {name: w.grad for name, w in reference.w.items() if w.grad is not None}
    for name, grad in found.items():
        if name.endswith("word_embeddings.weight"):
            grad[model.config.pad_id] = 0
    return gradients(model, vlmo_keys.KEYS, found)


def text_alone(dtype: torch.dtype, *, config: vlmo.Config) -> Answers:
    """Stage text: only what it trains has a gradient."""
    system, reference = build(vlmo.Config(**{**vars(config), "stage": "text"}), dtype)
    model, batch = system.model, make_batch(config, dtype)
    [extras] = system.prepare([batch], CONTEXT)
    ours = model(batch, CONTEXT, extras)["loss"]
    ours.backward()
    mask = pad_columns(batch.text_mask_BT, config.max_text_length)
    holes, hidden = labels(batch, extras, config.max_text_length)
    states = [reference.text(t, m)[0] for t, m in zip(holes, mask, strict=True)]
    loss = reference.mlm(states, hidden)
    loss.backward()
    frozen = {n for name, p in model.named_parameters() if not p.requires_grad for n in
              vlmo_keys.KEYS.published(name)}  # fmt: skip
    for name in frozen:
        reference.w[name].grad = None
    return {"losses": {"mlm": (ours, loss)}, "gradients": compared(model, reference)}


def against_beit(dtype: torch.dtype, *, oracle: str, config: vlmo.Config) -> Answers:
    """The image path: BEiT's weights in the image experts, and no embedding of the modality."""
    torch.manual_seed(0)
    reference = timm_beit(config) if oracle == "timm" else transformers_beit(config)
    keys = vlmo_keys.BEIT_TIMM if oracle == "timm" else vlmo_keys.BEIT_TRANSFORMERS
    shake(reference)
    names = {n: n for n in reference.state_dict()} if oracle == "timm" else saved_names(reference)
    model = vlmo.build(config).model
    load_beit(model, keys, {names[n]: v for n, v in reference.state_dict().items()})
    model, reference = model.to(dtype), reference.to(dtype).eval()
    pictures = make_batch(config, dtype).pictures
    theirs = (
        reference.forward_features(pictures) if oracle == "timm" else reference(pictures).last_hidden_state
    )
    ours = model.transformer(model.embed_image(pictures), route="image")
    weigh = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        dtype
    )
    (ours * weigh).sum().backward()
    (theirs * weigh).sum().backward()
    grads = {names[n]: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    tables = vlmo_keys.one_table(grads, depth=config.depth, rows=len(_table(model)))
    model.modality.weight.grad = None  # BEiT has no such weight
    return {"outputs": {"states": (ours, theirs)}, "gradients": beit_gradients(model, keys, tables)}


def _table(model: vlmo.VlmoModel) -> Tensor:
    return model.transformer.positions.table if model.transformer.positions is not None else torch.zeros(0)


def saved_names(reference: BeitModel) -> dict[str, str]:
    """Name in memory -> name in the files that transformers writes and reads; values tell which is which."""
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        saved = load_file(f"{folder}/model.safetensors")
    return {
        name: next(n for n, v in saved.items() if v.shape == value.shape and torch.equal(v, value))
        for name, value in reference.state_dict().items()
    }


def load_beit(model: vlmo.VlmoModel, keys: KeyMap, weights: dict[str, Tensor]) -> None:
    rows = len(_table(model))
    state: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for name, value in vlmo_keys.one_table(weights, depth=model.config.depth, rows=rows).items():
        place, change = keys.ours(name), keys.change(name)
        if place is None:
            continue
        if isinstance(change, Part):
            parts.setdefault(place, {})[change.index] = value
        else:
            state[place] = value
    state |= {place: join(thirds) for place, thirds in parts.items()}
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys, left.unexpected_keys
    with torch.no_grad():
        model.modality.weight.zero_()


def beit_gradients(
    model: vlmo.VlmoModel, keys: KeyMap, found: dict[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """As `gradients`, but query, key and value of transformers are parts of one weight here."""
    parts: dict[str, dict[int, Tensor]] = {}
    for name in list(found):
        if isinstance(change := keys.change(name), Part):
            place = keys.ours(name)
            assert place is not None
            parts.setdefault(place, {})[change.index] = found.pop(name)
    weights = dict(model.named_parameters())
    pairs = {}
    for place, thirds in parts.items():
        grad, weights[place].grad = weights[place].grad, None
        assert grad is not None
        pairs[place] = (grad, join(thirds))
    return pairs | gradients(model, keys, found)


def timm_beit(config: vlmo.Config) -> Beit:
    relative = config.positions == "relative"
    return Beit(
        img_size=config.image_size, patch_size=config.patch_size, num_classes=0, global_pool="token",
        embed_dim=config.width, depth=config.depth, num_heads=config.heads, mlp_ratio=config.mlp_ratio,
        init_values=config.layer_scale or None, use_abs_pos_emb=not relative, use_rel_pos_bias=relative,
    )  # fmt: skip


def transformers_beit(config: vlmo.Config) -> BeitModel:
    relative = config.positions == "relative"
    return BeitModel(
        BeitConfig(
            hidden_size=config.width, num_hidden_layers=config.depth, num_attention_heads=config.heads,
            intermediate_size=config.mlp_ratio * config.width, image_size=config.image_size,
            patch_size=config.patch_size, layer_norm_eps=1e-6, use_mask_token=False,
            use_absolute_position_embeddings=not relative, use_relative_position_bias=relative,
            layer_scale_init_value=config.layer_scale, use_mean_pooling=False, drop_path_rate=0.0,
        ),
        add_pooling_layer=False,
    )  # fmt: skip


def case(part: str, run: Any, config: vlmo.Config, oracle: str, package: str = "") -> Case:
    kind = "relative positions" if config.positions == "relative" else "base_plus: absolute positions"
    return Case(
        system=f"VLMo, {part} ({kind})", oracle=oracle, package=package, run=partial(run, config=config)
    )


PAPER = "tests/fidelity/vlmo_reference.py, written from the paper"
CASES = [
    case("vision-language", vision_language, SMALL, PAPER),
    case("vision-language", vision_language, PLUS, PAPER),
    case("text alone", text_alone, SMALL, PAPER),
    case("text alone", text_alone, PLUS, PAPER),
    case("image path as in timm", partial(against_beit, oracle="timm"), SMALL, "timm Beit", "timm"),
    case("image path as in timm", partial(against_beit, oracle="timm"), PLUS, "timm Beit", "timm"),
    case(
        "image path as in transformers",
        partial(against_beit, oracle="hf"),
        SMALL,
        "transformers BeitModel",
        "transformers",
    ),
    case(
        "image path as in transformers",
        partial(against_beit, oracle="hf"),
        PLUS,
        "transformers BeitModel",
        "transformers",
    ),
]
