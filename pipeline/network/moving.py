"""Steps that move elements about unchanged: views, slices, picks, writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.network.relations import SAME, Demand, Relation, Transposed, Window, demanded, some
from pipeline.network.steps import Span, Step
from pipeline.network.tables import Beside

ONE_BY_ONE = Transposed(1, 1)


@dataclass(frozen=True)
class View(Step):
    """A step that copies nothing."""

    @property
    def makes_anew(self) -> bool:
        return False


@dataclass(frozen=True)
class Reshape(View):
    """The same numbers in other dimensions, also where rows are taken apart into groups of several."""

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        return tensors[0].reshape(self.shape.sizes(span.made.size, span.columns))


@dataclass(frozen=True)
class Expand(View):
    """The same numbers several times."""

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        return tensors[0].expand(self.shape.sizes(span.made.size, span.columns))


@dataclass(frozen=True)
class Regroup(View):
    """Rows that lie in groups of several, in one dimension, counted one by one from here on."""

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        origin = span.given.start * self.relation.rate
        return tensors[0].narrow(self.dim, span.made.start - int(origin), span.made.size)


@dataclass(frozen=True)
class Slice(View):
    """Every so-manieth row, from a first one on; or columns cut off."""

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        assert isinstance(self.relation, Window)
        bound = self.arguments
        dim = bound["dim"] % tensors[0].ndim
        if dim == self.dim:
            return tensors[0][(slice(None),) * dim + (slice(None, None, self.relation.stride),)]
        start, step = bound["start"] or 0, bound["step"] or 1
        size = self.shape.sizes(span.made.size, span.columns)[dim]
        return tensors[0][(slice(None),) * dim + (slice(start, start + size * step, step),)]


@dataclass(frozen=True)
class Pick(Step):
    """Rows and columns at constant positions, all that follow one another, every n-th, or each several times."""

    columns: Relation = SAME

    @property
    def makes_anew(self) -> bool:
        return True

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        places = {self.dim: positions(self.relation, span.made.start, span.made.stop) - span.given.start}
        if (1, "x") in self.shape.dims:
            places[self.shape.dims.index((1, "x"))] = positions(self.columns, 0, span.columns)
        bound = self.arguments
        if "indices" not in bound:
            dim = bound["dim"] % tensors[0].ndim
            result: Tensor = self.call(tensors, index=places.get(dim, bound["index"]).to(bound["index"].device))
            return result
        indices = list(bound["indices"])
        for dim, index in enumerate(indices):
            if index is not None and dim in places:
                indices[dim] = places[dim].to(index.device).view([-1 if n > 1 else 1 for n in index.shape])
        result = self.call(tensors, indices=indices)
        return result


def positions(relation: Relation, start: int, stop: int) -> Tensor:
    """The one row that each of the rows [start, stop) is a copy of."""
    rows = torch.arange(start, stop)
    if isinstance(relation, Window):
        return rows * relation.stride - relation.before
    return rows // relation.rate.numerator


@dataclass(frozen=True)
class Write(Beside):
    """A tensor or table, of which every so-manieth row or column from one on is replaced by those of the last input."""

    source: Transposed = ONE_BY_ONE
    """Where the rows of that input are put."""

    @property
    def makes_anew(self) -> bool:
        return True

    def demands(self, low: Any, high: Any, sizes: Sequence[int]) -> list[Demand]:
        last = (low + self.source.before) // self.source.stride
        replaced = some(demanded(self.source, (low, high), sizes[-1]), last, sizes[-1])
        return [*(self.demand(low, high, size) for size in sizes[:-1]), replaced]

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        source, bound = tensors[-1], self.arguments
        base = tensors[0] if len(tensors) > 1 else self.cut(bound["self"], span)
        result = base.clone(memory_format=torch.contiguous_format)
        dim = bound["dim"] % base.ndim
        start, step = bound["start"] or 0, bound["step"] or 1
        if dim == self.dim:
            start, step = span.givens[-1].start * step - self.source.before - span.made.start, self.source.stride
            above = min(source.shape[dim], max(0, -(start // step)))
            source, start = source.narrow(dim, above, source.shape[dim] - above), start + above * step
            inside = min(source.shape[dim], max(0, -((start - span.made.size) // step)))
            source = source.narrow(dim, 0, inside)
        if source.shape[dim]:
            stop = start + (source.shape[dim] - 1) * step + 1
            result[(slice(None),) * dim + (slice(start, stop, step),)] = source
        return result
