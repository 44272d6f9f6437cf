"""Steps whose rows come from several rows of their input: windows, padding and resizing.

At the image's true edges each adds what its operation would have put around the rows that exist; nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.network.relations import Demand, Pad, Relation, Resample, Transposed, Window, unite
from pipeline.network.steps import Span, Step


def _around(relation: Window, span: Span) -> tuple[int, int]:
    """Rows of padding that the windows of the rows to be made reach beyond the image's edges."""
    first = span.made.start * relation.stride - relation.before
    stop = (span.made.stop - 1) * relation.stride - relation.before + (relation.kernel - 1) * relation.dilation + 1
    return max(0, -first), max(0, stop - span.size)


@dataclass(frozen=True)
class Convolution(Step):
    """A convolution whose padding above and below is put there only at the image's edges."""

    @property
    def pads(self) -> bool:
        assert isinstance(self.relation, Window)
        return self.relation.kernel > 1

    @property
    def makes_anew(self) -> bool:
        return True

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        assert isinstance(self.relation, Window)
        above, below = _around(self.relation, span)
        image = F.pad(tensors[0], (0, 0, above, below)) if above or below else tensors[0]
        padding = list(self.arguments["padding"])
        result: Tensor = self.call([image, *tensors[1:]], padding=[0, padding[-1]])
        return result


@dataclass(frozen=True)
class MaxPool(Step):
    """A maximum over windows; beyond the image's edges there is nothing, which is less than anything."""

    @property
    def pads(self) -> bool:
        assert isinstance(self.relation, Window)
        return self.relation.kernel > 1

    @property
    def makes_anew(self) -> bool:
        return self.outputs[1] is None

    def run(self, tensors: Sequence[Tensor], span: Span) -> Any:
        assert isinstance(self.relation, Window)
        above, below = _around(self.relation, span)
        image = F.pad(tensors[0], (0, 0, above, below), value=-torch.inf) if above or below else tensors[0]
        padding = self.arguments["padding"] or [0]
        return self.call([image], padding=[0, padding[-1]])


@dataclass(frozen=True)
class AveragePool(Step):
    """A mean over windows: their sum, divided by what lies in each of them of the whole image, padded or not."""

    @property
    def pads(self) -> bool:
        return True

    @property
    def makes_anew(self) -> bool:
        return True

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        assert isinstance(self.relation, Window)
        above, below = _around(self.relation, span)
        image = F.pad(tensors[0], (0, 0, above, below)) if above or below else tensors[0]
        bound = self.arguments
        padding, override = list(bound["padding"]), bound["divisor_override"]
        if not bound["ceil_mode"] and (bound["count_include_pad"] or not any(padding)):
            result: Tensor = self.call([image], None, padding=[0, padding[-1]])
            return result
        result = self.call([image], None, padding=[0, padding[-1]], divisor_override=override or 1)
        if override:
            return result
        kernel, stride = list(bound["kernel_size"]), list(bound["stride"] or bound["kernel_size"])
        sizes = span.size, tensors[0].shape[3]
        outputs = torch.arange(span.made.start, span.made.stop), torch.arange(result.shape[3])
        rows, columns = (
            self._inside(
                outputs[axis],
                kernel[axis % len(kernel)],
                stride[axis % len(stride)],
                padding[axis % len(padding)],
                sizes[axis],
            )
            for axis in (0, 1)
        )
        return result / (rows[:, None] * columns).to(result)

    def _inside(self, outputs: Tensor, kernel: int, stride: int, padding: int, size: int) -> Tensor:
        """Rows or columns of the windows of these outputs that count."""
        first = outputs * stride - padding
        stop = (first + kernel).clamp(max=size + padding)
        if not self.arguments["count_include_pad"]:
            first, stop = first.clamp(min=0), stop.clamp(max=size)
        return stop - first


@dataclass(frozen=True)
class TransposedConvolution(Step):
    """A transposed convolution of some rows, of which those are kept that no other row adds to."""

    @property
    def makes_anew(self) -> bool:
        return True

    def demand(self, low: Any, high: Any, size: int) -> Demand:
        assert isinstance(self.relation, Transposed)
        own = ((low + self.relation.before) // self.relation.stride).clip(0, size - 1)  # where nothing is needed
        return unite(super().demand(low, high, size), (own, own + 1))

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        assert isinstance(self.relation, Transposed)
        bound = self.arguments
        origin = span.given.start * self.relation.stride - self.relation.before
        reached = origin + (span.given.size - 1) * self.relation.stride
        reached += (self.relation.kernel - 1) * self.relation.dilation + 1
        more = max(0, span.made.stop - reached)
        result: Tensor = self.call(
            tensors, padding=[0, bound["padding"][-1]], output_padding=[0, bound["output_padding"][-1]]
        )
        if more:  # rows that no input row reaches hold the bias alone
            bias = bound["bias"]
            rows = result.new_zeros((*result.shape[:2], more, result.shape[3]))
            result = torch.cat([result, rows if bias is None else rows + bias[:, None, None]], 2)
        return result.narrow(2, span.made.start - origin, span.made.size)


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
            own = (low - self.relation.before).clip(0, size - 1)  # where nothing but padding is needed
            return unite(needed, (own, own + 1))
        # torch mirrors within the rows that it is given, and wants one more of them than it adds
        before, after = self._amounts()
        above, below = low < before, high > size + before
        needed = unite(needed, (low * 0, above * min(before + 1, size)))
        return unite(needed, (size - below * min(after + 1, size), low * 0 + size))

    def _amounts(self) -> tuple[int, int]:
        bound = self.arguments
        amounts = bound["pad"] if "pad" in bound else bound["padding"]
        return (amounts[2], amounts[3]) if len(amounts) > 2 else (0, 0)

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        assert isinstance(self.relation, Pad)
        before, after = self._amounts()
        above = max(0, before) if span.made.start < before else 0
        below = max(0, after) if span.made.stop > span.size + before else 0
        bound = self.arguments
        name = "pad" if "pad" in bound else "padding"
        result: Tensor = self.call(tensors, None, **{name: [*bound[name][:2], above, below]})
        origin = span.given.start + before - above
        return result.narrow(2, span.made.start - origin, span.made.size)


@dataclass(frozen=True)
class Resize(Step):
    """Resizing or shuffling of rows that begin where an output row does."""

    period: int = 1
    """Input rows after which output rows begin at an input row again."""
    sized: bool = False
    """Whether the operation is told the size of its result."""

    @property
    def makes_anew(self) -> bool:
        return self.sized  # a shuffle by 1 is a view

    def demand(self, low: Any, high: Any, size: int) -> Demand:
        first, stop = super().demand(low, high, size)
        p = self.period
        return first // p * p, (-(-stop // p) * p).clip(max=size)

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        origin, rows = span.given.start * self.relation.rate, span.given.size * self.relation.rate
        assert origin.denominator == 1
        changed = {"output_size": [int(rows), span.columns]} if self.sized else {}
        result: Tensor = self.call(tensors, None, **changed)
        return result.narrow(2, span.made.start - int(origin), span.made.size)


def period_of(relation: Relation) -> int:
    """Input rows after which output rows begin at an input row again."""
    if isinstance(relation, Resample):
        return relation.scale.numerator
    return relation.stride if isinstance(relation, Window) else 1
