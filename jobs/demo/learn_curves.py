"""How a run learnt: one SVG of its losses and of its validation on held-out pairs, over the steps.

The picture stands alone (its style sheet is inside it) and follows the reader's light or dark colours.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

from jobs.reporting.charts import curve, tag
from jobs.reporting.runs import curves

CELL_WIDTH, CELL_HEIGHT, TITLE = 300, 170, 24
COLUMNS = 3
TITLES = {"val_tr_r1": "held out: R@1 picture to text", "val_ir_r1": "held out: R@1 text to picture"}

STYLE = """
text{font:12px system-ui,sans-serif;fill:#5f5e58}.title{font-weight:600;fill:#1d1e1c}
.grid{stroke:#e2dfd6}.line{fill:none;stroke:#1d6f69;stroke-width:2;stroke-linejoin:round}
.faint{fill:none;stroke:#1d6f69;opacity:.38}.dot{fill:#1d6f69}.paper{fill:#fbfaf7}
@media (prefers-color-scheme:dark){text{fill:#a9a69e}.title{fill:#ebe9e4}.grid{stroke:#32363a}
.line,.faint{stroke:#4fb5aa}.dot{fill:#4fb5aa}.paper{fill:#151716}}
"""


def draw_run(name: str, run: Path) -> str:
    """All curves of a run as one SVG file."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validated = {key for row in rows for key in row if key.startswith("val_")}
    names = {key for key in validated if key in TITLES or ("_r" not in key and "temperature" not in key)}
    names |= {key[4:] for key in names}
    found = curves([{k: v for k, v in row.items() if k in names or k == "step"} for row in rows])
    logged = {c.name: c for c in found}
    shown = []
    for one in found:
        if one.name.startswith("val_") and one.name[4:] in logged:
            shown.append(replace(one, title=f"held out: {logged[one.name[4:]].title}"))
        else:
            shown.append(replace(one, title=TITLES.get(one.name, one.title)))
    lines = -(-len(shown) // COLUMNS)
    width, height = COLUMNS * CELL_WIDTH, lines * (CELL_HEIGHT + TITLE)
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
