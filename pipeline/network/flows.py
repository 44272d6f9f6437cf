"""Tensors while they stream: where their rows lie, and how the rows of one come from those of another."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch

from pipeline.network.layouts import Dimension, Rows, Tracked, axes_of
from pipeline.network.reach import Line
from pipeline.network.relations import SAME, Relation, moves_nothing


class CannotStream(Exception):
    """An operation cannot run on some of its rows; the message says which, and why."""


@dataclass(frozen=True)
class Place:
    """Where the rows of a tensor lie: in which dimension, and what lies there within each of them and around all."""

    dim: int
    blocks: int = 1
    """Places that a row takes there, in each column: of rows that were put together from [y] and [2], 2."""
    merged: bool = False
    """Whether columns lie in the same dimension: row after row."""
    times: int = 1
    """How often all rows lie there, one time after the other: of rows that were put together from [8] and [y], 8."""
    upright: bool = False
    """Whether columns lie in the same dimension: column after column."""

    @property
    def plain(self) -> bool:
        """Whether the dimension holds rows and nothing else."""
        return self == Place(self.dim)

    def unit(self, columns: int) -> int:
        """Places that a row takes, of so many columns."""
        return self.blocks * (columns if self.merged else 1)

    def repeats(self, columns: int) -> int:
        """How often all rows lie there, of so many columns."""
        return self.times * (columns if self.upright else 1)

    @classmethod
    def of(cls, tracked: Tracked | None) -> Place:
        """The place of a tensor's rows.

        Raises:
            CannotStream: it has none, or no columns.
        """
        layout = () if tracked is None else tracked.layout
        rows = next((dim for dim, dimension in enumerate(layout) if "y" in axes_of(dimension)), None)
        if rows is None or not any("x" in axes_of(dimension) for dimension in layout):
            raise CannotStream("its rows or columns lie in no dimension")
        n = [factor.axis for factor in layout[rows]].index("y")
        slower, faster = layout[rows][:n], layout[rows][n + 1 :]
        return cls(rows, places(faster), "x" in axes_of(faster), places(slower), "x" in axes_of(slower))


def places(dimension: Dimension) -> int:
    """Places in a dimension for each row and column in it."""
    return math.prod(factor.sizes[0] for factor in dimension if not factor.axis)


@dataclass(frozen=True)
class Shape:
    """Sizes of a tensor that follow from its rows and columns: of each dimension, places for each of those in it."""

    dims: tuple[tuple[int, str], ...]

    @classmethod
    def of(cls, tracked: Tracked) -> Shape:
        return cls(tuple((places(d), "".join(sorted(axes_of(d)))) for d in tracked.layout))

    def sizes(self, rows: int, columns: int) -> list[int]:
        """Of a part of so many rows and columns."""
        number = {"": 1, "y": rows, "x": columns, "xy": rows * columns}
        return [each * number[axes] for each, axes in self.dims]


@dataclass(frozen=True)
class Flow:
    """A tensor while it streams."""

    place: Place
    rows: Line
    columns: Line
    shape: Shape
    dtype: torch.dtype

    @property
    def items(self) -> int:
        """Numbers in one row and column: its channels."""
        return math.prod(number for number, _ in self.shape.dims)

    @property
    def planar(self) -> bool:
        """Whether it is (1, channels, y, x)."""
        return self.shape.dims == ((1, ""), (self.items, ""), (1, "y"), (1, "x"))

    @classmethod
    def of(cls, tracked: Tracked, image: dict[str, Rows], dtype: torch.dtype) -> Flow:
        """The flow of a tensor.

        Raises:
            CannotStream: its rows lie in no place that can be cut.
        """
        place, shape = Place.of(tracked), Shape.of(tracked)
        lines = Line.of(tracked.rows["y"], image["y"]), Line.of(tracked.rows["x"], image["x"])
        return cls(place, *lines, shape, dtype)


def chain(rows: Rows, source: Rows, operands: Collection[Rows]) -> tuple[Relation, ...]:
    """Relations by which rows come from those of one operand, the last first; none where they are the same rows.

    What they have from other operands is left aside.

    Raises:
        CannotStream: they do not come from the operand, or in several ways.
    """
    found = _chains(rows, source, operands)
    if len(found) != 1:
        raise CannotStream("its rows are not computed from the rows of its operand alone")
    return found.pop()


def _chains(rows: Rows, source: Rows, operands: Collection[Rows]) -> set[tuple[Relation, ...]]:
    if rows is source:
        return {()}
    if rows in operands:
        return set()
    found = set[tuple[Relation, ...]]()
    for relation, of in rows.sources or ([(SAME, rows.like)] if rows.like else []):
        own = () if moves_nothing(relation) and rows.sizes == of.sizes else (relation,)
        found |= {(*own, *rest) for rest in _chains(of, source, operands)}
    return found
