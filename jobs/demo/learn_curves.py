"""How a run learnt: recall on held-out pictures at its checkpoints, and one SVG of all its curves.

The trainer logs losses; what a model can do on the way is asked here, of the weights in the checkpoints: R@10
by features over the first held-out pictures. The picture stands alone (its style sheet is inside it) and
follows the reader's light or dark colours.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from jobs.reporting.charts import curve, tag
from jobs.reporting.runs import Curve, read_run
from pipeline import storage

#: held-out pictures of the recall at a checkpoint
PICTURES = 300
CELL_WIDTH, CELL_HEIGHT, TITLE = 300, 170, 24
COLUMNS = 3
#: what is not about learning
LEFT_OUT = ("lr", "grad_norm", "samples_per_s", "temperature", "joint_temperature")

STYLE = """
text{font:12px system-ui,sans-serif;fill:#5f5e58}.title{font-weight:600;fill:#1d1e1c}
.grid{stroke:#e2dfd6}.line{fill:none;stroke:#1d6f69;stroke-width:2;stroke-linejoin:round}
.faint{fill:none;stroke:#1d6f69;opacity:.38}.dot{fill:#1d6f69}.paper{fill:#fbfaf7}
@media (prefers-color-scheme:dark){text{fill:#a9a69e}.title{fill:#ebe9e4}.grid{stroke:#32363a}
.line,.faint{stroke:#4fb5aa}.dot{fill:#4fb5aa}.paper{fill:#151716}}
"""


def validation_points(run: Path, shards: str) -> list[dict[str, float]]:
    """Rows of step, itc_tr_r10, itc_ir_r10, one per checkpoint; kept in the run folder."""
    kept = run / "validation.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    from models.evaluation.pool import encode_pool
    from models.evaluation.retrieval import evaluate_retrieval

    rows = []
    pool: Any = None
    for step, loaded in loaded_checkpoints(run):
        pool = pool or _pool(shards, loaded)
        encoded = encode_pool(loaded.model, pool, device=loaded.device)
        found = evaluate_retrieval(loaded.model, pool, top_k=0, device=loaded.device, encoded=encoded).seen
        rows.append({"step": step, "text": found.itc_text[10], "image": found.itc_image[10]})
    storage.write_bytes(str(kept), json.dumps(rows).encode())
    return rows


def loaded_checkpoints(run: Path) -> Iterable[tuple[int, Any]]:
    """(step, model as it was then) for each checkpoint, and for the end."""
    import torch

    from models.inference.load import load_exported
    from models.training.checkpoint import list_complete, step_of

    loaded = load_exported(run / "model", device="cpu")
    last = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    for checkpoint in list_complete(run):
        [states] = list(checkpoint.rglob("mp_rank_00_model_states.pt"))
        weights = torch.load(states, map_location="cpu", weights_only=False)["module"]
        names = {name: f"model.{name}" if f"model.{name}" in weights else name for name in last}
        loaded.model.load_state_dict({name: weights[names[name]] for name in last})
        yield step_of(checkpoint), loaded
    loaded.model.load_state_dict(last)
    yield int(loaded.exported.training["step"]), loaded


def _pool(shards: str, loaded: Any) -> Any:
    from jobs.evaluate import EvaluateConfig
    from jobs.evaluation import build_pool
    from models.training.table import build_table, find_shards

    table = build_table(find_shards(shards))
    config = EvaluateConfig(model="", shards=shards, pool=min(PICTURES, len(table) // 2))
    return build_pool(config, table, loaded)[0]


def draw_run(name: str, run: Path, validation: list[dict[str, float]]) -> str:
    """All curves of a run as one SVG file."""
    shown = [c for c in read_run(str(run)).curves if c.name not in LEFT_OUT]
    for key, title in (("text", "R@10 picture to text"), ("image", "R@10 text to picture")):
        points = tuple((row["step"], row[key]) for row in validation)
        if points:
            last = points[-1][1]
            shown.append(Curve(name=key, title=f"held out: {title}", unit="", points=points, last=last))
    rows = -(-len(shown) // COLUMNS)
    width, height = COLUMNS * CELL_WIDTH, rows * (CELL_HEIGHT + TITLE)
    body = tag("style", Markup(STYLE)) + tag("rect", class_="paper", width=width, height=height)
    for position, one in enumerate(shown):
        x, y = position % COLUMNS * CELL_WIDTH, position // COLUMNS * (CELL_HEIGHT + TITLE)
        title = tag("text", one.title, class_="title", x=46, y=16)
        chart = tag("g", curve(one, width=CELL_WIDTH, height=CELL_HEIGHT), transform=f"translate(0 {TITLE})")
        body += tag("g", title + chart, transform=f"translate({x} {y})")
    svg = tag(
        "svg", body, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", width=width,
        height=height, role="img", aria_label=f"Learning curves of {name}",
    )  # fmt: skip
    return f"{svg}\n"
