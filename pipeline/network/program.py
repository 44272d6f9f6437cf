"""The graph of a network as steps that can run on some of its rows at a time.

The steps come from the same two captures, and rely on the same relations between rows, as the receptive field.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from pipeline.network import steps, windows
from pipeline.network.graph import Graph, Node, Ref, references
from pipeline.network.layouts import Rows, Tracked
from pipeline.network.prepare import copied_module
from pipeline.network.reach import Line
from pipeline.network.receptive_field import Found, followed
from pipeline.network.relations import Pad, Relation, Transposed, Window, moves_nothing
from pipeline.network.sliding import RESIZES


class CannotStream(Exception):
    """An operation cannot run on some of its rows; the message says which, and why."""


@dataclass(frozen=True)
class Flow:
    """A tensor while it streams."""

    dim: int
    """The dimension of its rows."""
    merged: bool
    """Whether that is the dimension of rows and columns: row after row."""
    rows: Line
    columns: Line
    row_items: int
    """Numbers in one row and column: its channels."""
    dtype: torch.dtype
    planar: bool
    """Whether it is (1, channels, y, x)."""


class Needs(NamedTuple):
    """Bytes that a pass takes in memory at most, above the weights."""

    arena: int
    """For rows that are held, in memory that is used again and again."""
    beside: int
    """For what a step joins, pads and makes, and rows that come in memory of their own."""


@dataclass(frozen=True)
class Program:
    """A network as steps over flows; run by `streaming`."""

    steps: tuple[steps.Step, ...]
    flows: dict[int, Flow]
    input: int
    output: int
    channels_last: bool = False
    """Whether the channels of a pixel lie together in its bands, and not the pixels of a channel."""
    counted: dict[tuple[int, int, int], Needs] = field(default_factory=dict, init=False, compare=False, repr=False)
    """What passes take, by rows and columns of the read and rows of a band, as far as it was asked for."""


def build(module: nn.Module, channels: int, found: Found | None = None) -> Program:
    """The program of a network in eval mode, for images of any size that is a multiple of its alignment.

    `found` is what `followed` returned for a copy of it, where somebody has that already.

    Raises:
        CannotStream: it has an operation that runs on whole maps only.
    """
    found = found or followed(copied_module(module, share=True), channels)  # it may keep what it made for an image
    first, second, analysis = found.first, found.second, found.analysis
    if first is second:
        raise CannotStream("the network takes one size only")
    if analysis.not_local or analysis.unknown:
        raise CannotStream("; ".join(analysis.not_local + analysis.unknown))
    builder = _Builder((first, second), analysis.values, analysis.image)
    made = tuple(builder.step(*nodes) for nodes in zip(first.nodes, second.nodes, strict=True))
    flows = {number: builder.flow(number) for step in made for number in step.outputs if number is not None}
    flows[first.input] = builder.flow(first.input)
    return Program(made, flows, first.input, first.output)


class _Builder:
    """Chooses the class of each step."""

    def __init__(self, graphs: tuple[Graph, Graph], values: dict[int, Tracked | None], image: dict[str, Rows]) -> None:
        self.graphs, self.values, self.image = graphs, values, image
        self.used = {graphs[0].output, *(v for node in graphs[0].nodes for v in references((node.args, node.kwargs)))}

    def flow(self, number: int) -> Flow:
        tracked = self.values[number]
        assert tracked is not None
        rows, columns = tracked.rows["y"], tracked.rows["x"]
        shape = self.graphs[0].shapes[number]
        items = math.prod(shape) // (rows.sizes[0] * columns.sizes[0])
        lines = Line.of(rows, self.image["y"]), Line.of(columns, self.image["x"])
        planar = list(shape) == [1, items, rows.sizes[0], columns.sizes[0]]
        return Flow(*self.place(number), *lines, items, self.graphs[0].dtypes[number], planar)

    def place(self, number: int) -> tuple[int, bool]:
        """The dimension in which the rows of a tensor lie; whether its columns lie in the same, row after row.

        Raises:
            CannotStream: they do not lie so, or in none of their own.
        """
        tracked = self.values[number]
        layout = [tuple(f.axis for f in dimension) for dimension in tracked.layout] if tracked is not None else []
        spatial = {axes: dim for dim, axes in enumerate(layout) if any(axes)}
        if spatial.keys() == {("y", "x")}:
            return spatial["y", "x"], True
        if spatial.keys() != {("y",), ("x",)} or sum(map(any, layout)) != 2:
            raise CannotStream("its rows or columns lie in no dimension of their own")
        return spatial["y",], False

    def step(self, node: Node, other: Node) -> steps.Step:
        """The step of an operation, of which there are two captures."""
        try:
            return self._step(node, other)
        except CannotStream as error:
            raise CannotStream(f"{node.path or 'network'}: {node.name}: {error}") from None

    def _step(self, node: Node, other: Node) -> steps.Step:
        inputs = tuple(dict.fromkeys(references((node.args, node.kwargs))))
        outputs = [v for v in node.outputs if v in self.used]
        if not outputs:
            raise CannotStream("a value is read by the network's Python code")
        for number in inputs:
            self.place(number)
        dims = {self.place(number)[0] for number in outputs}
        relations = {self.relation(number, output, "y") for number in inputs for output in outputs}
        if len(dims) != 1 or len(relations) != 1:
            raise CannotStream("its rows come from several places")
        dim, relation = dims.pop(), relations.pop()
        return self._kind(node, other, inputs, dim, relation)

    def relation(self, number: int, output: int, axis: str) -> Relation:
        """How the rows of an output come from those of an input."""
        source, result = self.values[number], self.values[output]
        assert source is not None and result is not None
        rows = result.rows[axis]
        if rows is source.rows[axis]:
            return Window()
        found = {relation for relation, of in rows.sources if of is source.rows[axis]}
        if len(found) != 1:
            raise CannotStream("its rows are not computed from the rows of its operand alone")
        return found.pop()

    def _kind(self, node: Node, other: Node, inputs: tuple[int, ...], dim: int, relation: Relation) -> steps.Step:
        outputs = tuple(number if number in self.used else None for number in node.outputs)
        made: dict[str, Any] = {
            "node": node, "inputs": inputs, "outputs": outputs, "dim": dim, "relation": relation
        }  # fmt: skip
        name = node.name
        planar = all(self.place(n) == (2, False) for n in (*inputs, *(n for n in outputs if n is not None)))
        if name in ("convolution", "_convolution") and planar and isinstance(relation, Window):
            return windows.Convolution(**made)
        if name in ("convolution", "_convolution") and planar and isinstance(relation, Transposed):
            return windows.TransposedConvolution(**made)
        if name == "max_pool2d_with_indices" and planar and node.outputs[1] not in self.used:
            return windows.MaxPool(**made)
        if name in ("slice", "slice_copy") and isinstance(relation, Window) and self._cuts(node):
            return steps.Slice(**made)
        if isinstance(relation, Pad) and planar and name != "cat":
            return windows.Padding(**made)
        if name in RESIZES and planar:
            return windows.Resize(**made, period=windows.period_of(relation), sized=True)
        if name in ("pixel_shuffle", "pixel_unshuffle") and planar:
            return windows.Resize(**made, period=windows.period_of(relation))
        if name == "avg_pool2d" and planar and isinstance(relation, Window):
            return windows.AveragePool(**made)
        if not moves_nothing(relation):
            raise CannotStream("runs on whole maps only")
        if name in ("view", "_unsafe_view", "reshape") or (name == "expand" and self._same_size(inputs[0], node)):
            return steps.Reshape(**made, shape=self._shape(node))
        if _constants(node) != _constants(other):
            raise CannotStream("is told sizes that depend on the image's")
        return steps.Step(**made)

    def _cuts(self, node: Node) -> bool:
        """Whether a slice takes some of the rows or columns, and not of the channels."""
        tracked = self.values[references(node.args)[0]]
        return tracked is not None and bool(tracked.axes([node.bound()["dim"]]))

    def _same_size(self, number: int, node: Node) -> bool:
        shapes = self.graphs[0].shapes
        return math.prod(shapes[number]) == math.prod(shapes[node.outputs[0]])  # type: ignore[index,arg-type]

    def _shape(self, node: Node) -> tuple[int | str, ...]:
        """Sizes of a view, "y", "x" and "yx" for those of rows and columns."""
        tracked = self.values[node.outputs[0]]  # type: ignore[index]
        assert tracked is not None
        shape: list[int | str] = []
        for dimension, sizes in zip(tracked.layout, tracked.sizes, strict=True):
            axes = [f.axis for f in dimension if f.axis]
            shape.append("".join(axes) if axes else sizes[0])
        return tuple(shape)


def _constants(node: Node) -> list[Any]:
    """What the operation is told beside tensors that depend on the image: numbers, and the shapes of constants."""
    leaves = tree_flatten((node.args, node.kwargs))[0]
    return [tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in leaves if not isinstance(leaf, Ref)]
