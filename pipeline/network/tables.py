"""Steps on constants that are as large as the image, and repeat every few rows and columns: masks, zeros, ramps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.network.flows import CannotStream
from pipeline.network.graph import Ref, replaced
from pipeline.network.layouts import Tracked
from pipeline.network.operations import repeats_after
from pipeline.network.relations import Demand, Pad, some
from pipeline.network.steps import Span, Step


@dataclass(frozen=True)
class Table:
    """A constant of which, along rows and columns, one period is there."""

    tensor: Tensor
    along: tuple[int, ...]
    """Dimensions in which rows or columns lie, counted from the last one, which is -1."""
    back: int
    """That of rows."""

    def part(self, sizes: Sequence[int], start: int) -> Tensor:
        """Those rows, from `start` on, that lie beside a tensor of these sizes."""
        tensor = self.tensor
        for dim in self.along:
            size, period = sizes[dim], tensor.shape[dim]
            if period == 1:
                tensor = tensor.expand([size if d == tensor.ndim + dim else -1 for d in range(tensor.ndim)])
            else:
                first = start if dim == self.back else 0
                places = torch.arange(first, first + size, device=tensor.device) % period
                tensor = tensor.index_select(dim, places)
        return tensor


def table(pair: tuple[Tensor, Tensor], result: Tracked, rows: int) -> Table:
    """A constant that was seen in two captures, beside a result with rows in that dimension.

    Raises:
        CannotStream: it grows where there are no rows or columns, or does not repeat.
    """
    tensor, along = pair[0], []
    for dim in range(-tensor.ndim, 0):
        if tensor.shape[dim] == pair[1].shape[dim]:
            continue
        period = repeats_after(pair, dim)
        if not result.axes([dim]) or period is None or (period > 1 and len(result.layout[dim]) > 1):
            raise CannotStream("is told values that depend on the image's size")
        tensor = tensor.narrow(dim, 0, period)
        along.append(dim)
    return Table(tensor.clone(), tuple(along), rows - result.ndim)


@dataclass(frozen=True)
class Beside(Step):
    """An operation on every row and what lies beside it in tables, which are among the node's arguments."""

    @property
    def pads(self) -> bool:
        return True

    def run(self, tensors: Sequence[Tensor], span: Span) -> Any:
        cut = {name: self.filled(self.cut(value, span), tensors) for name, value in self.arguments.items()}
        return self.call(tensors, None, **cut)

    def cut(self, argument: Any, span: Span) -> Any:
        """The argument with parts of the tables in it, as large as the rows to be made."""
        sizes = self.shape.sizes(span.made.size, span.columns)

        def part(leaf: Any) -> Any:
            return leaf.part(sizes, span.made.start) if isinstance(leaf, Table) else leaf

        return replaced(argument, part)


@dataclass(frozen=True)
class Join(Beside):
    """Constant rows before and after the others, at the image's edges only."""

    def demand(self, low: Any, high: Any, size: int) -> Demand:
        assert isinstance(self.relation, Pad)
        return some(super().demand(low, high, size), low - self.relation.before, size)

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        assert isinstance(self.relation, Pad)
        parts, before = self.arguments["tensors"], self.relation.before
        image = next(n for n, part in enumerate(parts) if isinstance(part, Ref))
        above, below = span.made.start < before, span.made.stop > span.size + before
        chosen = parts[0 if above else image : len(parts) if below else image + 1]
        result: Tensor = self.call(tensors, tensors=self.filled(self.cut(chosen, span), tensors))
        origin = span.given.start + before * (not above)
        return result.narrow(self.dim, span.made.start - origin, span.made.size)
