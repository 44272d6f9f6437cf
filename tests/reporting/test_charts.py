"""Charts: round ticks, every line and label there, and no point outside the axes."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.reporting.charts import POINTS, Line, line_chart, smoothed, thinned, ticks

NUMBERS = st.floats(-1e9, 1e9, allow_nan=False)


@given(NUMBERS, NUMBERS, st.integers(2, 12))
def test_ticks_lie_within(low: float, high: float, count: int) -> None:
    low, high = sorted((low, high))
    marks = ticks(low, high, count)
    slack = 1e-6 * max(1, abs(low), abs(high))
    assert all(low - slack <= mark <= high + slack for mark in marks) and len(marks) <= count + 1


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 2000, [0, 500, 1000, 1500, 2000]),
        (3, 3, [3]),
        (-0.3, 0.3, [-0.2, 0, 0.2]),
    ],
)
def test_ticks_are_round(low: float, high: float, marks: list[float]) -> None:
    assert ticks(low, high, 5) == marks


def test_a_chart_has_axes_labels_legend_and_lines() -> None:
    losses = [(step, 1 / step) for step in range(1, 2001)]
    text = line_chart([Line("each", losses, faint=True), Line("a < b", smoothed(losses, 10))], x="step", y="loss")
    svg = ElementTree.fromstring(text)
    words = [element.text for element in svg.iter("text")]
    assert {"step", "loss", "a < b", "2000"} <= set(words) and "each" not in words
    lines = [element.get("points", "").split() for element in svg.iter("polyline")]
    assert [len(points) <= POINTS for points in lines] == [True, True]
    _, _, width, height = map(float, svg.get("viewBox", "").split())
    for x, y in (map(float, point.split(",")) for points in lines for point in points):
        assert 0 < x < width and 0 < y < height


def test_what_is_not_finite_is_left_out_and_nothing_is_no_chart() -> None:
    svg = line_chart([Line("a", [(1, 2.0), (2, math.nan), (3, math.inf), (4, 3.0)])], x="step", y="loss")
    assert len(re.findall(r"<circle", svg)) == 2
    assert line_chart([Line("a", [])], x="step", y="loss") == ""
    assert "<polyline" in line_chart([Line("a", [(5, 0.25)])], x="step", y="loss")


def test_thinning_keeps_the_mean() -> None:
    points = [(float(n), float(n % 7)) for n in range(6000)]
    kept = thinned(points)
    assert len(kept) == POINTS and sum(y for _, y in kept) / len(kept) == pytest.approx(
        sum(y for _, y in points) / 6000
    )
    assert smoothed([(0, 1.0), (1, 3.0), (2, 8.0)], 1) == [(0, 2.0), (1, 4.0), (2, 5.5)]
