"""The CapFilt experiment as one SVG: recall of each model on held-out scenes, a dot a seed, a line the mean.

The picture stands alone (its style sheet is inside it) and follows the reader's light or dark colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from jobs.demo.capfilt_table import FIGURES
from jobs.demo.learn_curves import STYLE
from jobs.reporting.charts import tag

PANELS = ("tr_r1", "ir_r1")
WIDTH, ROW, TITLE, LABELS, SCALE = 330, 26, 28, 100, 200
_STYLE = STYLE + ".mean{stroke:#1d6f69;stroke-width:2}.dot{opacity:.55}"


def draw(results: Sequence[dict[str, Any]]) -> str:
    """One panel for each of PANELS, one row for each model."""
    models = list(results[0]["models"])
    height = TITLE + ROW * len(models) + 24
    width = WIDTH * len(PANELS)
    body = tag("style", Markup(_STYLE)) + tag("rect", class_="paper", width=width, height=height)
    for at, name in enumerate(PANELS):
        panel = _panel(FIGURES[name], {m: [r["models"][m][name] for r in results] for m in models})
        body += tag("g", panel, transform=f"translate({at * WIDTH} 0)")
    svg = tag(
        "svg", body, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", width=width,
        height=height, role="img", aria_label="Retrieval of held-out scenes by model and seed",
    )  # fmt: skip
    return f"{svg}\n"


def _panel(title: str, values: dict[str, list[float]]) -> Markup:
    """Shares from 0 to 1 as places from left to right."""
    bottom = TITLE + ROW * len(values)
    body = tag("text", title, class_="title", x=LABELS, y=18)
    for tick in (0.0, 0.5, 1.0):
        x = LABELS + tick * SCALE
        body += tag("line", class_="grid", x1=x, x2=x, y1=TITLE, y2=bottom)
        body += tag("text", f"{tick:g}", x=x, y=bottom + 16, text_anchor="middle")
    for row, (model, shares) in enumerate(values.items()):
        y = TITLE + ROW * (row + 0.5)
        mean = LABELS + sum(shares) / len(shares) * SCALE
        body += tag("text", model, x=LABELS - 10, y=y + 4, text_anchor="end")
        body += tag("line", class_="mean", x1=mean, x2=mean, y1=y - 8, y2=y + 8)
        for share in shares:
            body += tag("circle", class_="dot", cx=LABELS + share * SCALE, cy=y, r=4)
    return body
