"""One small class for each way in which an operation can be run on some of its rows.

Those that move elements about are in `moving`, those over windows in `windows` and `pooling`.

A step makes the rows [start, stop) of its output from the rows of its inputs that its relation demands, and from no
others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pipeline.network.flows import Shape
from pipeline.network.graph import Node, Ref, references, replaced
from pipeline.network.relations import SAME, Demand, Relation, demanded, moves_nothing
from pipeline.tiling.geometry import Interval


@dataclass(frozen=True)
class Span:
    """Which rows a step is to make, of the whole map's; the rows of its inputs that it gets; the maps' sizes."""

    made: Interval
    givens: tuple[Interval, ...]
    """Rows of each of its inputs."""
    size: int
    """Rows of the whole first input."""
    columns: int
    """Columns of the output."""

    @property
    def given(self) -> Interval:
        """Rows of its first input."""
        return self.givens[0]


ANEW = {"cat", "_softmax"}
"""Operations, beside those element by element, whose result is always memory of its own."""


def writing(op: Any) -> Any:
    """The form of an operation that writes into a tensor, `out`; None where there is none that does not copy."""
    if op is torch.ops.aten.relu.default:
        return lambda tensor, out: torch.ops.aten.clamp_min.out(tensor, 0, out=out)  # which is what relu calls
    if op.overloadpacket is torch.ops.aten.gelu:
        return None  # oneDNN takes the room to be laid out as the operand is, and writes beside it
    wanted = [(argument.name, str(argument.type)) for argument in op._schema.arguments]
    for name in op.overloadpacket.overloads():
        form = getattr(op.overloadpacket, name)
        *arguments, last = form._schema.arguments
        copies = torch.Tag.generated in form.tags
        if last.is_out and last.name == "out" and [(a.name, str(a.type)) for a in arguments] == wanted and not copies:
            return form
    return None


@dataclass(frozen=True)
class Change:
    """An operation element by element on one tensor, in that tensor's place."""

    node: Node
    in_place: Any
    """The operation's form that works in place."""

    @cached_property
    def writing(self) -> Any:
        """The operation's form that writes into another tensor; None where there is none."""
        return writing(self.node.op)

    def __call__(self, tensor: Tensor) -> None:
        self.in_place(tensor, *self.node.args[1:], **self.node.kwargs)

    def fill(self, tensor: Tensor, room: Tensor) -> None:
        """Writes what it makes of a tensor into `room`."""
        self.writing(tensor, *self.node.args[1:], out=room, **self.node.kwargs)


@dataclass(frozen=True)
class Step:
    """The operation itself, run on the rows that its relation demands."""

    node: Node
    inputs: tuple[int, ...]
    """Flows that it reads, in the order in which the node first refers to its values."""
    outputs: tuple[int | None, ...]
    """Flows that it makes; None for results that nobody reads."""
    dim: int
    """The dimension of the outputs in which their rows lie."""
    shape: Shape
    """Of its first result."""
    relation: Relation = SAME
    then: tuple[Change, ...] = ()
    """What is done to its one result, in place."""

    @cached_property
    def output(self) -> int:
        """The first flow that it makes; all have as many rows."""
        return next(number for number in self.outputs if number is not None)

    @cached_property
    def back(self) -> int:
        """The dimension of rows, counted from the last one, which is 1."""
        return len(self.shape.dims) - self.dim

    @property
    def pads(self) -> bool:
        """Whether it copies its input once more at the image's edges."""
        return False

    @property
    def makes_anew(self) -> bool:
        """Whether its one result is memory of its own, and not a look at its operands'."""
        anew = torch.Tag.pointwise in self.node.op.tags or self.node.name in ANEW
        return len(self.outputs) == 1 and anew

    @cached_property
    def writing(self) -> Any:
        """The operation's form that writes into a tensor, where every output row comes from the same input rows."""
        # Others than these may write as if the tensor had memory of its own: softmax does.
        able = torch.Tag.pointwise in self.node.op.tags or self.node.name == "cat"
        return writing(self.node.op) if able and type(self) is Step and moves_nothing(self.relation) else None

    def demand(self, low: Any, high: Any, size: int) -> Demand:
        """The rows of an input of that size that the output rows [low, high) are made of."""
        return demanded(self.relation, (low, high), size)

    def demands(self, low: Any, high: Any, sizes: Sequence[int]) -> list[Demand]:
        """The same of all inputs, which have these sizes."""
        return [self.demand(low, high, size) for size in sizes]

    @property
    def writes(self) -> bool:
        """Whether its one result need not be copied to lie in a given place."""
        return self.writing is not None or any(change.writing is not None for change in self.then)

    def make(self, tensors: Sequence[Tensor], span: Span) -> Sequence[Any]:
        """Its results, one for each of `outputs`, of the rows that the span asks for."""
        result = self.run(tensors, span)
        results = result if isinstance(result, tuple | list) else [result]
        for change in self.then:
            change(results[0])
        return results

    def fill(self, tensors: Sequence[Tensor], span: Span, room: Tensor) -> None:
        """Writes its one result, of the rows that the span asks for, into `room`."""
        changes = list(self.then)
        if self.writing is not None:
            self.call(tensors, room)
        else:
            results = self.run(tensors, span)
            result = results[self.outputs.index(self.output)] if isinstance(results, tuple | list) else results
            while len(changes) > 1 or (changes and changes[0].writing is None):
                changes.pop(0)(result)
            if changes:
                changes.pop(0).fill(result, room)
            else:
                room.copy_(result)
        for change in changes:
            change(room)

    def run(self, tensors: Sequence[Tensor], span: Span) -> Any:
        """What the operation returns, of these rows."""
        return self.call(tensors)

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The operation's arguments by name, in their order."""
        bound = self.node.bound()
        return {argument.name: bound[argument.name] for argument in self.node.op._schema.arguments}

    @cached_property
    def keywords(self) -> set[str]:
        """Those that cannot be given by position."""
        return {argument.name for argument in self.node.op._schema.arguments if argument.kwarg_only}

    @cached_property
    def referring(self) -> dict[str, Any]:
        """Those that refer to values."""
        return {name: value for name, value in self.arguments.items() if references(value)}

    @cached_property
    def values(self) -> list[int]:
        """What the arguments refer to, in the order of `inputs`."""
        return list(dict.fromkeys(self.node.references))

    def filled(self, argument: Any, tensors: Sequence[Tensor]) -> Any:
        """An argument with these tensors in place of the values that it refers to."""
        held = dict(zip(self.values, tensors, strict=True))

        def fill(leaf: Any) -> Any:
            return held[leaf.value] if isinstance(leaf, Ref) else leaf

        return replaced(argument, fill)

    def call(self, tensors: Sequence[Tensor], room: Tensor | None = None, /, **changed: Any) -> Any:
        """The operation with these tensors in place of the values that it refers to, and some arguments replaced.

        Writes into `room` where that is given.
        """
        given = self.arguments | {name: self.filled(value, tensors) for name, value in self.referring.items()} | changed
        kwargs = {name: given.pop(name) for name in self.keywords}
        args = given.values()
        return self.node.op(*args, **kwargs) if room is None else self.writing(*args, out=room, **kwargs)


@dataclass(frozen=True)
class GroupNorm(Step):
    """A norm over groups of channels at each place, of which it is told how many there are."""

    def run(self, tensors: Sequence[Tensor], span: Span) -> Any:
        places, _, *inside = tensors[0].shape
        return self.call(tensors, N=places, HxW=math.prod(inside))
