"""Where the image's rows and columns lie in a tensor, however it is permuted, flattened or split into windows.

A dimension is a list of factors, slowest first: rows ("y"), columns ("x") or anything else (""). So a feature map is
[], [C], [y], [x]; flattened for a transformer it is [], [y, x], [C]; a dimension of size 1 has no factors at all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from pipeline.network.relations import SAME, Relation, block, moves_nothing, repeat

Sizes = tuple[int, int]
"""Of the same dimension in two captures, from images of different sizes."""

AXES = ("y", "x")


class NotLocal(Exception):
    """An operation sees the whole image; the message says why."""


class Unknown(Exception):
    """The analysis cannot follow an operation; the message says why."""


_order = itertools.count()


@dataclass(eq=False)
class Rows:
    """The rows (or columns) of one tensor, and which rows of others they are computed from."""

    axis: str
    sizes: Sizes
    sources: tuple[tuple[Relation, Rows], ...] = ()
    rate: Fraction | None = None
    """Rows per row of the image, from strides and factors alone; None where that is not known."""
    number: int = field(default_factory=lambda: next(_order))
    """Sources have smaller numbers."""
    period: int = 1
    """They differ from one another in a pattern that repeats after so many."""
    follows: bool = True
    """Their number grows with the image as the relation says."""
    like: Rows | None = None
    """Those that they are as many as, where they are computed from nothing."""

    def derive(self, relation: Relation, sizes: Sizes) -> Rows:
        """Rows that are computed from these."""
        if sizes == self.sizes and moves_nothing(relation):
            return self
        grown = (self.sizes[1] - self.sizes[0]) * relation.rate
        rate = None if self.rate is None else self.rate * relation.rate
        return Rows(self.axis, sizes, ((relation, self),), rate, follows=sizes[1] - sizes[0] == grown)

    def patterned(self, period: int) -> Rows:
        """The same rows after something that repeats every `period` rows was laid over them."""
        return Rows(self.axis, self.sizes, ((SAME, self),), self.rate, period=period)

    def independent(self) -> Rows:
        """As many rows, computed from nothing."""
        return Rows(self.axis, self.sizes, (), self.rate, like=self)


def union(rows: Iterable[Rows]) -> Rows:
    """Rows of a tensor each of which is computed from the same row of several others, all of one size."""
    distinct = list(dict.fromkeys(rows))
    if len(distinct) == 1:
        return distinct[0]
    rates = {r.rate for r in distinct}
    rate = rates.pop() if len(rates) == 1 else None
    return Rows(distinct[0].axis, distinct[0].sizes, tuple((SAME, r) for r in distinct), rate)


class Factor(NamedTuple):
    axis: str
    sizes: Sizes


Dimension = tuple[Factor, ...]


def plain(sizes: Sizes) -> Dimension:
    """A dimension that has nothing to do with rows and columns."""
    return () if sizes == (1, 1) else (Factor("", sizes),)


def size(dimension: Dimension) -> Sizes:
    return math.prod(f.sizes[0] for f in dimension), math.prod(f.sizes[1] for f in dimension)


def axes_of(dimension: Dimension) -> set[str]:
    """Of "y" and "x", those that lie in the dimension."""
    return {f.axis for f in dimension if f.axis}


@dataclass(frozen=True)
class Tracked:
    """A tensor that depends on the image: the layout of its dimensions, and its rows and columns."""

    layout: tuple[Dimension, ...]
    rows: dict[str, Rows]
    pooled: dict[str, tuple[Relation, Sizes]] | None = None
    """Of the indices that a pooling returns: how rows are spread out again by unpooling, and how many were pooled.

    They count from the image's first row and column, so that they are good for unpooling alone.
    """

    @property
    def sizes(self) -> list[Sizes]:
        return [size(d) for d in self.layout]

    @property
    def ndim(self) -> int:
        return len(self.layout)

    def axes(self, dims: Iterable[int]) -> set[str]:
        """Of "y" and "x", those that lie in any of these dimensions."""
        return set().union(*(axes_of(self.layout[d]) for d in dims)) if self.ndim else set()

    def arranged(self, layout: Sequence[Dimension], rows: dict[str, Rows] | None = None) -> Tracked:
        """The same with other dimensions; rows and columns that no longer lie in any are dropped."""
        present = set().union(*map(axes_of, layout)) if layout else set()
        merged = {**self.rows, **(rows or {})}
        return Tracked(tuple(layout), {axis: merged[axis] for axis in present})

    def without(self, dims: Iterable[int], keep: bool) -> Tracked:
        """After a reduction over these dimensions, which are removed, or kept with size 1."""
        gone = {d % self.ndim for d in dims}
        layout = [() if i in gone else d for i, d in enumerate(self.layout) if keep or i not in gone]
        return self.arranged(layout)

    def resolved(self, dim: int) -> Tracked:
        """With the dimension as rows alone where it is rows times something faster: [y, 4] becomes [y] of 4 times."""
        dimension = self.layout[dim]
        if len(dimension) < 2 or not dimension[0].axis or axes_of(dimension[1:]):
            return self
        axis, sizes = dimension[0].axis, size(dimension)
        times = {size(dimension[1:])[i] for i in (0, 1)}
        if len(times) > 1:
            raise Unknown("rows are mixed with a dimension that changes with the image")
        rows = self.rows[axis].derive(repeat(times.pop()), sizes)
        layout = list(self.layout)
        layout[dim] = (Factor(axis, sizes),)
        return self.arranged(layout, {axis: rows})

    def moved(self, relations: dict[int, Relation], shape: Sequence[Sizes]) -> Tracked:
        """After an operation that moves the rows of some dimensions by a relation, to that shape.

        Dimensions without rows or columns just change their size.

        Raises:
            Unknown: such a dimension holds rows and columns at once.
        """
        tensor, layout, rows = self, list(self.layout), {}
        for dim, relation in relations.items():
            if tensor.sizes[dim] == shape[dim] and moves_nothing(relation):
                continue
            tensor = tensor.resolved(dim)
            dimension = tensor.layout[dim]
            if not axes_of(dimension):
                layout[dim] = plain(shape[dim])
                continue
            if len(dimension) != 1:
                raise Unknown("works on a dimension in which rows and columns are mixed")
            axis = dimension[0].axis
            rows[axis] = tensor.rows[axis].derive(relation, shape[dim])
            layout[dim] = (Factor(axis, shape[dim]),)
        return tensor.arranged(layout, rows)


def reshape(tensor: Tracked, shape: Sequence[Sizes]) -> Tracked:
    """The tensor's dimensions regrouped in row-major order.

    Splitting rows into groups of k leaves the groups as the rows, each standing for k rows, and k beside them.

    Raises:
        NotLocal: rows are split into a fixed number of parts, so that one part takes rows from all over the image.
        Unknown: the groups do not fit the factors.
    """
    queue = [f for dimension in tensor.layout for f in dimension]
    rows: dict[str, Rows] = dict(tensor.rows)
    layout = []
    for target in shape:
        need, dimension = target, list[Factor]()
        while need != (1, 1):
            if not queue:
                raise Unknown("reshapes in a way that cannot be followed")
            factor = queue.pop(0)
            if all(n % f == 0 for n, f in zip(need, factor.sizes, strict=True)):
                dimension.append(factor)
                need = need[0] // factor.sizes[0], need[1] // factor.sizes[1]
            else:
                head, rest = _split(factor, need, rows)
                dimension.append(head)
                queue.insert(0, rest)
                need = 1, 1
        layout.append(tuple(dimension))
    return tensor.arranged([*layout], rows)


def _split(factor: Factor, need: Sizes, rows: dict[str, Rows]) -> tuple[Factor, Factor]:
    """The factor as `need` slower ones times the rest; puts coarser rows in place where it is rows."""
    if any(f % n for f, n in zip(factor.sizes, need, strict=True)):
        raise Unknown("reshapes in a way that cannot be followed")
    rest = factor.sizes[0] // need[0], factor.sizes[1] // need[1]
    if factor.axis:
        if rest[0] != rest[1] and rows[factor.axis].rate is None:
            raise Unknown("reshapes in a way that cannot be followed")
        if rest[0] != rest[1]:
            raise NotLocal("splits the image into a fixed number of parts")
        rows[factor.axis] = rows[factor.axis].derive(block(rest[0]), need)
    return Factor(factor.axis, need), Factor("", rest)


def broadcast(tensors: Sequence[Tracked]) -> Tracked:
    """What an element-wise operation on the tensors gives: each row is computed from the same row of all.

    Raises:
        NotLocal: rows of one tensor meet all rows of another.
        Unknown: rows of one tensor meet something else of the same size in another.
    """
    ndim = max(t.ndim for t in tensors)
    tensors = [Tracked(((),) * (ndim - t.ndim) + t.layout, t.rows) for t in tensors]
    layout: list[Dimension] = []
    for dim in range(ndim):
        kinds = {t.layout[dim] for t in tensors if t.layout[dim]}
        if len(kinds) > 1:
            tensors = [t.resolved(dim) for t in tensors]
            kinds = {t.layout[dim] for t in tensors if t.layout[dim]}
        layout.append(_common(kinds))
    places = [axis for dimension in layout for axis in axes_of(dimension)]
    if len(places) > len(set(places)):
        raise NotLocal("combines every row with every other row")
    rows = {axis: union(t.rows[axis] for t in tensors if axis in t.rows) for axis in places}
    return Tracked(tuple(layout), rows)


def _common(kinds: set[Dimension]) -> Dimension:
    """The one layout that dimensions of equal size share."""
    spatial = {k for k in kinds if axes_of(k)}
    others = {size(k) for k in kinds - spatial}
    # what changes its size with the image and is not rows comes after an operation that was found to be not local
    if len(spatial) > 1 or (spatial and any(a == b for a, b in others)):
        raise Unknown("combines rows or columns with something else of the same size")
    if not kinds:
        return ()
    return spatial.pop() if spatial else min(kinds, key=len)
