"""The table of operations that the analysis knows: one rule each, found by the operation's ATen name.

A rule gets a `Call`, the same operation in two captures of the network at different image sizes, and returns where
rows and columns lie in its outputs and which input rows they need. To add an operation, write its rule in the file
where it fits (sliding, arranging, picking, mixing) under `@rule("name")`, and a network with it into tests/zoo.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pipeline.network.graph import Graph, Node, Ref, leaves
from pipeline.network.layouts import NotLocal, Sizes, Tracked, Unknown, axes_of, broadcast, plain, size

Outputs = Tracked | Sequence[Tracked | None]
Rule = Callable[["Call"], Outputs]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enters a rule into the table under the ATen names of its operations, without overloads."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def rule_of(node: Node) -> Rule | None:
    """The rule for the operation; what PyTorch itself tags as pointwise needs no entry in the table."""
    if found := RULES.get(node.name):
        return found
    if torch.Tag.nondeterministic_seeded in node.op.tags:
        return random
    return elementwise if torch.Tag.pointwise in node.op.tags else None


class Lost(Exception):
    """An argument comes from an operation after which rows and columns could not be followed."""


SIZES = {"size", "shape", "output_size", "start", "end", "length", "pad", "padding", "repeats", "normalized_shape",
         "N", "HxW"}  # fmt: skip
"""Arguments that say how large something is or where it lies: rules judge them, most by the shapes that result."""

NUMBERS = "is told a number that depends on the image's size"
PLACES = "combines the image with values that depend on the position in it"
PART = "reads or writes only the first rows or columns of the image"


class Call:
    """One operation in two captures."""

    def __init__(self, nodes: tuple[Node, Node], graphs: tuple[Graph, Graph], values: dict[int, Tracked | None]):
        self.name = nodes[0].name
        self.module = nodes[0].module
        self.reasons: list[str] = []
        self._bound = nodes[0].bound(), nodes[1].bound()
        self._outputs = nodes[0].outputs, nodes[1].outputs
        self._graphs = graphs
        self._values = values
        self._judged: list[torch.Tensor] = []
        """Constants of which the rule itself says what it means that they differ from row to row."""

    def not_local(self, reason: str) -> None:
        """Notes that the operation sees the whole image; the rule goes on, so that all such operations are found."""
        if reason not in self.reasons:
            self.reasons.append(reason)

    def compare_numbers(self) -> None:
        """Finds numbers, and values of constants, that depend on the image's size, where the rule found nothing.

        What lies over more rows in one capture than in the other is compared as far as both go.
        """
        first, second = self._bound
        if self.reasons:
            return
        if not all(_told_alike(name, value, second[name]) for name, value in first.items()):
            self.not_local(NUMBERS)
        for pair in self.operands()[1]:
            if not any(pair[0] is judged for judged in self._judged) and _differs_from_row_to_row(pair):
                self.not_local(PLACES)

    def judged(self, pair: tuple[Any, Any]) -> tuple[Any, Any]:
        """A constant of which the rule itself says what it means that it differs from row to row."""
        self._judged.append(pair[0])
        return pair

    def get(self, name: str, default: Any = None) -> Any:
        """The argument in the first capture."""
        return self._bound[0].get(name, default)

    def pair(self, name: str) -> tuple[Any, Any]:
        """The argument in both captures."""
        return self._bound[0].get(name), self._bound[1].get(name)

    def has(self, name: str) -> bool:
        return name in self._bound[0]

    def is_tracked(self, name: str) -> bool:
        return isinstance(self.get(name), Ref)

    def follow(self, value: Any) -> Tracked:
        """The tensor that an argument refers to.

        Raises:
            Lost: it could not be followed.
        """
        assert isinstance(value, Ref)
        tracked = self._values[value.value]
        if tracked is None:
            raise Lost
        return tracked

    def tracked(self, name: str) -> Tracked:
        """The tensor of that name, which depends on the image.

        Raises:
            Unknown: it is a constant.
            Lost: it could not be followed.
        """
        if not self.is_tracked(name):
            raise Unknown(f"its {name} does not depend on the image, though another argument does")
        return self.follow(self.get(name))

    def any_tensor(self, pair: tuple[Any, Any]) -> Tracked:
        """A tensor argument; a constant has no rows, as one that changes from row to row is not local."""
        if isinstance(pair[0], Ref):
            return self.follow(pair[0])
        sizes = [(a, b) for a, b in zip(pair[0].shape, pair[1].shape, strict=True)]
        return Tracked(tuple(plain(s) for s in sizes), {})

    def shape(self, output: int = 0) -> list[Sizes]:
        """Of an output, in both captures.

        Raises:
            Unknown: the captures differ in the number of dimensions.
        """
        shapes = [
            graph.shapes[outputs[output]]  # type: ignore[index]
            for graph, outputs in zip(self._graphs, self._outputs, strict=True)
        ]
        if len(shapes[0]) != len(shapes[1]):
            raise Unknown("has another number of dimensions on images of another size")
        return list(zip(*shapes, strict=True))

    def fits(self, result: Tracked) -> bool:
        """Whether it is as large as the operation's first output, if that is used."""
        return self._outputs[0][0] is None or result.sizes == self.shape()

    @property
    def outputs(self) -> int:
        return len(self._outputs[0])

    def operands(self) -> tuple[list[Tracked], list[tuple[torch.Tensor, torch.Tensor]]]:
        """All tensor arguments: those that depend on the image and could be followed, and the constants."""
        first, second = (list(_tensors(bound.values())) for bound in self._bound)
        followed = [self._values[a.value] for a in first if isinstance(a, Ref)]
        constants = [(a, b) for a, b in zip(first, second, strict=True) if isinstance(a, torch.Tensor)]
        return [t for t in followed if t is not None], constants

    def combined(self, tracked: Sequence[Tracked], constants: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Tracked:
        """Tensors that meet element by element; finds constants that differ from row to row."""
        if not tracked:
            raise Lost
        result = broadcast(tracked)
        ndim = max([result.ndim, *(c[0].ndim for c in constants)])
        layout = [()] * (ndim - result.ndim) + list(result.layout)
        rows = dict(result.rows)
        for pair in map(self.judged, constants):
            for back in range(1, pair[0].ndim + 1):
                sizes = pair[0].shape[-back], pair[1].shape[-back]
                if sizes == (1, 1):
                    continue
                if axes_of(layout[-back]) and sizes != size(layout[-back]):
                    raise NotLocal(PART)
                if not axes_of(layout[-back]):
                    layout[-back] = layout[-back] or plain(sizes)
                    continue
                period = repeats_after(pair, -back)
                for axis in axes_of(layout[-back]) if period != 1 else ():
                    if period is None or len(layout[-back]) > 1:
                        self.not_local(_position_table(sizes))
                    else:
                        rows[axis] = rows[axis].patterned(period)
        return result.arranged(layout, rows)


def _told_alike(name: str, first: Any, second: Any) -> bool:
    """Whether an argument is the same in both captures, but for tensors that depend on the image and for sizes."""
    a, b = ([leaf for leaf in leaves(argument) if not isinstance(leaf, Ref)] for argument in (first, second))
    if name in SIZES:
        a, b = ([leaf for leaf in part if isinstance(leaf, torch.Tensor)] for part in (a, b))
    return len(a) == len(b) and all(map(_alike, a, b))


def _alike(a: Any, b: Any) -> bool:
    """Whether two constants are equal as far as both go; numbers of Python may be rounded otherwise."""
    if a is b:
        return True
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor) or a.ndim != b.ndim:
            return False
        common = tuple(slice(min(sizes)) for sizes in zip(a.shape, b.shape, strict=True))
        return _equal(a.detach()[common], b.detach()[common])
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9) or (a != a and b != b)
    return bool(a == b)


def _tensors(arguments: Any) -> Any:
    for argument in arguments:
        if isinstance(argument, (Ref, torch.Tensor)):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _tensors(argument)


LONGEST_PERIOD = 16


def repeats_after(pair: tuple[torch.Tensor, torch.Tensor], dim: int) -> int | None:
    """After how many rows the constant repeats in both captures, 1 where all are the same; None where it does not.

    Rows are compared with those that follow at least three times.
    """
    first, second = (c.detach().movedim(dim, 0) for c in pair)
    for period in range(1, min(LONGEST_PERIOD, max(1, min(len(first), len(second)) // 4)) + 1):
        if all(_equal(c[:-period], c[period:]) for c in (first, second)):
            return period
    return None


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one shape are, and NaN where the other is."""
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _position_table(sizes: Sizes) -> str:
    if sizes[0] == sizes[1]:
        return f"position table of fixed size ({sizes[0]})"
    return PLACES


def _differs_from_row_to_row(pair: tuple[torch.Tensor, torch.Tensor]) -> bool:
    """Whether a constant that is larger for a larger image has other values at other places."""
    grows = [dim for dim, (a, b) in enumerate(zip(pair[0].shape, pair[1].shape, strict=False)) if a != b]
    return pair[0].ndim == pair[1].ndim and any(repeats_after(pair, dim) != 1 for dim in grows)


@rule(
    "_prelu_kernel", "_to_copy", "alias", "clone", "detach", "contiguous", "hardswish", "fill", "floor_divide", "rsub",
    "log_sigmoid_forward", "lift_fresh", "complex", "polar", "real", "imag", "conj", "_conj",
    "resolve_conj", "resolve_neg", "_neg_view", "where", "bucketize", "prelu",
)  # fmt: skip
def elementwise(call: Call) -> Outputs:
    """Each element of the output is computed from the elements at the same place."""
    result = call.combined(*call.operands())
    return [result] * call.outputs


@rule("zeros_like", "ones_like", "full_like", "empty_like", "zero")
def like(call: Call) -> Outputs:
    """As large as the argument, and independent of its values."""
    tensor = call.tracked("self")
    return tensor.arranged(tensor.layout, {axis: rows.independent() for axis, rows in tensor.rows.items()})


def random(call: Call) -> Outputs:
    raise Unknown("draws random numbers")


@rule("native_dropout")
def dropout(call: Call) -> Outputs:
    if call.get("train") is not False and call.get("p") != 0:
        return random(call)
    return elementwise(call)


@rule("rrelu_with_noise", "rrelu_with_noise_functional")
def random_slope(call: Call) -> Outputs:
    return random(call) if call.get("training") else elementwise(call)


@rule("_local_scalar_dense", "item", "is_nonzero", "equal", "_is_all_true", "_is_any_true")
def read_in_python(call: Call) -> Outputs:
    call.not_local("the network's Python code reads a value that depends on the image")
    return [None] * call.outputs


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def sample(call: Call) -> Outputs:
    raise NotLocal("samples the image at positions anywhere in it")
