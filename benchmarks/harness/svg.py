"""Charts as SVG, by hand: bars side by side for the README, lines for what grows. Readable on white and on dark."""

from __future__ import annotations

import math
from html import escape

from benchmarks.harness.book import OURS, Measure, Series

BLUE, GREY = "#2f6fdf", "#9aa4b2"
COLOURS = (BLUE, "#d9822b", "#3a9d5d", "#b04a8b", "#7a7a7a", "#c9453a")
FONT = 'font-family="system-ui, sans-serif" font-size="12"'
STYLE = (
    "<style>text{fill:#24292f}.dim{fill:#6e7781}.axis{stroke:#8b949e}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.dim{fill:#9da7b3}}</style>"
)
WIDTH, BAR, LABEL = 860, 16, 150


def bars(measures: list[Measure]) -> str:
    """Two columns of small bar charts."""
    column = WIDTH // 2
    parts: list[str] = []
    heights = [0, 0]
    for index, measure in enumerate(measures):
        side = index % 2
        top = heights[side]
        names = sorted(measure.samples, key=lambda n: measure.median(n) or 0, reverse=not measure.lower_is_better)
        most = max((measure.median(n) or 0) for n in names) or 1
        x = side * column
        parts.append(f'<text x="{x}" y="{top + 14}" font-weight="600">{escape(measure.title)}</text>')
        hint = "less is better" if measure.lower_is_better else "more is better"
        parts.append(f'<text x="{x}" y="{top + 29}" class="dim">{escape(measure.unit)}, {hint}</text>')
        y = top + 38
        for name in names:
            value = measure.median(name) or 0
            width = max(1.0, (column - LABEL - 90) * value / most)
            colour = BLUE if name.startswith(OURS) else GREY
            parts.append(f'<text x="{x + LABEL - 6}" y="{y + 12}" text-anchor="end">{escape(name)}</text>')
            parts.append(f'<rect x="{x + LABEL}" y="{y + 2}" width="{width:.1f}" height="{BAR - 4}" rx="2" fill="{colour}"/>')
            shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
            parts.append(f'<text x="{x + LABEL + width + 5:.1f}" y="{y + 12}">{shown}</text>')
            y += BAR + 2
        heights[side] = y + 22
    height = max(heights)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" {FONT}>{STYLE}'
        + "\n".join(parts) + "</svg>\n"
    )  # fmt: skip


def lines(plot: Series) -> str:
    """One plot with axes from zero (x logarithmic when asked) and the last value at each line's end."""
    width, height, left, right, top, bottom = 640, 320, 62, 130, 40, 44
    points = [point for line in plot.lines.values() for point in line]
    if not points:
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"/>\n'
    xs = [x for x, _ in points]
    top_y = _round_up(max(y for _, y in points))
    low, high = (math.log10(max(1, min(xs))), math.log10(max(xs))) if plot.log_x else (0, max(xs))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(max(1, x)) if plot.log_x else x) - low
        return (
            left + (width - left - right) * across / ((high - low) or 1),
            height - bottom - (height - top - bottom) * y / top_y,
        )

    parts = [f'<text x="{left}" y="18" font-weight="600">{escape(plot.title)}</text>']
    parts.append(f'<text x="{left}" y="33" class="dim">{escape(plot.y_label)}</text>')
    parts.append(f'<text x="{(width - right + left) / 2}" y="{height - 8}" text-anchor="middle" class="dim">{escape(plot.x_label)}</text>')
    for step in range(5):
        value = top_y * step / 4
        _, y = at(xs[0], value)
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" class="axis" stroke-opacity="0.25"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" class="dim">{_short(value)}</text>')
    for x in sorted(set(xs)):
        px, _ = at(x, 0)
        parts.append(f'<text x="{px:.1f}" y="{height - bottom + 16}" text-anchor="middle" class="dim">{_short(x)}</text>')
    ends: list[float] = []
    for index, (name, line) in enumerate(plot.lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(x, y) for x, y in sorted(line)))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.5" fill="{colour}"/>' for px, py in (at(x, y) for x, y in line)]
        px, py = at(*max(line))
        while any(abs(py - other) < 13 for other in ends):
            py += 13 if py < height / 2 else -13
        ends.append(py)
        parts.append(f'<text x="{px + 7:.1f}" y="{py + 4:.1f}" style="fill:{colour}">{escape(name)} {_short(max(line)[1])}</text>')
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" {FONT}>{STYLE}{body}</svg>\n'


def _round_up(value: float) -> float:
    if value <= 0:
        return 1
    unit = 10 ** math.floor(math.log10(value))
    return float(next(step * unit for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * unit >= value))


def _short(value: float) -> str:
    if value >= 1_000_000:
        return f"{value / 1e6:g}M"
    if value >= 10_000:
        return f"{value / 1000:.3g}k"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
