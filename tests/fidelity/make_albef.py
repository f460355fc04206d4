"""Makes tests/fidelity/data/albef_lavis.npz: one pre-training step of ALBEF in its authors' own code.

The code is `AlbefPretrain` of salesforce-lavis 1.0.2 (LAVIS, from the authors of ALBEF). Its pins are years
old, so it cannot be installed beside what this project runs on; what it computed is frozen instead. Again:

    pip install --no-deps --target lavis salesforce-lavis==1.0.2 transformers==4.28.1 tokenizers==0.13.3 \
        timm==0.4.12 huggingface-hub==0.17.3 omegaconf antlr4-python3-runtime==4.9.3 iopath portalocker
    python -m tests.fidelity.make_albef lavis

What is stubbed or steered, and why:
- packages that LAVIS imports but this model does not use, and the tokenizer, which would be downloaded;
- random choices: masked words and negatives are ours (`StepContext.uniform` through the same row's cumulative
  weights), so that a comparison needs no injection on our side;
- token types: LAVIS leaves them out, the original ALBEF adds row 0; it is added by a wrapper here;
- dropout 0, momentum 0.5 (so that the order of update and teacher's forward shows), and all weights shaken.

Everything is computed in float64 from float32 weights. The teacher's weights before the step are a function
of the student's (`teacher_of`), not stored.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.batch import StepContext
from models.objectives.mlm import mask_tokens

OUTPUT = Path(__file__).parent / "data" / "albef_lavis.npz"
#: names as in `models.recipes.albef.Config`
CONFIG: dict[str, Any] = {
    "image_size": 16, "patch_size": 8, "vision_width": 16, "vision_depth": 2, "vision_heads": 2,
    "text_width": 16, "text_depth": 4, "fusion_start": 2, "text_heads": 2, "mlp_ratio": 4, "embed_dim": 8,
    "vocab_size": 60, "pad_id": 0, "cls_id": 2, "mask_id": 4, "max_text_length": 9, "text_positions": 12,
    "mlm_probability": 0.4, "queue_size": 16, "momentum": 0.5, "alpha": 0.4, "alpha_warmup": 2.0,
    "temperature": 0.07,
}  # fmt: skip
SEED, STEP, EPOCH_STEPS, BATCH = 5, 3, 4, 4


def teacher_of(weight: Tensor) -> Tensor:
    """The teacher's weight before the step, from the student's."""
    return 0.7 * weight + 0.3 * weight.flatten().roll(1).reshape(weight.shape)


def import_lavis(folder: str) -> tuple[Any, Any, Any]:
    """The three classes, without running the packages' own __init__ (they import all of LAVIS)."""
    sys.path.insert(0, folder)
    np.Inf = np.inf  # type: ignore[attr-defined]

    def stub(name: str, **names: Any) -> types.ModuleType:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__dict__.update(names)
        sys.modules[name] = module
        return module

    for package in ("lavis", "lavis.models", "lavis.common"):
        stub(package).__path__ = [str(Path(folder) / package.replace(".", "/"))]

    class Registry:
        @staticmethod
        def register_model(_: str) -> Any:
            return lambda found: found

    nothing = lambda *a, **k: None  # noqa: E731
    stub("lavis.common.registry", registry=Registry)
    stub("lavis.common.utils", get_abs_path=nothing, is_url=nothing)
    stub("lavis.common.dist_utils", download_cached_file=nothing, is_dist_avail_and_initialized=lambda: False)
    stub("lavis.common.logger", MetricLogger=None)
    for name in ("fairscale", "fairscale.nn", "fairscale.nn.checkpoint"):
        stub(name)
    stub("fairscale.nn.checkpoint.checkpoint_activations", checkpoint_wrapper=nothing)
    stub("torch._six", container_abcs=__import__("collections.abc").abc)

    from lavis.models.albef_models.albef_pretrain import AlbefPretrain  # type: ignore[import-not-found]
    from lavis.models.med import BertForMaskedLM  # type: ignore[import-not-found]
    from lavis.models.vit import VisionTransformerEncoder  # type: ignore[import-not-found]

    return AlbefPretrain, BertForMaskedLM, VisionTransformerEncoder


class Tokens:
    """What the model asks of a tokenizer: it gives the ids it was made with."""

    pad_token_id, cls_token_id, mask_token_id = CONFIG["pad_id"], CONFIG["cls_id"], CONFIG["mask_id"]

    def __init__(self, ids_BT: Tensor, mask_BT: Tensor) -> None:
        self.input_ids, self.attention_mask = ids_BT, mask_BT

    def __call__(self, *_: Any, **__: Any) -> Tokens:
        return self

    def to(self, _: Any) -> Tokens:
        return self


def inputs() -> dict[str, Tensor]:
    """Pictures, texts of different lengths, and a full queue."""
    g = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(5, CONFIG["vocab_size"], (BATCH, CONFIG["max_text_length"]), generator=g)
    mask_BT = torch.ones_like(ids_BT)
    ids_BT[:, 0] = CONFIG["cls_id"]
    for row, length in enumerate((9, 5, 7, 9)):
        ids_BT[row, length - 1], ids_BT[row, length:], mask_BT[row, length:] = 3, CONFIG["pad_id"], 0
    queue = torch.nn.functional.normalize(
        torch.randn(2, CONFIG["embed_dim"], CONFIG["queue_size"], generator=g), dim=1
    )
    size = CONFIG["image_size"]
    return {
        "image": torch.randn(BATCH, 3, size, size, generator=g),
        "ids": ids_BT,
        "mask": mask_BT,
        "image_queue": queue[0],
        "text_queue": queue[1],
    }


def make_model(folder: str, given: dict[str, Tensor]) -> Any:
    """AlbefPretrain at the small configuration, weights shaken, in float64."""
    pretrain, masked_lm, vision = import_lavis(folder)
    from transformers import BertConfig

    c = CONFIG
    config = BertConfig(
        vocab_size=c["vocab_size"], hidden_size=c["text_width"], num_hidden_layers=c["text_depth"],
        num_attention_heads=c["text_heads"], intermediate_size=c["mlp_ratio"] * c["text_width"],
        max_position_embeddings=c["text_positions"], hidden_act="gelu", layer_norm_eps=1e-12,
        pad_token_id=c["pad_id"], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        fusion_layer=c["fusion_start"], encoder_width=c["vision_width"], add_type_embeddings=True,
        add_cross_attention=True,
    )  # fmt: skip
    pretrain.init_tokenizer = classmethod(lambda cls: Tokens(given["ids"], given["mask"]))
    torch.manual_seed(0)
    image_encoder = vision(
        img_size=c["image_size"], patch_size=c["patch_size"], embed_dim=c["vision_width"],
        depth=c["vision_depth"], num_heads=c["vision_heads"], mlp_ratio=c["mlp_ratio"], qkv_bias=True,
        num_classes=0,
    )  # fmt: skip
    image_encoder.vision_width = c["vision_width"]
    model = pretrain(
        image_encoder=image_encoder, text_encoder=masked_lm(config), queue_size=c["queue_size"],
        embed_dim=c["embed_dim"], mlm_mask_prob=c["mlm_probability"], temp=c["temperature"],
        momentum=c["momentum"], alpha=c["alpha"], max_txt_len=c["max_text_length"],
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name != "temp":
                weight.add_(0.15 * torch.randn_like(weight))
    model.double()
    with torch.no_grad():
        for ours, momentum in model.model_pairs:
            for weight, copy in zip(ours.parameters(), momentum.parameters(), strict=True):
                copy.copy_(teacher_of(weight))
        model.image_queue.copy_(given["image_queue"])
        model.text_queue.copy_(given["text_queue"])
    for encoder in (model.text_encoder, model.text_encoder_m):
        embeddings = encoder.bert.embeddings
        plain = embeddings.forward
        embeddings.forward = lambda input_ids=None, token_type_ids=None, _plain=plain, **k: _plain(
            input_ids, token_type_ids=torch.zeros_like(input_ids), **k
        )
    return model


def main(folder: str) -> None:
    given = inputs()
    model = make_model(folder, given)
    # In float32 and back, so that the file's weights are the ones computed with.
    weights = {name: value.detach().float().clone() for name, value in model.named_parameters()}
    weights = {name: value for name, value in weights.items() if not name.split(".")[0].endswith("_m")}
    with torch.no_grad():
        for name, value in model.named_parameters():
            source = name.replace(name.split(".")[0], name.split(".")[0].removesuffix("_m"), 1)
            value.copy_(weights[source].double() if source == name else teacher_of(weights[source].double()))

    context, row_B = StepContext(seed=SEED, step=STEP, epoch_steps=EPOCH_STEPS), torch.arange(BATCH)
    masked = mask_tokens(
        given["ids"], given["mask"], context=context, row_B=row_B, probability=CONFIG["mlm_probability"],
        mask_id=CONFIG["mask_id"], vocab_size=CONFIG["vocab_size"],
        keep_ids=(CONFIG["pad_id"], CONFIG["cls_id"]),
    )  # fmt: skip
    labels = torch.full_like(given["ids"], -100).flatten()
    labels[masked.index_X] = masked.target_X
    model.mask = lambda *a, **k: (masked.ids_BT, labels.reshape(given["ids"].shape))

    drawn: list[int] = []  # images for the texts, then texts for the images: the order of the code

    def multinomial(weight_B: Tensor, _: int) -> Tensor:
        purpose = "itm image" if len(drawn) < BATCH else "itm text"
        point = context.uniform(purpose, row_B)[len(drawn) % BATCH, 0] * weight_B.sum()
        drawn.append(int((weight_B.cumsum(0) > point).nonzero()[0, 0]))
        return torch.tensor([drawn[-1]])

    torch.multinomial = multinomial  # type: ignore[assignment]
    found: dict[str, Tensor] = {}
    model.text_encoder_m.register_forward_hook(lambda m, a, out: found.update(mlm_logits_m=out))
    model.text_encoder.register_forward_hook(lambda m, a, out: found.update(mlm_logits=out.logits))
    sample = {
        "image": given["image"].double(), "text_input": [""] * BATCH,
        "epoch": 0, "iters": STEP, "num_iters_per_epoch": EPOCH_STEPS,
    }  # fmt: skip
    torch.set_default_dtype(torch.float64)  # the code makes its one-hot targets in the default type
    out = model(sample)
    out.loss.backward()
    inner = out.intermediate_output
    outputs = {
        "image tokens": inner.image_embeds,
        "text states": inner.text_embeds,
        "fused states": inner.encoder_output.last_hidden_state,
        "matching logits": inner.itm_logits,
        "word logits": found["mlm_logits"].flatten(0, 1)[masked.index_X],
        "image to text": out.sims.sim_i2t,
        "text to image": out.sims.sim_t2i,
        "teacher's image tokens": inner.image_embeds_m,
        "teacher's text states": inner.text_embeds_m,
        "teacher's word probabilities": found["mlm_logits_m"].softmax(-1).flatten(0, 1)[masked.index_X],
        "queue of images": model.image_queue,
        "queue of texts": model.text_queue,
    }
    losses = {"itc": out.loss_itc, "itm": out.loss_itm, "mlm": out.loss_mlm, "loss": out.loss}
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    plain = {
        "masked_ids": masked.ids_BT, "labels": model.mask()[1],
        "negative_images": torch.tensor(drawn[:BATCH]), "negative_texts": torch.tensor(drawn[BATCH:]),
    }  # fmt: skip
    arrays = {"config": np.array(json.dumps(CONFIG))}
    groups = {"": {**given, **plain}, "weights/": weights}
    groups |= {"outputs/": outputs, "losses/": losses, "gradients/": gradients}
    for prefix, group in groups.items():
        arrays |= {prefix + name: value.detach().numpy() for name, value in group.items()}
    OUTPUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUTPUT, **arrays)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size} bytes", {n: v.item() for n, v in losses.items()})


if __name__ == "__main__":
    main(sys.argv[1])
