"""Steps whose rows come from several rows of their input: windows, padding and resizing.

At the image's true edges each adds what its operation would have put around the rows that exist; nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.network.relations import Demand, Pad, Relation, Resample, Transposed, Window, some, unite
from pipeline.network.sliding import each
from pipeline.network.steps import Span, Step
from pipeline.tiling.geometry import Interval


def least(dtype: torch.dtype) -> float:
    """What is less than, or as little as, any number of the type."""
    if dtype.is_floating_point or dtype.is_complex:
        return -torch.inf
    return 0 if dtype is torch.bool else torch.iinfo(dtype).min


@dataclass(frozen=True)
class Windows(Step):
    """An operation over windows, whose padding above and below is put there only at the image's edges."""

    beyond: ClassVar[float] = 0.0
    """What lies beyond them."""

    @property
    def pads(self) -> bool:
        assert isinstance(self.relation, Window)
        return self.relation.kernel > 1

    @property
    def makes_anew(self) -> bool:
        return True

    @cached_property
    def count(self) -> int:
        """Dimensions in which its windows extend, the last ones."""
        return next((n for n in (1, 2, 3) if f"{n}d" in self.node.name), len(self.shape.dims) - 2)

    def each(self, name: str) -> list[int]:
        """An argument of one number for each of these dimensions."""
        return each(self.arguments[name] or [0], self.count)

    @cached_property
    def padding(self) -> list[int]:
        """The operation's padding, with 0 for rows, at whose ends there is padding already."""
        numbers = self.each("padding")
        numbers[-self.back] = 0
        return numbers

    def demand(self, low: Any, high: Any, size: int) -> Demand:
        assert isinstance(self.relation, Window)
        first = low * self.relation.stride - self.relation.before  # also where all is padding
        return some(super().demand(low, high, size), first, size)

    def surrounded(self, image: Tensor, span: Span, back: int | None = None) -> tuple[Tensor, int]:
        """All rows that the windows lie on, those beyond the image's edges as well; the number of the first.

        `back`: the image's dimension of rows, counted from the last one, where it is another than the result's.
        """
        assert isinstance(self.relation, Window)
        back, stride, before = back or self.back, self.relation.stride, self.relation.before
        first = span.made.start * stride - before
        stop = (span.made.stop - 1) * stride - before + (self.relation.kernel - 1) * self.relation.dilation + 1
        above, below = max(0, span.given.start - first), max(0, stop - span.given.stop)
        if above or below:
            image = F.pad(image, (0, 0) * (back - 1) + (above, below), value=max(self.beyond, least(image.dtype)))
        if image.shape[-back] > stop - first:  # rows between windows, which no window lies on
            image = image.narrow(-back, first - span.given.start + above, stop - first)
        return image, first


@dataclass(frozen=True)
class Convolution(Windows):
    """A convolution."""

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        image, _ = self.surrounded(tensors[0], span)
        result: Tensor = self.call([image, *tensors[1:]], padding=self.padding)
        return result


@dataclass(frozen=True)
class Unfold(Windows):
    """Windows as columns, row after row: (n, c, y, x) -> (n, c * kernel, windows)."""

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        image, _ = self.surrounded(tensors[0], span, back=2)
        result: Tensor = self.call([image], padding=[0, each(self.arguments["padding"], 2)[1]])
        return result


@dataclass(frozen=True)
class Spread(Step):
    """An operation by which each row of its inputs reaches some rows of the result, and no others.

    Of rows that follow one another, those of the result are kept that no other row reaches:

        row   -1  0  1  2  3  4  5  6
        a      *  *  *  *
        b            *  *  *  *           of a and b the rows 0, 1 and 2 can be made
        c                  *  *  *  *
    """

    @property
    def makes_anew(self) -> bool:
        return True

    def demand(self, low: Any, high: Any, size: int) -> Demand:
        assert isinstance(self.relation, Transposed)
        last = (low + self.relation.before) // self.relation.stride  # also where it reaches nothing
        return some(super().demand(low, high, size), last, size)

    def reached(self, span: Span) -> Interval:
        """The rows of the whole result that the given rows reach, those beyond its edges as well."""
        assert isinstance(self.relation, Transposed)
        stride, before = self.relation.stride, self.relation.before
        further = (self.relation.kernel - 1) * self.relation.dilation + 1
        return Interval(span.given.start * stride - before, (span.given.stop - 1) * stride - before + further)


@dataclass(frozen=True)
class TransposedConvolution(Spread):
    """A transposed convolution."""

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        bound, reached, beside = self.arguments, self.reached(span), dict[str, list[int]]()
        for name in ("padding", "output_padding"):
            beside[name] = each(bound[name], len(self.shape.dims) - 2)
            beside[name][-self.back] = 0
        result: Tensor = self.call(tensors, None, **beside)
        if span.made.stop > reached.stop:  # rows that no input row reaches hold the bias alone
            size = list(result.shape)
            size[self.dim] = span.made.stop - reached.stop
            rows, bias = result.new_zeros(size), bound["bias"]
            rows = rows if bias is None else rows + bias.view(-1, *[1] * (result.ndim - 2))
            result = torch.cat([result, rows], self.dim)
        return result.narrow(self.dim, span.made.start - reached.start, span.made.size)


@dataclass(frozen=True)
class Fold(Spread):
    """The sum of windows that were taken apart: (n, c * kernel, windows) -> (n, c, y, x)."""

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        reached = self.reached(span)
        size = max(reached.stop, span.made.stop) - reached.start, span.columns
        result: Tensor = self.call(tensors, output_size=size, padding=[0, each(self.arguments["padding"], 2)[1]])
        return result.narrow(self.dim, span.made.start - reached.start, span.made.size)


@dataclass(frozen=True)
class Padding(Step):
    """Padding of any mode, above and below at the image's edges only."""

    @property
    def makes_anew(self) -> bool:
        return False

    def demand(self, low: Any, high: Any, size: int) -> Demand:
        assert isinstance(self.relation, Pad)
        needed = super().demand(low, high, size)
        if self.relation.mode == "constant":
            return some(needed, low - self.relation.before, size)  # also where there is nothing but padding
        # torch mirrors within the rows that it is given, and wants one more of them than it adds
        before, after = self._amounts()
        above, below = low < before, high > size + before
        needed = unite(needed, (low * 0, above * min(before + 1, size)))
        return unite(needed, (size - below * min(after + 1, size), low * 0 + size))

    def _amounts(self) -> tuple[int, int]:
        bound, n = self.arguments, 2 * self.back
        amounts = bound["pad"] if "pad" in bound else bound["padding"]
        return (amounts[n - 2], amounts[n - 1]) if len(amounts) >= n else (0, 0)

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        assert isinstance(self.relation, Pad)
        before, after = self._amounts()
        above = max(0, before) if span.made.start < before else 0
        below = max(0, after) if span.made.stop > span.size + before else 0
        name = "pad" if "pad" in self.arguments else "padding"
        amounts, n = list(self.arguments[name]), 2 * self.back
        amounts[n - 2 : n] = [above, below]
        result: Tensor = self.call(tensors, None, **{name: amounts})
        origin = span.given.start + before - above
        return result.narrow(self.dim, span.made.start - origin, span.made.size)


@dataclass(frozen=True)
class Resize(Step):
    """Resizing, shuffling, or pooling to a part of the size, of rows that begin where an output row does."""

    period: int = 1
    """Input rows after which output rows begin at an input row again."""

    @property
    def sized(self) -> bool:
        """Whether the operation is told the size of its result."""
        return "output_size" in self.arguments

    @property
    def makes_anew(self) -> bool:
        return self.sized  # a shuffle by 1 is a view

    def demand(self, low: Any, high: Any, size: int) -> Demand:
        first, stop = super().demand(low, high, size)
        p = self.period
        return first // p * p, (-(-stop // p) * p).clip(max=size)

    def run(self, tensors: Sequence[Tensor], span: Span) -> Any:
        origin, rows = span.given.start * self.relation.rate, span.given.size * self.relation.rate
        assert origin.denominator == 1
        changed = {}
        if self.sized:
            sizes = self.shape.sizes(int(rows), span.columns)
            changed["output_size"] = sizes[-len(self.arguments["output_size"]) :]
        made = self.call(tensors, None, **changed)
        parts = [
            part.narrow(self.dim, span.made.start - int(origin), span.made.size)
            for part in (made if isinstance(made, tuple) else [made])
        ]
        return parts if isinstance(made, tuple) else parts[0]


def period_of(relation: Relation) -> int:
    """Input rows after which output rows begin at an input row again."""
    if isinstance(relation, Resample):
        return relation.scale.numerator
    return relation.stride if isinstance(relation, Window) else 1
