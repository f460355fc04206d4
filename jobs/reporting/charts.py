"""Charts as inline SVG: no library, no script, colours from the page's style sheet (light and dark).

Every function takes numbers and gives `Markup`. What words there are go through `markupsafe`, so a chart is
as safe as the template around it. Sizes are CSS pixels: the chart is drawn at the width it is shown at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from jobs.reporting.runs import Curve, smoothed
from jobs.reporting.text import count, figure

Points = Sequence[tuple[float, float]]
#: attributes of SVG that are not written with hyphens
_CAMEL = ("viewBox", "preserveAspectRatio")


def tag(name: str, text: str | Markup = "", **attributes: str | float) -> Markup:
    """One SVG element; `class_` and `text_anchor` become `class` and `text-anchor`."""
    parts = [name]
    for key, value in attributes.items():
        shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
        parts.append(f'{key.rstrip("_").replace("_", "-") if key not in _CAMEL else key}="{escape(shown)}"')
    return Markup(f"<{' '.join(parts)}>{escape(text)}</{name}>")


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about so many steps between them."""
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def tick_words(ticks: Sequence[float]) -> list[str]:
    """Labels of an axis, all with the same number of decimals."""
    step = ticks[1] - ticks[0]
    largest = max(abs(t) for t in ticks)
    if largest < 0.001:
        return [f"{t:.1e}".replace("e-0", "e-") if t else "0" for t in ticks]
    if largest >= 10_000:
        return [f"{t / 1000:g}k" if t else "0" for t in ticks]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step, decimals) != round(step, 12):
        decimals += 1
    return [f"{t:.{decimals}f}" for t in ticks]


def bar(segments: Sequence[tuple[str, float]], whole: float) -> Markup:
    """A horizontal bar that fills its place: (style class, amount) from the left, `whole` is full width."""
    x, marks = 0.0, Markup("")
    for style, amount in segments:
        width = 100 * amount / whole if whole else 0.0
        if amount:
            # at least a hairline, so that a small number is not an invisible one
            marks += tag(
                "rect", class_=style, x=f"{x:.3f}%", y="0", width=f"{max(width, 0.15):.3f}%", height="100%"
            )
        x += width
    return tag("svg", marks, class_="bar", aria_hidden="true", focusable="false")


def histogram(
    edges: Sequence[float],
    series: Sequence[tuple[str, str, Sequence[int]]],
    *,
    thresholds: Sequence[float] = (),
    width: int,
    height: int = 260,
    mirrored: bool = False,
    label: str,
    axis: str,
) -> Markup:
    """Bars over score bins with the threshold as a line.

    Args:
        edges: n + 1 borders of the bins.
        series: (name, style class, n counts), stacked in this order; with `mirrored` the first stands above
            the line and the second hangs below it, each bar's height its own count.
        thresholds: drawn as lines, where they lie within the edges.
        label: what a person who cannot see the chart is told.
        axis: name of the horizontal axis.
    """
    left, right, top, bottom = 48, 14, 26, 42
    plot_w, plot_h = width - left - right, height - top - bottom
    n = len(edges) - 1
    if mirrored:
        above, below = max(series[0][2], default=0), max(series[1][2], default=0)
    else:
        above, below = max((sum(s[2][i] for s in series) for i in range(n)), default=0), 0
    ticks = nice_ticks(-below, max(above, 1), 4)
    span = ticks[-1] - ticks[0]

    def x_of(value: float) -> float:
        return left + plot_w * (value - edges[0]) / (edges[-1] - edges[0])

    def y_of(value: float) -> float:
        return top + plot_h * (ticks[-1] - value) / span

    body = Markup("")
    for tick in ticks:
        style = "axis" if tick == 0 else "grid"
        body += tag("line", class_=style, x1=left, x2=width - right, y1=y_of(tick), y2=y_of(tick))
        words = count(abs(tick))
        if tick == int(tick):
            body += tag("text", words, class_="tick", x=left - 6, y=y_of(tick) + 4, text_anchor="end")
    gap = 1.0 if plot_w / n > 4 else 0.0
    for i in range(n):
        x, w = x_of(edges[i]), x_of(edges[i + 1]) - x_of(edges[i]) - gap
        level = 0
        for position, (name, style, counts) in enumerate(series):
            if not counts[i]:
                continue
            hanging = mirrored and position == 1
            y = y_of(0) if hanging else y_of(level + counts[i])
            tip = f"{figure(edges[i])} to {figure(edges[i + 1])}: {count(counts[i])} {name}"
            h = max(1.0, plot_h * counts[i] / span)
            body += tag("rect", tag("title", tip), class_=style, x=x, y=y, width=max(w, 0.5), height=h)
            level += 0 if mirrored else counts[i]
    x_ticks = [
        t
        for t in nice_ticks(edges[0], edges[-1], max(3, width // 110))
        if edges[0] - 1e-9 <= t <= edges[-1] + 1e-9
    ]
    for tick, words in zip(
        x_ticks, tick_words(x_ticks) if len(x_ticks) > 1 else [figure(t) for t in x_ticks], strict=True
    ):
        body += tag("text", words, class_="tick", x=x_of(tick), y=top + plot_h + 17, text_anchor="middle")
    body += tag("text", axis, class_="name", x=left + plot_w / 2, y=height - 6, text_anchor="middle")
    for value in thresholds:
        if edges[0] <= value <= edges[-1]:
            left_side = value < max(thresholds) and x_of(value) > left + 110
            body += _threshold(x_of(value), value, top, plot_h, turned=left_side or x_of(value) > width - 110)
    return _svg(body, width, height, label)


def _threshold(x: float, value: float, top: int, plot_h: float, *, turned: bool) -> Markup:
    words = tag(
        "text",
        f"threshold {value:g}",
        class_="threshold-name",
        x=x - 5 if turned else x + 5,
        y=top - 10,
        text_anchor="end" if turned else "start",
    )
    return tag("line", class_="threshold", x1=x, x2=x, y1=top - 20, y2=top + plot_h) + words


def curve(one: Curve, *, width: int = 300, height: int = 170) -> Markup:
    """One loss or rate over the steps: the values faint, their moving average strong."""
    left, right, top, bottom = 46, 10, 10, 34
    plot_w, plot_h = width - left - right, height - top - bottom
    ys, xs = [y for _, y in one.points], [x for x, _ in one.points]
    ticks, x_ticks = nice_ticks(min(ys), max(ys), 3), nice_ticks(0, max(xs), 3)

    def place(points: Points) -> str:
        placed = []
        for x, y in points:
            px = left + plot_w * x / x_ticks[-1]
            py = top + plot_h * (ticks[-1] - y) / (ticks[-1] - ticks[0])
            placed.append(f"{px:.1f},{py:.1f}")
        return " ".join(placed)

    body = Markup("")
    for tick, words in zip(ticks, tick_words(ticks), strict=True):
        y = top + plot_h * (ticks[-1] - tick) / (ticks[-1] - ticks[0])
        body += tag("line", class_="grid", x1=left, x2=width - right, y1=y, y2=y)
        body += tag("text", words, class_="tick", x=left - 5, y=y + 4, text_anchor="end")
    for tick, words in zip(x_ticks, tick_words(x_ticks), strict=True):
        x = left + plot_w * tick / x_ticks[-1]
        anchor = "end" if tick == x_ticks[-1] else "middle"
        body += tag("text", words, class_="tick", x=x, y=top + plot_h + 15, text_anchor=anchor)
    body += tag("text", "step", class_="name", x=left + plot_w / 2, y=height - 4, text_anchor="middle")
    if len(one.points) == 1:
        cx, cy = place(one.points).split(",")
        body += tag("circle", class_="dot", cx=cx, cy=cy, r=3)
    else:
        many = len(one.points) >= 20
        body += tag("polyline", class_="faint" if many else "line", points=place(one.points))
        if many:
            body += tag("polyline", class_="line", points=place(smoothed(one.points, max(2, len(ys) // 40))))
    unit = f" {one.unit}" if one.unit else ""
    label = f"{one.title} over {count(max(xs))} steps: from {figure(ys[0])} to {figure(one.last)}{unit}"
    return _svg(body, width, height, label)


def _svg(body: Markup, width: int, height: int, label: str) -> Markup:
    return tag(
        "svg", body, class_="chart", viewBox=f"0 0 {width} {height}", width=width, height=height, role="img",
        aria_label=label,
    )  # fmt: skip
