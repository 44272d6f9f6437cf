"""The demand of a network's output rows, followed back to the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from pipeline.network.layouts import Rows
from pipeline.network.relations import NOTHING, Demand, Ints, demanded, unite


@dataclass(frozen=True)
class AxisField:
    """The receptive field along one axis, as in `ReceptiveField`."""

    before: int
    after: int
    rate: Fraction
    surplus: int
    offset: float
    halo: tuple[int, int]


@dataclass(frozen=True)
class Line:
    """Rows of a tensor as a function of the image's: rate * n + surplus, for n a multiple of the alignment."""

    rate: Fraction
    surplus: Fraction

    @classmethod
    def of(cls, rows: Rows, image: Rows) -> Line:
        rate = Fraction(rows.sizes[1] - rows.sizes[0], image.sizes[1] - image.sizes[0])
        return cls(rate, rows.sizes[0] - rate * image.sizes[0])

    def at(self, n: int) -> int:
        size = self.rate * n + self.surplus
        assert size.denominator == 1, "n is a multiple of the alignment"
        return int(size)


def axis_field(image: Rows, output: Rows, alignment: int) -> AxisField:
    """Reach, rate and offset of the output's rows, from an image that is large enough to have an inside."""
    graph = _sources(output)
    lines = {rows: Line.of(rows, image) for rows in graph}
    out = lines[output]
    assert out.rate > 0 and out.surplus.denominator == 1
    margin = max(abs(line.surplus / line.rate) for line in lines.values())
    n = alignment * math.ceil((64 + 4 * margin) / alignment + 4)
    while True:
        before, after, halo, offset = _measure(graph, lines, image, output, n, alignment)
        if n >= 2 * (before + after) + 4 * alignment + 4 * margin:
            break
        n = alignment * math.ceil((3 * (before + after) + 4 * margin) / alignment + 6)
    if out.rate == 1 and out.surplus == 0:
        offset = 0.0
    return AxisField(before, after, out.rate, int(out.surplus), offset, halo)


def _sources(output: Rows) -> list[Rows]:
    """All rows from which the output's are computed, itself first, each before its sources."""
    found, todo = {output}, [output]
    while todo:
        for _, source in todo.pop().sources:
            if source not in found:
                found.add(source)
                todo.append(source)
    return sorted(found, key=lambda rows: -rows.number)


def _measure(
    graph: list[Rows], lines: dict[Rows, Line], image: Rows, output: Rows, n: int, alignment: int
) -> tuple[int, int, tuple[int, int], float]:
    """Reach before and after, halo, and offset, on an image of n rows."""
    line = lines[output]
    o = np.arange(line.at(n), dtype=np.int64)
    nothing = np.full_like(o, NOTHING), np.full_like(o, -NOTHING)
    demand: dict[Rows, Demand] = dict.fromkeys(graph, nothing)
    demand[output] = o, o + 1
    for rows in graph:
        for relation, source in rows.sources:
            needed = demanded(relation, demand[rows], lines[source].at(n))
            demand[source] = unite(demand[source], needed)
    # an output's own cell is always read
    p, q = line.rate.numerator, line.rate.denominator
    cell = o * q // p, -(-(o + 1) * q // p)
    low, high = demand.get(image, nothing)
    offset = _offset(low, high, line.rate, alignment)
    low, high = unite((low, high), cell)
    low, high = _enough(low, high, demand, lines, alignment)
    aligned = cell[0] // alignment * alignment, -(-cell[1] // alignment) * alignment
    (before, after), halo = (
        (max(0, int((start - low).max())), max(0, int((high - stop).max()))) for start, stop in (cell, aligned)
    )
    return before, after, halo, offset


def _enough(low: Ints, high: Ints, demand: dict[Rows, Demand], lines: dict[Rows, Line], alignment: int) -> Demand:
    """The image's rows, widened so far that an aligned read of them makes every row that is demanded in between.

    A read of the image's rows [a, b), both multiples of the alignment, makes the rows
    [rate * a, rate * b + surplus) of a tensor.
    """
    first, last = np.full_like(low, NOTHING), np.full_like(high, -NOTHING)
    for rows, (lo, hi) in demand.items():
        rate, surplus = lines[rows].rate, lines[rows].surplus
        some = lo < hi
        # a <= lo / rate and b >= (hi - surplus) / rate
        first = np.minimum(first, np.where(some, lo * rate.denominator // rate.numerator, NOTHING))
        scaled = hi * surplus.denominator - surplus.numerator
        stop = -(-scaled * rate.denominator // (rate.numerator * surplus.denominator))
        last = np.maximum(last, np.where(some, stop, -NOTHING))
    a = alignment
    low = np.where(low // a * a > first, first // a * a + a - 1, low)
    high = np.where(-(-high // a) * a < last, -(-last // a) * a - a + 1, high)
    return low, high


def _offset(low: Ints, high: Ints, rate: Fraction, alignment: int) -> float:
    """The mean distance of the centre of what an output sees from where it would be without any offset."""
    period = int(alignment * rate)
    start = len(low) // 2 // period * period
    inside = slice(start, start + period)
    o = np.arange(len(low))[inside]
    some = low[inside] < high[inside]
    count = int(some.sum())
    if count == 0:
        return 0.0
    centres = Fraction(int((low[inside] + high[inside] - 1)[some].sum()), 2)
    return float((centres - int(o[some].sum()) / rate) / count)
