"""Rules for operations that read or write elements at given or computed positions: indexing, gathers, look-ups."""

from __future__ import annotations

import itertools

import torch

from pipeline.network.layouts import NotLocal, Tracked, Unknown, plain
from pipeline.network.operations import PART, Call, Outputs, rule
from pipeline.network.relations import Relation, Window, repeat


@rule("index_put")
def write_masked(call: Call) -> Outputs:
    """x[mask] = value, for a mask of the same shape and one value."""
    indices, values = call.get("indices"), call.get("values")
    single = isinstance(values, torch.Tensor) and values.numel() == 1
    if len(indices) == 1 and single:
        mask = call.any_tensor((indices[0], call.pair("indices")[1][0]))
        if mask.sizes == call.shape():
            tracked, constants = call.operands()
            return call.combined(tracked, [c for c in constants if c[0].ndim == mask.ndim])
    raise Unknown("writes to computed positions")


@rule("index", "index_select")
def index(call: Call) -> Outputs:
    """Elements at constant positions of one dimension."""
    image, shape = call.tracked("self"), call.shape()
    if call.name == "index_select":
        at = {call.get("dim") % image.ndim: call.judged(call.pair("index"))}
    else:
        first, second = call.pair("indices")
        pairs = enumerate(zip(first, second, strict=True))
        at = {d: call.judged((a, b)) for d, (a, b) in pairs if a is not None}
    if any(not isinstance(a, torch.Tensor) or a.dtype in (torch.bool, torch.uint8) for a, _ in at.values()):
        raise Unknown("reads computed positions")
    lines = [{d - a.ndim for d, n in enumerate(a.shape) if n > 1} for a, _ in at.values()]
    if len(at) > 1 and _outer(lines) and list(at) == list(range(min(at), max(at) + 1)):
        tensor = image
        for dim, (a, b) in at.items():
            tensor = _pick(tensor, dim, (a.flatten(), b.flatten()))
        return tensor
    if len(at) > 1:
        raise Unknown("reads positions of several dimensions at once")
    ((dim, (a, b)),) = at.items()
    if a.ndim > 1 and image.axes([dim]):
        raise Unknown("reads rows or columns at several places at once")
    picked = _pick(image, dim, (a.flatten(), b.flatten()))
    extra = shape[dim : dim + a.ndim]
    middle = [picked.layout[dim]] if a.ndim == 1 else [plain(s) for s in extra]
    return picked.arranged([*picked.layout[:dim], *middle, *picked.layout[dim + 1 :]])


def _outer(lines: list[set[int]]) -> bool:
    """Each index runs along a dimension of its own, in order: rows times columns."""
    return all(len(line) == 1 for line in lines) and [min(line) for line in lines] == list(range(-len(lines), 0))


def _pick(image: Tracked, dim: int, positions: tuple[torch.Tensor, torch.Tensor]) -> Tracked:
    """Rows at constant positions: all that follow one another, every n-th, or each several times."""
    shape = list(image.sizes)
    shape[dim] = len(positions[0]), len(positions[1])
    if not image.axes([dim]):
        return image.arranged([*image.layout[:dim], plain(shape[dim]), *image.layout[dim + 1 :]])
    rows = [p.tolist() for p in positions]
    if any(row < 0 for row in itertools.chain(*rows)):
        raise NotLocal("reads the image's last rows or columns, counted from their end")
    for relation in _guesses(rows[0]):
        if all(_positions(relation, len(r)) == r for r in rows):
            return image.moved({dim: relation}, shape)
    raise NotLocal("reads rows or columns at given places of the image")


def _guesses(rows: list[int]) -> list[Relation]:
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    times = rows.count(rows[0]) if rows else 1
    return [Window(1, step, 1, -rows[0]) if rows and step > 0 else Window(), repeat(times)]


def _positions(relation: Relation, count: int) -> list[int]:
    if isinstance(relation, Window):
        return [o * relation.stride - relation.before for o in range(count)]
    return [o // relation.rate.numerator for o in range(count)]


@rule("gather", "take_along_dim", "scatter", "scatter_add", "scatter_reduce")
def gather(call: Call) -> Outputs:
    """Elements picked by computed numbers along one dimension, at the same place of all others."""
    shape = call.shape()
    dim = call.get("dim") % len(shape)
    tracked, constants = call.operands()
    if any(t.axes([dim]) for t in tracked):
        raise Unknown("reads or writes computed rows or columns")
    sizes = [t.sizes for t in tracked] + [list(zip(a.shape, b.shape, strict=True)) for a, b in constants if a.ndim]
    if any(len(s) != len(shape) or s[:dim] + s[dim + 1 :] != shape[:dim] + shape[dim + 1 :] for s in sizes):
        raise NotLocal(PART)  # torch leaves alone what lies beyond the least of them
    blank = [t.without([dim], keep=True) for t in tracked]
    result = call.combined(blank, [c for c in constants if c[0].ndim])
    return result.arranged([*result.layout[:dim], plain(shape[dim]), *result.layout[dim + 1 :]])


@rule("nonzero", "nonzero_numpy", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount")
def counted(call: Call) -> Outputs:
    raise NotLocal("has a result whose size depends on the image's values")


@rule("embedding")
def embedding(call: Call) -> Outputs:
    indices = call.tracked("indices")
    return indices.arranged([*indices.layout, plain(call.shape()[-1])])
