"""One small class for each way in which an operation can be run on some of its rows.

A step makes the rows [start, stop) of its output from the rows of its inputs that its relation demands, and from no
others. Padding is met at the image's true edges only: a step gets exactly the rows that exist and adds what the
operation would have put around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.network.graph import Node, Ref, references
from pipeline.network.relations import (
    SAME,
    Demand,
    Pad,
    Relation,
    Resample,
    Transposed,
    Window,
    demanded,
    moves_nothing,
    unite,
)
from pipeline.tiling.geometry import Interval


@dataclass(frozen=True)
class Span:
    """Which rows a step is to make, of the whole map's; the rows of its inputs that it gets; the maps' sizes."""

    made: Interval
    given: Interval
    """Rows of its first input; steps with several inputs get the same of each."""
    size: int
    """Rows of the whole first input."""
    columns: int
    """Columns of the output."""


ANEW = {"cat", "_softmax"}
"""Operations, beside those element by element, whose result is always memory of its own."""


def writing(op: Any) -> Any:
    """The form of an operation that writes into a tensor, `out`; None where there is none that does not copy."""
    if op is torch.ops.aten.relu.default:
        return lambda tensor, out: torch.ops.aten.clamp_min.out(tensor, 0, out=out)  # which is what relu calls
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
    """Every output row is computed from the same row of every input: the operation itself, run on some of them."""

    node: Node
    inputs: tuple[int, ...]
    """Flows that it reads, in the order in which the node first refers to its values."""
    outputs: tuple[int | None, ...]
    """Flows that it makes; None for results that nobody reads."""
    dim: int
    """The dimension of the outputs in which their rows lie."""
    relation: Relation = SAME
    then: tuple[Change, ...] = ()
    """What is done to its one result, in place."""

    @property
    def output(self) -> int:
        """The first flow that it makes; all have as many rows."""
        return next(number for number in self.outputs if number is not None)

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
    def values(self) -> list[int]:
        """What the arguments refer to, in the order of `inputs`."""
        return list(dict.fromkeys(references((self.node.args, self.node.kwargs))))

    def call(self, tensors: Sequence[Tensor], room: Tensor | None = None, **changed: Any) -> Any:
        """The operation with these tensors in place of the values that it refers to, and some arguments replaced.

        Writes into `room` where that is given.
        """
        held = dict(zip(self.values, tensors, strict=True))
        args, kwargs = [], {}
        for name, value in self.arguments.items():
            if isinstance(value, Ref):
                value = held[value.value]
            elif isinstance(value, list | tuple):
                value = [held[part.value] if isinstance(part, Ref) else part for part in value]
            if name in changed:
                value = changed[name]
            if name in self.keywords:
                kwargs[name] = value
            else:
                args.append(value)
        return self.node.op(*args, **kwargs) if room is None else self.writing(*args, out=room, **kwargs)


@dataclass(frozen=True)
class Reshape(Step):
    """A view that keeps rows and columns in dimensions of their own, or row after row in one."""

    shape: tuple[int | str, ...] = ()
    """Sizes of the result, "y", "x" and "yx" where they are those of rows and columns."""

    @property
    def makes_anew(self) -> bool:
        return False

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        sizes = {"y": span.made.size, "x": span.columns, "yx": span.made.size * span.columns}
        return tensors[0].reshape([n if isinstance(n, int) else sizes[n] for n in self.shape])


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
class Slice(Step):
    """Every so-manieth row, from a first one on; or columns cut off."""

    @property
    def makes_anew(self) -> bool:
        return False

    def run(self, tensors: Sequence[Tensor], span: Span) -> Tensor:
        assert isinstance(self.relation, Window)
        bound = self.arguments
        dim = bound["dim"] % tensors[0].ndim
        if dim == self.dim:
            return tensors[0][(slice(None),) * dim + (slice(None, None, self.relation.stride),)]
        start, step = bound["start"] or 0, bound["step"] or 1
        return tensors[0][(slice(None),) * dim + (slice(start, start + span.columns * step, step),)]


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
