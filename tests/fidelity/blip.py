"""BLIP against transformers' BLIP: outputs, losses and gradients.

transformers has the two halves, BlipForImageTextRetrieval (encoder) and BlipForConditionalGeneration
(decoder), with weights of their own; the gradient of what BLIP shares is the sum of both. ITM is composed of
its outputs with [ENC] put first; the contrast with teacher and queue, and the draw of negatives, are written
here from the paper's equations (arXiv 2107.07651, 1 and 6; 2201.12086, section 3.2), row by row.

Traps in transformers' defaults: 8 text heads, an epsilon of 1e-5 in the image tower, no label smoothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch, StepContext
from models.recipes import blip, blip_keys
from models.recipes.renames import KeyMap
from tests.fidelity.case import Answers, Case

CONFIG = blip.Config(
    image_size=32, patch_size=8, vision_width=48, vision_depth=3, vision_heads=4, text_width=32, text_depth=3,
    text_heads=4, text_mlp_ratio=3, embed_dim=24, vocab_size=70, sep_id=3, dec_id=68, enc_id=69,
    max_text_length=9, text_positions=40, queue_size=20, dropout=0.0,
)  # fmt: skip
CONTEXT = StepContext(seed=3, step=5, epoch_steps=4)


@dataclass(frozen=True)
class Reference:
    """transformers' two models with the weights of one of ours."""

    encoder: Any
    decoder: Any

    def gradients(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our name -> gradient, summed over the copies of a weight."""
        found: dict[str, Tensor] = {}
        for model, keys in (
            (self.encoder, blip_keys.TRANSFORMERS_RETRIEVAL),
            (self.decoder, blip_keys.TRANSFORMERS_CAPTIONING),
        ):
            for name, weight in model.named_parameters():
                ours = keys.ours(name)
                assert ours is not None
                assert ours in state
                if weight.grad is not None:
                    found[ours] = found.get(ours, 0) + weight.grad
        return found


def transformers_config(config: blip.Config) -> Any:
    from transformers import BlipConfig

    return BlipConfig(
        text_config={
            "vocab_size": config.vocab_size, "hidden_size": config.text_width,
            "encoder_hidden_size": config.vision_width, "projection_dim": config.embed_dim,
            "intermediate_size": config.text_mlp_ratio * config.text_width,
            "num_hidden_layers": config.text_depth, "num_attention_heads": config.text_heads,
            "max_position_embeddings": config.text_positions, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "label_smoothing": 0.1,
            "bos_token_id": config.dec_id, "eos_token_id": config.sep_id, "sep_token_id": config.sep_id,
            "pad_token_id": config.pad_id,
        },
        vision_config={
            "hidden_size": config.vision_width, "intermediate_size": config.mlp_ratio * config.vision_width,
            "num_hidden_layers": config.vision_depth, "num_attention_heads": config.vision_heads,
            "image_size": config.image_size, "patch_size": config.patch_size, "layer_norm_eps": 1e-6,
            "hidden_act": "gelu", "attention_dropout": 0.0,
        },
        projection_dim=config.embed_dim,
        image_text_hidden_size=config.embed_dim,
    )  # fmt: skip


def written(model: nn.Module, keys: KeyMap) -> dict[str, Tensor]:
    """The weights under published names."""
    return {
        name: value.detach().clone()
        for ours, value in model.state_dict().items()
        for name in keys.published(ours)
    }


def reference_of(model: nn.Module, config: blip.Config) -> Reference:
    """transformers' models with the weights of ours."""
    return Reference(encoder=encoder_of(model, config), decoder=decoder_of(model, config))


def encoder_of(model: nn.Module, config: blip.Config) -> Any:
    from transformers import BlipForImageTextRetrieval

    return _twin(BlipForImageTextRetrieval, model, config, blip_keys.TRANSFORMERS_RETRIEVAL)


def decoder_of(model: nn.Module, config: blip.Config) -> Any:
    from transformers import BlipForConditionalGeneration

    return _twin(BlipForConditionalGeneration, model, config, blip_keys.TRANSFORMERS_CAPTIONING)


def _twin(kind: Any, model: nn.Module, config: blip.Config, keys: KeyMap) -> Any:
    """One of transformers' models with the weights of ours, loaded strictly, in our precision."""
    theirs = kind(transformers_config(config)).to(next(model.parameters()).dtype)
    theirs.load_state_dict(written(model, keys), strict=True)
    return theirs.eval()


def shaken(model: nn.Module, *, seed: int, by: float = 0.1) -> None:
    """Every weight moves, biases and norms too, so that each one matters."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name != "temperature":
                weight.add_(by * torch.randn(weight.shape, generator=g).to(weight.dtype))


def make_batch(config: blip.Config, dtype: torch.dtype, *, seed: int, size: int = 5) -> Batch:
    """Texts of different lengths; two captions of one picture."""
    g = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(5, config.vocab_size - 2, (size, config.max_text_length), generator=g)
    length_B = torch.randint(4, config.max_text_length + 1, (size,), generator=g)
    length_B[0] = config.max_text_length
    ids_BT[:, 0] = 2
    ids_BT[torch.arange(size), length_B - 1] = config.sep_id
    mask_BT = (torch.arange(config.max_text_length) < length_B[:, None]).long()
    image = torch.randn(size, 3, config.image_size, config.image_size, generator=g, dtype=torch.float64)
    id_B = torch.arange(size) + 10 * seed
    id_B[1], image[1] = id_B[0], image[0]
    return Batch(
        image_BCHW=image.to(dtype), text_ids_BT=ids_BT * mask_BT, text_mask_BT=mask_BT, image_id_B=id_B
    )


def system_in(dtype: torch.dtype, **changes: Any) -> Any:
    """A BLIP with shaken weights, another teacher, all in one precision."""
    torch.manual_seed(0)
    system = blip.build(replace(CONFIG, **changes))
    system.model.to(dtype)
    shaken(system.model, seed=1)
    if isinstance(system, blip.BlipSystem):
        system.teacher.module.to(dtype)
        system.reset_teacher()
        shaken(system.teacher.module, seed=2)
        system.queue.image_QE = system.queue.image_QE.to(dtype)
        system.queue.text_QE = system.queue.text_QE.to(dtype)
    return system


def outputs(dtype: torch.dtype) -> Answers:
    system = system_in(dtype)
    model, batch = system.model.eval(), make_batch(CONFIG, dtype, seed=1)
    image = model.encode_image(batch.pictures)
    text = model.encode_text(batch.text_ids_BT, batch.text_mask_BT)
    first = _encoder_outputs(model, CONFIG, batch, image, text)
    return {"outputs": first | _decoder_outputs(model, CONFIG, batch, image, text)}


def _encoder_outputs(model: Any, config: blip.Config, batch: Batch, image: Any, text: Any) -> dict[str, Any]:
    encoder = encoder_of(model, config)
    ids, mask = batch.text_ids_BT, batch.text_mask_BT
    real = mask.bool()
    contrast = encoder(ids, batch.pictures, use_itm_head=False, attention_mask=mask)
    matched = encoder(with_first(ids, config.enc_id), batch.pictures, attention_mask=mask)
    return {
        "image tokens": (image.tokens_BND, contrast.last_hidden_state),
        "text states": (model.text.encode(ids, mask)[real], contrast.question_embeds[real]),
        "similarity": (image.feature_BE @ text.feature_BE.T, contrast.itm_score),
        "matching logits": (model.match(image.tokens_BND, text.states_BTD, mask), matched.itm_score),
    }


def _decoder_outputs(model: Any, config: blip.Config, batch: Batch, image: Any, text: Any) -> dict[str, Any]:
    decoder = decoder_of(model, config)
    ids, mask = with_first(batch.text_ids_BT, config.dec_id), batch.text_mask_BT
    said = decoder(batch.pictures, ids, attention_mask=mask).logits
    real = mask.bool()
    return {"next-token logits": (model.lm_logits(ids, mask, image.tokens_BND)[real], said[real])}


def published_size(dtype: torch.dtype) -> Answers:
    """Outputs alone at ViT-B/16 and BERT-base; one half of the reference after the other, for its size."""
    config = blip.SIZES["base"]
    torch.manual_seed(0)
    model = blip.BlipModel(config).to(dtype).eval()
    shaken(model, seed=1, by=0.01)
    batch = make_batch(config, dtype, seed=1, size=2)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    with torch.no_grad():
        image = model.encode_image(batch.pictures)
        text = model.encode_text(batch.text_ids_BT, batch.text_mask_BT)
        for half in (_encoder_outputs, _decoder_outputs):
            found |= half(model, config, batch, image, text)
    return {"outputs": found}


def pretraining(dtype: torch.dtype) -> Answers:
    """The whole step: EMA, teacher, queue of an earlier batch, negatives, three losses, all gradients."""
    return _losses(system_in(dtype), dtype)


def retrieval(dtype: torch.dtype) -> Answers:
    """Fine-tuning for retrieval and filtering: negatives by the online similarity."""
    return _losses(system_in(dtype, objectives=("itc", "itm"), itm_similarity="online"), dtype)


def captioning(dtype: torch.dtype) -> Answers:
    """Fine-tuning to write: LM alone, behind a prompt that is not predicted."""
    prompt = (11, 12, 13)
    system = system_in(dtype, objectives=("lm",), prompt_ids=prompt)
    batch = make_batch(CONFIG, dtype, seed=1)
    theirs = reference_of(system.model, CONFIG)
    loss = system.model(batch, CONTEXT, {})["loss"]
    loss.backward()
    rows = []
    for ids in batch.text_ids_BT.tolist():
        rows.append([CONFIG.dec_id, *prompt, *ids[1:]])
    read = torch.tensor(rows)
    labels = read.masked_fill(read == CONFIG.pad_id, -100)
    labels[:, : 1 + len(prompt)] = -100
    reference = theirs.decoder(batch.pictures, read, attention_mask=(read != 0).long(), labels=labels).loss
    reference.backward()
    return {
        "losses": {"lm": (loss, reference)},
        "gradients": _gradients(system.model, theirs),
    }


def _losses(system: blip.BlipSystem, dtype: torch.dtype) -> Answers:
    config, model = system.config, system.model
    past, batch = (make_batch(config, dtype, seed=seed) for seed in (2, 1))
    [before] = system.prepare([past], CONTEXT)
    system.after_micro_step(past, before)
    averaged = {
        name: config.momentum * value + (1 - config.momentum) * model.state_dict()[name]
        for name, value in system.teacher.state_dict().items()
    }
    system.begin_step(CONTEXT, model)
    [extras] = system.prepare([batch], CONTEXT)
    losses = system.model(batch, CONTEXT, extras)
    losses["loss"].backward()

    theirs = reference_of(model, config)
    twin = blip.BlipModel(config).to(dtype)
    twin.load_state_dict(model.state_dict() | averaged)
    teacher = reference_of(twin, config)
    queue = (before["teacher_image_BE"], before["teacher_text_BE"], past.image_id_B)
    expected, temperature = _reference_losses(theirs, teacher, batch, queue, config, model.temperature)
    sum(expected.values()).backward()  # type: ignore[union-attr]
    compared = _gradients(model, theirs)
    assert model.temperature.grad is not None
    assert temperature.grad is not None
    compared["temperature"] = (model.temperature.grad, temperature.grad)
    return {
        "outputs": {"teacher": (extras["teacher_image_BE"], _features(teacher, batch)[0].detach())},
        "losses": {name: (losses[name], value) for name, value in expected.items()},
        "gradients": compared,
    }


def _reference_losses(
    theirs: Reference,
    teacher: Reference,
    batch: Batch,
    queue: tuple[Tensor, Tensor, Tensor],
    config: blip.Config,
    temperature: Tensor,
) -> tuple[dict[str, Tensor], Tensor]:
    ids, mask = batch.text_ids_BT, batch.text_mask_BT
    temperature = temperature.detach().clone().requires_grad_()
    image, text = _features(theirs, batch)
    with torch.no_grad():
        teacher_image, teacher_text = _features(teacher, batch)
    key_image, key_text = torch.cat([teacher_image, queue[0]]), torch.cat([teacher_text, queue[1]])
    key_id = [*batch.image_id_B.tolist(), *queue[2].tolist()]
    alpha = config.alpha * min(1.0, CONTEXT.step / (config.alpha_warmup * CONTEXT.epoch_steps))

    def contrast(student: Tensor, soft: Tensor, keys: Tensor) -> Tensor:
        rows = []
        for i, own in enumerate(batch.image_id_B.tolist()):
            positive = torch.tensor([float(k == own) for k in key_id], dtype=student.dtype)
            with torch.no_grad():
                opinion = (keys @ soft[i] / temperature).softmax(0)
            target = alpha * opinion + (1 - alpha) * positive / positive.sum()
            rows.append(-(target * (keys @ student[i] / temperature).log_softmax(0)).sum())
        return torch.stack(rows).mean()

    itc = (contrast(image, teacher_image, key_text) + contrast(text, teacher_text, key_image)) / 2
    online = config.itm_similarity == "online"
    candidates = (image, text) if online else (teacher_image, teacher_text)
    wrong_text = _drawn(image, candidates[1], batch, temperature, "itm text")
    wrong_image = _drawn(text, candidates[0], batch, temperature, "itm image")
    enc = with_first(ids, config.enc_id)
    pairs = [
        *((i, i, 1) for i in range(len(batch))),
        *((wrong_image[i], i, 0) for i in range(len(batch))),
        *((i, wrong_text[i], 0) for i in range(len(batch))),
    ]
    rows = []
    for picture, sentence, label in pairs:
        logits = theirs.encoder(
            enc[sentence][None], batch.pictures[picture][None], attention_mask=mask[sentence][None]
        ).itm_score
        rows.append(-logits.log_softmax(-1)[0, label])
    found = {"itc": itc, "itm": torch.stack(rows).mean()}
    if "lm" in config.objectives:
        dec = with_first(ids, config.dec_id)
        labels = dec.masked_fill(dec == config.pad_id, -100)
        found["lm"] = theirs.decoder(batch.pictures, dec, attention_mask=mask, labels=labels).loss
    return found, temperature


def _features(theirs: Reference, batch: Batch) -> tuple[Tensor, Tensor]:
    encoder = theirs.encoder
    out = encoder(batch.text_ids_BT, batch.pictures, use_itm_head=False, attention_mask=batch.text_mask_BT)
    image = F.normalize(encoder.vision_proj(out.last_hidden_state[:, 0]), dim=-1)
    return image, F.normalize(encoder.text_proj(out.question_embeds[:, 0]), dim=-1)


@torch.no_grad()
def _drawn(student: Tensor, keys: Tensor, batch: Batch, temperature: Tensor, purpose: str) -> list[int]:
    """One wrong partner per row: the first whose cumulative weight exceeds the row's uniform number."""
    drawn = []
    uniform = CONTEXT.uniform(purpose, batch.row_B)[:, 0].tolist()
    for i, own in enumerate(batch.image_id_B.tolist()):
        weight = ((keys @ student[i] / temperature).softmax(0) + 1e-4).double().tolist()
        weight = [0.0 if k == own else w for w, k in zip(weight, batch.image_id_B.tolist(), strict=True)]
        left, place = uniform[i] * sum(weight), 0
        while left >= weight[place]:
            left, place = left - weight[place], place + 1
        drawn.append(place)
    return drawn


def _gradients(model: nn.Module, theirs: Reference) -> dict[str, tuple[Tensor, Tensor]]:
    """(ours, reference) of every weight that learns. The bias of a key has no gradient but rounding (a
    softmax does not see what all keys have in common): compared on the scale of the query's."""
    reference = theirs.gradients(model.state_dict())
    found = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad or name == "temperature":
            continue
        assert weight.grad is not None, name
        ours, wanted = weight.grad, reference[name]
        if name.endswith("key.bias"):
            scale = reference[name.replace("key.bias", "query.bias")]
            ours, wanted = torch.cat([ours, scale]), torch.cat([wanted, scale])
        found[name] = (ours, wanted)
    return found


def with_first(ids_BT: Tensor, first_id: int) -> Tensor:
    ids_BT = ids_BT.clone()
    ids_BT[:, 0] = first_id
    return ids_BT


CASES = [
    Case(
        system="BLIP, towers, matching, decoder",
        oracle="transformers' BLIP",
        package="transformers",
        run=outputs,
    ),
    Case(
        system="BLIP, a step of pre-training",
        oracle="transformers' BLIP; ITC, queue and negatives from the paper's equations",
        package="transformers",
        run=pretraining,
    ),
    Case(
        system="BLIP, a step of retrieval and filter fine-tuning",
        oracle="transformers' BLIP; ITC, queue and negatives from the paper's equations",
        package="transformers",
        run=retrieval,
    ),
    Case(
        system="BLIP, a step of captioner fine-tuning",
        oracle="transformers' BLIP",
        package="transformers",
        run=captioning,
    ),
    Case(
        system="BLIP, towers, matching, decoder",
        oracle="transformers' BLIP",
        package="transformers",
        size="base (ViT-B/16 at 224 px, BERT-base)",
        run=published_size,
    ),
]
