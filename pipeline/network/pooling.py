"""Steps that pool windows of rows, and put back what was pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipeline.network.relations import Window
from pipeline.network.steps import Span
from pipeline.network.windows import Spread, Windows


@dataclass(frozen=True)
class MaxPool(Windows):
    """A maximum over windows; beyond the image's edges there is nothing, which is less than anything."""

    beyond: ClassVar[float] = -torch.inf

    def run(self, tensors: Sequence[Tensor], span: Span) -> Any:
        image, first = self.surrounded(tensors[0], span)
        result = self.call([image], padding=self.padding)
        if self.outputs[1] is None:
            return result
        values, places = result
        return values, self._of_the_whole(places, first, image.shape[-1])

    def _of_the_whole(self, places: Tensor, first: int, columns: int) -> Tensor:
        """Places y * columns + x, of which y was counted from the row `first` on, in the whole map."""
        assert isinstance(self.relation, Window)
        places = places + first * columns
        if first < 0:  # where all that a window sees is -inf, its first row that is there
            rows = torch.div(places, columns, rounding_mode="floor")
            places = torch.where(rows < 0, places + (rows % self.relation.dilation - rows) * columns, places)
        return places


@dataclass(frozen=True)
class MaxUnpool(Spread):
    """Each value is put to the place of the maximum that it stands for, y * columns + x."""

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        image, places = tensors
        reached = self.reached(span)
        size = [max(reached.stop, span.made.stop) - reached.start, span.columns]
        result: Tensor = self.call([image, places - reached.start * span.columns], output_size=size)
        return result.narrow(self.dim, span.made.start - reached.start, span.made.size)


@dataclass(frozen=True)
class AveragePool(Windows):
    """A mean over windows: their sum, divided by what lies in each of them of the whole image, padded or not."""

    @property
    def pads(self) -> bool:
        return True

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        image, _ = self.surrounded(tensors[0], span)
        bound = self.arguments
        override, padding = bound["divisor_override"], self.padding
        if not bound["ceil_mode"] and (bound["count_include_pad"] or not any(self.each("padding"))):
            result: Tensor = self.call([image], padding=padding)
            return result
        result = self.call([image], padding=padding, divisor_override=override or 1)
        return result if override else result / self._counted(tensors[0], result, span)

    def _counted(self, image: Tensor, result: Tensor, span: Span) -> Tensor:
        """What lies in each window, one number for each of these output rows and columns."""
        counted = result.new_ones(())
        kernel, padding = self.each("kernel_size"), self.each("padding")
        stride = self.each("stride") if self.arguments["stride"] else kernel
        for n in range(-self.count, 0):
            size = span.size if n == -self.back else image.shape[n]
            start = span.made.start if n == -self.back else 0
            outputs = torch.arange(start, start + result.shape[n])
            inside = self._inside(outputs, kernel[n], stride[n], padding[n], size)
            counted = counted * inside.view(-1, *[1] * (-n - 1)).to(result)
        return counted

    def _inside(self, outputs: Tensor, kernel: int, stride: int, padding: int, size: int) -> Tensor:
        """Rows or columns of the windows of these outputs that count."""
        first = outputs * stride - padding
        stop = (first + kernel).clamp(max=size + padding)
        if not self.arguments["count_include_pad"]:
            first, stop = first.clamp(min=0), stop.clamp(max=size)
        return stop - first
