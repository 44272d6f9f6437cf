"""Line charts as inline SVG: axes, ticks, labels, a legend; nothing that a browser would have to fetch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 30, 44
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Hues that remain distinct to colour-blind eyes (Okabe & Ito)."""
POINTS = 600
"""Most points of a line; more are averaged."""

Place = Callable[[tuple[float, float]], tuple[float, float]]
"""From a value to where it is drawn."""


@dataclass(frozen=True)
class Line:
    """Points (x, y) in the order of x; those that are not finite are left out."""

    name: str
    points: Sequence[tuple[float, float]]
    faint: bool = False


def line_chart(lines: Sequence[Line], *, x: str, y: str, bounds: tuple[float, float] | None = None) -> str:
    """An svg element with a legend of the lines that are not faint. `bounds`: of y; by default those of the points."""
    finite = [[point for point in line.points if math.isfinite(point[1])] for line in lines]
    points = [point for of_line in finite for point in of_line]
    if not points:
        return ""
    low_x, high_x = min(p[0] for p in points), max(p[0] for p in points)
    low_y, high_y = bounds or (min(p[1] for p in points), max(p[1] for p in points))
    marks_x, marks_y = ticks(low_x, high_x, 8), ticks(low_y, high_y, 6)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across = (point[0] - low_x) / ((high_x - low_x) or 1)
        up = (point[1] - low_y) / ((high_y - low_y) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [*_grid(marks_x, marks_y, place, low_x, low_y), *_names(x, y)]
    at = LEFT
    bright = [line for line in lines if not line.faint]
    for line, kept in zip(lines, map(thinned, finite), strict=True):
        colour = COLOURS[bright.index(line) % len(COLOURS)] if line in bright else "#b8c4cc"
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in map(place, kept))
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{1 if line.faint else 2}"/>'
        )
        if len(kept) <= 40 and not line.faint:
            parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.5" fill="{colour}"/>' for px, py in map(place, kept)]
        if line in bright:
            parts.append(f'<line x1="{at}" x2="{at + 18}" y1="14" y2="14" stroke="{colour}" stroke-width="3"/>')
            parts.append(f'<text x="{at + 24}" y="18">{escape(line.name)}</text>')
            at += 40 + 8 * len(line.name)
    label = escape(f"{y} by {x}: " + ", ".join(line.name for line in bright), quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">' + "".join(parts) + "</svg>"


def _grid(marks_x: list[float], marks_y: list[float], place: Place, low_x: float, low_y: float) -> list[str]:
    parts = []
    for value in marks_y:
        _, at = place((low_x, value))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in marks_x:
        at, _ = place((value, low_y))
        bottom = HEIGHT - BOTTOM
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 19}" text-anchor="middle">{value:g}</text>')
    across = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"'
    up = f'x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"'
    return [*parts, f'<line class="axis" {across}/>', f'<line class="axis" {up}/>']


def _names(x: str, y: str) -> list[str]:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return [
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>',
        f'<text transform="rotate(-90)" x="{-middle}" y="14" text-anchor="middle">{escape(y)}</text>',
    ]


def ticks(low: float, high: float, count: int) -> list[float]:
    """At most about `count` round numbers in [low, high]; that one number where both are the same."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points, or as many means of neighbours as a chart can show."""
    size = -(-len(points) // POINTS)
    groups = [points[at : at + size] for at in range(0, len(points), max(1, size))]
    return [(sum(p[0] for p in g) / len(g), sum(p[1] for p in g) / len(g)) for g in groups]


def smoothed(points: Sequence[tuple[float, float]], reach: int) -> list[tuple[float, float]]:
    """At each point the mean of the values up to `reach` points before and after it."""
    sums = list(accumulate((y for _, y in points), initial=0.0))
    result = []
    for at, (x, _) in enumerate(points):
        start, stop = max(0, at - reach), min(len(points), at + reach + 1)
        result.append((x, (sums[stop] - sums[start]) / (stop - start)))
    return result
