"""Follows rows and columns of the image through a network's graph, operation by operation."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from pipeline.network import arranging, mixing, picking, sliding  # noqa: F401  (they fill the table of operations)
from pipeline.network.graph import Graph, Node
from pipeline.network.layouts import (
    AXES,
    Dimension,
    Factor,
    NotLocal,
    Rows,
    Sizes,
    Tracked,
    Unknown,
    axes_of,
    plain,
    size,
)
from pipeline.network.operations import Call, Lost, Outputs, rule_of


@dataclass
class Findings:
    """Where rows and columns of the image went in two captures of a network."""

    image: dict[str, Rows]
    output: Tracked | None = None
    """None where it could not be followed to the end."""
    everything: list[Rows] = field(default_factory=list)
    values: dict[int, Tracked | None] = field(default_factory=dict)
    """All tensors, by their numbers in the first capture."""
    not_local: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def same_operations(first: Graph, second: Graph) -> str | None:
    """None where both captures ran the same operations on the same results of others, else the first that differs."""
    same: dict[int | None, int | None] = {first.input: second.input}
    for a, b in zip(first.nodes, second.nodes, strict=False):
        operands, others = (node.references for node in (a, b))
        if a.op is not b.op or a.constants != b.constants or [same.get(value) for value in operands] != others:
            return _label(a)
        same.update(zip(a.outputs, b.outputs, strict=False))
    if len(first.nodes) != len(second.nodes):
        longer = max((first, second), key=lambda g: len(g.nodes))
        return _label(longer.nodes[min(len(first.nodes), len(second.nodes))])
    return None


def _label(node: Node) -> str:
    return f"{node.path or 'network'}: {node.name}"


def analyse(first: Graph, second: Graph) -> Findings:
    """Follows two captures that ran the same operations, from images of different height and width.

    The same capture twice is for networks that accept one size only: what grows with the image is not known then.
    """
    shape = [(a, b) for a, b in zip(first.shapes[first.input], second.shapes[second.input], strict=True)]
    rows = {axis: Rows(axis, sizes, rate=Fraction(1)) for axis, sizes in zip(AXES, shape[2:], strict=True)}
    layout = [plain(shape[0]), plain(shape[1]), *((Factor(axis, rows[axis].sizes),) for axis in AXES)]
    analysis = Findings(rows)
    values: dict[int, Tracked | None] = {first.input: Tracked(tuple(layout), dict(rows))}
    seen: set[Rows] = set(rows.values())
    for nodes in zip(first.nodes, second.nodes, strict=True):
        call = Call(nodes, (first, second), values)
        results = _apply(nodes[0], call, values, analysis)
        for value, result in zip(nodes[0].outputs, results, strict=True):
            if value is not None:
                values[value] = result
        if not _all_follow(results, seen) and first is not second:
            call.not_local("its size does not follow the image's size")
        if not (call.reasons or analysis.not_local or analysis.unknown) and any(map(_varies, results)):
            call.not_local("has another number of channels on images of another size")
        if _counts_places(nodes[0], values, first.output):
            call.not_local(
                "takes the places that a pooling found as numbers, which count from the image's first row on"
            )
        analysis.not_local += [f"{_label(nodes[0])}: {reason}" for reason in call.reasons]
    analysis.output, analysis.values = values[first.output], values
    analysis.everything = list(seen)
    return analysis


def _apply(node: Node, call: Call, values: dict[int, Tracked | None], analysis: Findings) -> list[Tracked | None]:
    """The operation's results by its rule, or a guess after one that is not local or not known, to find others."""
    rule = rule_of(node)
    try:
        if rule is None:
            raise Unknown("the analysis does not know this operation")
        made: Outputs = rule(call)
        call.compare_numbers()
        results: list[Tracked | None] = [made] if isinstance(made, Tracked) else list(made)
        if results[0] is not None and not (call.reasons or analysis.not_local or call.fits(results[0])):
            raise Unknown("its result has another shape than its operands tell")
        return results
    except Lost:
        call.compare_numbers()
        return [None] * len(node.outputs)
    except NotLocal as reason:
        call.not_local(str(reason))
    except Unknown as reason:
        if any(values[v] is None for v in node.references):
            return [None] * len(node.outputs)
        analysis.unknown.append(f"{_label(node)}: {reason}")
    operands, _ = call.operands()
    return [_guess(call, i, operands) if v is not None else None for i, v in enumerate(node.outputs)]


def _guess(call: Call, output: int, operands: list[Tracked]) -> Tracked | None:
    """A result laid out like the first operand, with as many rows as it has; None where it has other dimensions."""
    try:
        shape = call.shape(output)
    except Unknown:
        return None
    like = next((t for t in operands if t.ndim == len(shape)), None)
    if like is None:
        return None
    layout: list[Dimension] = []
    rows: dict[str, Rows] = {}
    for dimension, sizes in zip(like.layout, shape, strict=True):
        if sizes == size(dimension):
            layout.append(dimension)
        elif (axes := axes_of(dimension)) and sizes != (1, 1):
            axis = max(axes)  # of rows and columns mixed the one will do, to find what sees them all
            layout.append((Factor(axis, sizes),))
            rows[axis] = _resized(like.rows[axis], sizes) if len(dimension) == 1 else Rows(axis, sizes)
        else:
            layout.append(plain(sizes))
    return like.arranged(layout, rows)


def _resized(rows: Rows, sizes: Sizes) -> Rows:
    ratios = {Fraction(a, b) for a, b in zip(sizes, rows.sizes, strict=True)}
    rate = rows.rate * ratios.pop() if rows.rate is not None and len(ratios) == 1 else None
    return Rows(rows.axis, sizes, rate=rate)


def _counts_places(node: Node, values: dict[int, Tracked | None], output: int) -> bool:
    """Whether places that a pooling found are used for something else than unpooling, or are the network's output."""
    read = node.references if node.name != "max_unpool2d" else []
    made = [value for value in node.outputs if value == output]
    return any(found is not None and found.pooled is not None for found in map(values.get, [*read, *made]))


def _varies(result: Tracked | None) -> bool:
    """Whether something else than rows and columns changes its size with the image."""
    sizes = [] if result is None else [f.sizes for dimension in result.layout for f in dimension if not f.axis]
    return any(a != b for a, b in sizes)


def _all_follow(results: list[Tracked | None], seen: set[Rows]) -> bool:
    """Whether all rows that an operation made grow with the image as they should; adds them to `seen`."""
    follows = True
    todo = [rows for result in results if result is not None for rows in result.rows.values()]
    while todo:
        rows = todo.pop()
        if rows not in seen:
            seen.add(rows)
            follows &= rows.follows
            todo += [source for _, source in rows.sources]
    return follows
