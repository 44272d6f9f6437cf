"""Which input rows of an operation its output rows need, along one axis, in exact integer arithmetic.

A relation maps intervals [lo, hi) of output rows to the smallest intervals of input rows that hold everything they
are computed from. Arrays hold one interval for each output row of the network; lo >= hi is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Demand = tuple[Ints, Ints]

NOTHING = 1 << 40


def unite(a: Demand, b: Demand) -> Demand:
    """The smallest interval that holds both, row by row."""
    empty_a, empty_b = a[0] >= a[1], b[0] >= b[1]
    low = np.minimum(np.where(empty_a, NOTHING, a[0]), np.where(empty_b, NOTHING, b[0]))
    high = np.maximum(np.where(empty_a, -NOTHING, a[1]), np.where(empty_b, -NOTHING, b[1]))
    return low, high


def some(needed: Demand, near: Ints, size: int) -> Demand:
    """The same, and of none, where there are any, the row that is the nearest to that one."""
    near = near.clip(0, size - 1)
    return unite(needed, (near, near + 1)) if size else needed


@dataclass(frozen=True)
class Window:
    """Output row o needs rows o * stride - before + i * dilation, 0 <= i < kernel: convolution, pooling, slicing."""

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    before: int = 0

    @property
    def rate(self) -> Fraction:
        return Fraction(1, self.stride)

    def demand(self, low: Ints, high: Ints, size: int) -> Demand:
        reach = (self.kernel - 1) * self.dilation + 1
        return low * self.stride - self.before, (high - 1) * self.stride - self.before + reach


@dataclass(frozen=True)
class Transposed:
    """Input row j adds to output rows j * stride - before + i * dilation, 0 <= i < kernel.

    Where the kernel is smaller than the stride, some output rows need nothing.
    """

    kernel: int
    stride: int
    dilation: int = 1
    before: int = 0

    @property
    def rate(self) -> Fraction:
        return Fraction(self.stride)

    def demand(self, low: Ints, high: Ints, size: int) -> Demand:
        result: Demand | None = None
        for tap in range(min(self.kernel, size * self.stride + self.kernel)):
            shift = self.before - tap * self.dilation
            rows = -((-(low + shift)) // self.stride), (high - 1 + shift) // self.stride + 1
            clipped = np.maximum(rows[0], 0), np.minimum(rows[1], size)
            result = clipped if result is None else unite(result, clipped)
        assert result is not None
        return result


@dataclass(frozen=True)
class Resample:
    """Resizing by `scale` input rows per output row, corners not aligned.

    nearest: the row below o * scale; exact: below (o + 1/2) * scale; linear and cubic: the 2 and 4 rows about
    (o + 1/2) * scale - 1/2, those of weight 0 included, as torch reads them; cells: every row that the output
    row overlaps (adaptive pooling); area2, area4: linear and cubic with antialiasing, whose kernel widens with scale.
    """

    scale: Fraction
    kind: Literal["nearest", "exact", "linear", "cubic", "cells", "area2", "area4"]

    @property
    def rate(self) -> Fraction:
        return 1 / self.scale

    def demand(self, low: Ints, high: Ints, size: int) -> Demand:
        n, d = self.scale.numerator, self.scale.denominator
        last = high - 1
        if self.kind == "nearest":
            return low * n // d, last * n // d + 1
        if self.kind == "cells":
            return low * n // d, -(-high * n // d)
        if self.kind == "exact":
            return (2 * low + 1) * n // (2 * d), (2 * last + 1) * n // (2 * d) + 1
        if self.kind in ("linear", "cubic"):
            more = 0 if self.kind == "linear" else 1
            first = ((2 * low + 1) * n - d) // (2 * d)
            return first - more, ((2 * last + 1) * n - d) // (2 * d) + 2 + more
        # rows whose centre is less than `support` away from the centre (o + 1/2) * scale
        support = max(Fraction(1), self.scale) * (1 if self.kind == "area2" else 2)
        common = 2 * d * support.denominator
        shift, beyond = int((Fraction(1, 2) - support) * common), int((Fraction(1, 2) + support) * common)
        at, until = ((2 * rows + 1) * n * support.denominator for rows in (low, last))
        return (at + shift) // common, (until + beyond) // common


@dataclass(frozen=True)
class Pad:
    """`before` rows are put in front of the first one (negative: taken away), others behind the last one."""

    before: int
    mode: Literal["constant", "reflect", "replicate"] = "constant"

    @property
    def rate(self) -> Fraction:
        return Fraction(1)

    def demand(self, low: Ints, high: Ints, size: int) -> Demand:
        low, high = low - self.before, high - self.before
        if self.mode == "constant":
            return low, high
        inside = np.clip(low, 0, size), np.clip(high, 0, size)
        if self.mode == "replicate":
            above = np.zeros_like(low), np.where(low < 0, 1, 0)
            below = np.full_like(low, size - 1), np.where(high > size, size, 0)
        else:
            above = -np.minimum(high - 1, -1), np.where(low < 0, 1 - low, 0)
            below = 2 * (size - 1) - (high - 1), np.where(high > size, 2 * (size - 1) - np.maximum(low, size) + 1, 0)
        return unite(inside, unite(above, below))


Relation = Window | Transposed | Resample | Pad

SAME = Window()


def moves_nothing(relation: Relation) -> bool:
    """Whether each output row is computed from the same input row, where both have the same number of rows."""
    if isinstance(relation, Window):
        return (relation.kernel, relation.stride, relation.before) == (1, 1, 0)
    return isinstance(relation, Pad) and relation.before == 0


def block(rows: int) -> Window:
    """Output row o stands for the input rows [o * rows, (o + 1) * rows)."""
    return Window(rows, rows)


def repeat(rows: int) -> Resample:
    """Every input row gives that many output rows."""
    return Resample(Fraction(1, rows), "nearest")


def demanded(relation: Relation, rows: Demand, size: int) -> Demand:
    """Rows of the input, of that size, that the output rows need; none for none."""
    low, high = relation.demand(*rows, size)
    low, high = np.maximum(low, 0), np.minimum(high, size)
    empty = (rows[0] >= rows[1]) | (low >= high)
    return np.where(empty, NOTHING, low), np.where(empty, -NOTHING, high)
