"""ALBEF against its authors' code (frozen), and its parts against timm and transformers.

The frozen step (`make_albef.py`) is one of pre-training in LAVIS: towers, fusion, the choice of negatives,
the momentum update before the teacher's forward, the queue, softened losses, the gradient of every weight.
"""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel

from models.batch import Batch, StepContext
from models.recipes import albef, albef_keys
from tests.fidelity.case import Answers, Case, gradients, in_precision, load, shake
from tests.fidelity.make_albef import BATCH, EPOCH_STEPS, OUTPUT, SEED, STEP, teacher_of


@cache
def frozen(path: Path = OUTPUT) -> tuple[albef.Config, dict[str, Tensor]]:
    """The configuration, and every array by its name."""
    with np.load(path) as arrays:
        config = json.loads(str(arrays["config"]))
        found = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "config"}
    return albef.Config(**config, dropout=0.0), found


def group(found: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in found.items() if name.startswith(prefix)}


def frozen_system(dtype: torch.dtype) -> albef.AlbefSystem:
    """Our system with the frozen weights, teacher and queue."""
    config, found = frozen()
    system = albef.build(config)
    tied = {
        "text_encoder.cls.predictions.decoder.weight": "text_encoder.bert.embeddings.word_embeddings.weight",
        "text_encoder.cls.predictions.decoder.bias": "text_encoder.cls.predictions.bias",
    }
    weights = group(found, "weights/")
    load(system.model, albef_keys.KEYS, {n: v for n, v in weights.items() if n not in tied})
    in_precision(system, dtype)
    with torch.no_grad():
        for (name, weight), copy in zip(
            system.model.named_parameters(), system.teacher.module.parameters(), strict=True
        ):
            if name != "temperature":
                copy.copy_(teacher_of(weight))
    queue = system.queue
    queue.image_QE.copy_(found["image_queue"].T)
    queue.text_QE.copy_(found["text_queue"].T)
    queue.filled = queue.length
    return system


def frozen_batch(dtype: torch.dtype) -> Batch:
    _, found = frozen()
    return Batch(
        image_BCHW=found["image"].to(dtype),
        text_ids_BT=found["ids"],
        text_mask_BT=found["mask"],
        image_id_B=torch.arange(BATCH),
    )


def step(dtype: torch.dtype) -> Answers:
    """One step of pre-training: nothing is handed in but weights, pictures and texts."""
    _, found = frozen()
    system, batch = frozen_system(dtype), frozen_batch(dtype)
    model, teacher = system.model, system.teacher.module
    context = StepContext(seed=SEED, step=STEP, epoch_steps=EPOCH_STEPS)
    system.begin_step(context, model)
    with torch.no_grad():
        [extras] = system.prepare([batch], context)
        image, text = model.encode_image(batch.pictures), model.encode_text(batch.text_ids_BT, found["mask"])
        assert image.tokens_BND is not None
        assert text.states_BTD is not None
        masked = extras["masked"]
        assert torch.equal(masked.ids_BT, found["masked_ids"])
        assert torch.equal(masked.target_X, found["labels"][found["labels"] >= 0])
        scaled = image.feature_BE / model.temperature, text.feature_BE / model.temperature
        no_text, no_image = model._negatives(
            batch, context, extras, image.feature_BE, text.feature_BE, model.temperature
        )
        assert torch.equal(no_text.index_B, found["negative_texts"])
        assert torch.equal(no_image.index_B, found["negative_images"])
        tokens, states, mask = image.tokens_BND, text.states_BTD, found["mask"]
        matching = [
            model.match(tokens, states, mask),
            model.match(tokens[no_image.index_B], states, mask),
            model.match(tokens, states[no_text.index_B], mask[no_text.index_B]),
        ]
        filled = model.mlm_logits(masked.ids_BT, mask, tokens)
        keys = extras["keys"]
        ours = {
            "image tokens": tokens,
            "text states": states,
            "fused states": model.text.fuse(states, mask, tokens),
            "matching logits": torch.cat(matching),
            "word logits": masked.pick(filled),
            "image to text": scaled[0] @ keys.text_KE.T,
            "text to image": scaled[1] @ keys.image_KE.T,
            "teacher's image tokens": teacher.vision(batch.pictures),
            "teacher's text states": teacher.text.encode(batch.text_ids_BT, mask),
            "teacher's word probabilities": extras["soft_XV"],
        }
    losses = model(batch, context, extras)
    losses["loss"].backward()
    system.after_micro_step(batch, extras)
    ours |= {"queue of images": system.queue.image_QE.T, "queue of texts": system.queue.text_QE.T}
    theirs = group(found, "outputs/")
    assert ours.keys() == theirs.keys()
    return {
        "outputs": {name: (value, theirs[name]) for name, value in ours.items()},
        "losses": {name: (losses[name], value) for name, value in group(found, "losses/").items()},
        "gradients": gradients(model, albef_keys.KEYS, group(found, "gradients/")),
    }


BASE = albef.SIZES["base"]
SMALL = albef.Config(
    image_size=32, patch_size=8, vision_width=32, vision_depth=3, vision_heads=4, text_width=32, text_depth=4,
    fusion_start=2, text_heads=4, embed_dim=16, vocab_size=120, text_positions=24, max_text_length=12,
    dropout=0.0,
)  # fmt: skip

IDS = torch.tensor([[101, 7, 8, 9, 102, 0, 0], [101, 11, 12, 13, 14, 15, 102]])
MASK = (IDS > 0).long()


def bert_config(config: albef.Config, depth: int, **extra: Any) -> BertConfig:
    return BertConfig(
        vocab_size=config.vocab_size, hidden_size=config.text_width, num_hidden_layers=depth,
        num_attention_heads=config.text_heads, intermediate_size=4 * config.text_width,
        max_position_embeddings=config.text_positions, hidden_act="gelu", layer_norm_eps=1e-12,
        pad_token_id=0, **extra,
    )  # fmt: skip


def placed(model: albef.AlbefModel, reference: torch.nn.Module, prefix: str) -> None:
    """Copies the reference's weights to the places that the key map gives them."""
    state = {}
    for name, value in reference.state_dict().items():
        if (ours := albef_keys.KEYS.ours(prefix + name)) is not None:
            state[ours] = value
    assert not model.load_state_dict(state, strict=False).unexpected_keys


def part(config: albef.Config, **changes: Any) -> albef.AlbefModel:
    torch.manual_seed(0)
    return albef.AlbefModel(albef.Config(**{**vars(config), "dropout": 0.0, **changes}))


def answer(
    outputs: dict[str, tuple[Tensor, Tensor]], model: Any, reference: torch.nn.Module, prefix: str
) -> Answers:
    """Gradients of one and the same sum over the outputs, which turns every weight."""
    total_ours, total_theirs = (
        torch.stack([(pair[side] * weight_like(pair[1])).sum() for pair in outputs.values()]).sum()
        for side in (0, 1)
    )
    total_ours.backward()
    total_theirs.backward()
    theirs = {prefix + n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    return {"outputs": outputs, "gradients": gradients(model, albef_keys.KEYS, theirs)}


def weight_like(x: Tensor) -> Tensor:
    """A fixed random direction."""
    g = torch.Generator().manual_seed(9)
    return torch.randn(x.shape, generator=g, dtype=torch.float64).to(x.dtype) / x.numel() ** 0.5


def text_half(dtype: torch.dtype, *, config: albef.Config, shaken: float = 0.1) -> Answers:
    """The text half (here the whole depth) and the word predictor."""
    depth = config.text_depth
    reference = BertForMaskedLM(bert_config(config, depth)).eval()
    shake(reference, by=shaken)
    model = part(config, fusion_start=depth)
    placed(model, reference, "text_encoder.")
    model, reference = model.to(dtype), reference.to(dtype)
    expected = reference(IDS, attention_mask=MASK, output_hidden_states=True)
    states_BTD = model.text.encode(IDS, MASK)
    seen = MASK.bool()
    outputs = {
        "states": (states_BTD[seen], expected.hidden_states[-1][seen]),
        "word logits": (model.words(states_BTD)[seen], expected.logits[seen]),
    }
    return answer(outputs, model, reference, "text_encoder.")


def fusion_half(dtype: torch.dtype, *, config: albef.Config, shaken: float = 0.1) -> Answers:
    """The fusion half, from the embedding on."""
    depth = config.text_depth - config.fusion_start
    settings = bert_config(config, depth, is_decoder=True, add_cross_attention=True)
    settings.hidden_dropout_prob = settings.attention_probs_dropout_prob = 0.0
    reference = BertModel(settings, add_pooling_layer=False).eval()
    shake(reference, by=shaken)
    model = part(config, fusion_start=0, text_depth=depth)
    placed(model, reference, "text_encoder.bert.")
    model, reference = model.to(dtype), reference.to(dtype)
    g = torch.Generator().manual_seed(0)
    image_BND = torch.randn(2, 5, config.vision_width, generator=g, dtype=torch.float64).to(dtype)
    # The reference is a decoder, causal by itself; a full 4-d mask makes it look both ways as ALBEF does.
    both_ways = torch.where(MASK[:, None, None, :].bool(), 0.0, -10000.0).to(dtype).expand(-1, 1, 7, -1)
    expected = reference(IDS, attention_mask=both_ways, encoder_hidden_states=image_BND, use_cache=False)
    ours = model.text.fuse(model.text.encode(IDS, MASK), MASK, image_BND)
    outputs = {"states": (ours[MASK.bool()], expected.last_hidden_state[MASK.bool()])}
    return answer(outputs, model, reference, "text_encoder.bert.")


def image_tower(dtype: torch.dtype, *, config: albef.Config, shaken: float = 0.1) -> Answers:
    reference = TimmViT(
        img_size=config.image_size, patch_size=config.patch_size, embed_dim=config.vision_width,
        depth=config.vision_depth, num_heads=config.vision_heads, num_classes=0,
    ).eval()  # fmt: skip
    shake(reference, by=shaken)
    model = part(config)
    placed(model, reference, "visual_encoder.")
    model, reference = model.to(dtype), reference.to(dtype)
    g, side = torch.Generator().manual_seed(0), config.image_size
    image_BCHW = torch.randn(2, 3, side, side, generator=g, dtype=torch.float64).to(dtype)
    outputs = {"tokens": (model.vision(image_BCHW), reference.forward_features(image_BCHW))}
    return answer(outputs, model, reference, "visual_encoder.")


def parts(config: albef.Config, size: str, **options: Any) -> list[Case]:
    rows = [
        ("ALBEF, image tower", "timm VisionTransformer", "timm", image_tower),
        ("ALBEF, text half and word predictor", "transformers BertForMaskedLM", "transformers", text_half),
        (
            "ALBEF, fusion half",
            "transformers BertModel with cross-attention",
            "transformers",
            fusion_half,
        ),
    ]
    return [
        Case(system=s, oracle=o, package=p, size=size, run=partial(f, config=config, **options))
        for s, o, p, f in rows
    ]


CASES = [
    Case(
        system="ALBEF, a step of pre-training",
        oracle="LAVIS 1.0.2 AlbefPretrain, frozen in float64",
        package="",
        run=step,
    ),
    *parts(SMALL, "small"),
    *parts(BASE, "base (ViT-B/16 at 256 px, BERT-base)", shaken=0.01),
]

WITHOUT_ORACLE = [
    "positives by picture, in batch and queue, instead of by the diagonal: against the formula in "
    "`tests/models/test_objectives.py`.",
    "negatives and keys from all processes: two processes against one, every loss, weight and queue, 1e-9 in "
    "float64, in `tests/models/test_recipes_ranks.py`.",
    "token types, which LAVIS leaves out: BertForMaskedLM above.",
    "`large` and `small`, which the paper does not have: the code of `base` with other numbers.",
]
