"""The graph of a network as steps that can run on some of its rows at a time.

The steps come from the same two captures, and rely on the same relations between rows, as the receptive field.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import nn

from pipeline.network.choosing import Choice, source
from pipeline.network.flows import CannotStream, Flow, Place, Shape
from pipeline.network.graph import Graph, Node, Ref
from pipeline.network.layouts import Rows, Tracked
from pipeline.network.moving import Regroup
from pipeline.network.prepare import copied_module
from pipeline.network.receptive_field import Found, followed
from pipeline.network.relations import repeat
from pipeline.network.steps import Step


class Needs(NamedTuple):
    """Bytes that a pass takes in memory at most, above the weights."""

    arena: int
    """For rows that are held, in memory that is used again and again."""
    beside: int
    """For what a step joins, pads and makes, and rows that come in memory of their own."""


@dataclass(frozen=True)
class Program:
    """A network as steps over flows; run by `streaming`."""

    steps: tuple[Step, ...]
    flows: dict[int, Flow]
    input: int
    output: int
    channels_last: bool = False
    """Whether the channels of a pixel lie together in its bands, and not the pixels of a channel."""
    counted: dict[tuple[int, int, int], Needs] = field(default_factory=dict, init=False, compare=False, repr=False)
    """What passes take, by rows and columns of the read and rows of a band, as far as it was asked for."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the images that it takes."""
        return self.flows[self.input].dtype


def build(module: nn.Module, channels: int, found: Found | None = None, *, dtype: torch.dtype | None = None) -> Program:
    """The program of a network in eval mode, for images of any size that is a multiple of its alignment.

    `found` is what `followed` returned for a copy of it, where somebody has that already. `dtype` is the images' type,
    where it is not the network's own.

    Raises:
        CannotStream: it has an operation that runs on whole maps only.
    """
    if found is None:
        found = followed(copied_module(module, share=True), channels, dtype=dtype)  # it may keep what it made
    first, second, analysis = found.first, found.second, found.analysis
    if first is second:
        raise CannotStream("the network takes one size only")
    if analysis.not_local or analysis.unknown:
        raise CannotStream("; ".join(analysis.not_local + analysis.unknown))
    builder = _Builder(first, analysis.values, analysis.image)
    for nodes in zip(first.nodes, second.nodes, strict=True):
        builder.add(*nodes)
    return Program(tuple(builder.made), builder.flows, first.input, first.output)


class _Builder:
    """Makes the steps, and the flows between them."""

    def __init__(self, graph: Graph, values: dict[int, Tracked | None], image: dict[str, Rows]) -> None:
        self.values, self.image = dict(values), image
        self.dtypes = graph.dtypes
        self.used = {graph.output, *(v for node in graph.nodes for v in node.references)}
        self.made: list[Step] = []
        self.flows = {graph.input: self._flow(graph.input)}
        self.regrouped: dict[int, int] = {}
        """Flows of which rows that lie in groups are counted one by one, by those of the groups."""

    def add(self, node: Node, other: Node) -> None:
        """Adds the step of an operation, of which there are two captures, and what it needs before it.

        Raises:
            CannotStream: there is none.
        """
        try:
            step = self._choice(node, other).step()
            self.flows |= {number: self._flow(number) for number in step.outputs if number is not None}
        except CannotStream as error:
            raise CannotStream(f"{node.path or 'network'}: {node.name}: {error}") from None
        self.made.append(step)

    def _flow(self, number: int) -> Flow:
        return Flow.of(self._tracked(number), self.image, self.dtypes[number])

    def _tracked(self, number: int) -> Tracked:
        tracked = self.values[number]
        if tracked is None:
            raise CannotStream("its rows or columns lie in no dimension")
        return tracked

    def _choice(self, node: Node, other: Node) -> Choice:
        """The operation as one that may need rows one by one, which are made so before it."""
        inputs = list(dict.fromkeys(node.references))
        outputs = tuple(number if number in self.used else None for number in node.outputs)
        results = [self._tracked(number) for number in outputs if number is not None]
        if not results:
            raise CannotStream("a value is read by the network's Python code")
        operands = [self._tracked(number) for number in inputs]
        among = {tracked.rows["y"] for tracked in operands if "y" in tracked.rows}
        if len({Place.of(result) for result in results}) != 1:
            raise CannotStream("rows of its results lie in several places")
        relations = []
        for n, operand in enumerate(operands):
            found = {source(result.rows["y"], operand, among) for result in results}
            if len(found) != 1:
                raise CannotStream("its rows come from several places")
            one = found.pop()
            relations.append(one.relation)
            if one.groups > 1:
                inputs[n] = self._one_by_one(node, inputs[n])
                operands[n] = self._tracked(inputs[n])
        return Choice((node, other), tuple(inputs), outputs, tuple(operands), tuple(relations), results[0])

    def _one_by_one(self, node: Node, number: int) -> int:
        """The flow of a tensor's rows that lie in groups, counted one by one."""
        if number not in self.regrouped:
            tracked, place = self._tracked(number), Place.of(self._tracked(number))
            new = self.regrouped[number] = max(self.values) + 1
            self.values[new], self.dtypes = tracked.resolved(place.dim), {**self.dtypes, new: self.dtypes[number]}
            self.flows[new] = self._flow(new)
            look = replace(node, op=torch.ops.aten.view.default, args=(Ref(number), []), kwargs={}, outputs=(new,))
            shape = Shape.of(self._tracked(new))
            self.made.append(Regroup(look, (number,), (new,), place.dim, shape, repeat(place.blocks)))
        return self.regrouped[number]
