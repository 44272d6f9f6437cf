"""Rules for operations that move elements about unchanged: views, slices, joins, writes."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.network.layouts import Dimension, NotLocal, Tracked, Unknown, broadcast, plain, reshape, size
from pipeline.network.operations import NUMBERS, Call, Outputs, rule
from pipeline.network.relations import Pad, Window
from pipeline.network.sliding import PADS, placed

FAR_EDGE = "counts rows or columns from the far edge of the image (circular padding does)"


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy")
def view(call: Call) -> Outputs:
    return reshape(call.tracked("self"), call.shape())


@rule("permute", "permute_copy")
def permute(call: Call) -> Outputs:
    image = call.tracked("self")
    return image.arranged([image.layout[d] for d in call.get("dims")])


@rule("transpose", "transpose_copy", "t", "numpy_T", "mT")
def transpose(call: Call) -> Outputs:
    image = call.tracked("self")
    layout = list(image.layout)
    a, b = (call.get("dim0"), call.get("dim1")) if call.name.startswith("transpose") else (0, -1)
    layout[a], layout[b] = layout[b], layout[a]
    return image.arranged(layout)


@rule("unsqueeze", "unsqueeze_copy")
def unsqueeze(call: Call) -> Outputs:
    image = call.tracked("self")
    layout = list(image.layout)
    layout.insert(call.get("dim") % (image.ndim + 1), ())
    return image.arranged(layout)


@rule("squeeze", "squeeze_copy")
def squeeze(call: Call) -> Outputs:
    image = call.tracked("self")
    dims = call.get("dim", range(image.ndim))
    gone = {d % image.ndim for d in ([dims] if isinstance(dims, int) else dims)}
    return image.arranged([d for i, d in enumerate(image.layout) if i not in gone or size(d) != (1, 1)])


@rule("expand", "expand_copy")
def expand(call: Call) -> Outputs:
    image, shape = call.tracked("self"), call.shape()
    layout: list[Dimension] = [()] * (len(shape) - image.ndim) + list(image.layout)
    return image.arranged([d or plain(s) for d, s in zip(layout, shape, strict=True)])


@rule("repeat")
def tile(call: Call) -> Outputs:
    image, shape = call.tracked("self"), call.shape()
    layout: list[Dimension] = [()] * (len(shape) - image.ndim) + list(image.layout)
    repeated = Tracked(tuple(layout), image.rows)
    times = list(zip(*call.pair("repeats"), strict=True))
    if repeated.axes(d for d, n in enumerate(times) if n != (1, 1)):
        raise NotLocal("repeats the whole image")
    return repeated.arranged([d if n == (1, 1) else plain(s) for d, n, s in zip(layout, times, shape, strict=True)])


@rule("diagonal", "tril", "triu", "as_strided", "as_strided_scatter", "diagonal_scatter", "rot90")
def scattered(call: Call) -> Outputs:
    for tensor in call.operands()[0]:
        if tensor.rows:
            raise Unknown("its elements' places cannot be followed")
    raise Unknown("its dimensions cannot be followed")


def _start(call: Call, name: str, sizes: tuple[int, int]) -> tuple[int, int]:
    """Where a slice begins, in both captures, counted from the first row."""
    starts = [0 if s is None else int(s) for s in call.pair(name)]
    first, second = (min(max(0, s + n if s < 0 else s), n) for s, n in zip(starts, sizes, strict=True))
    return first, second


@rule("slice", "slice_copy", "narrow")
def cut(call: Call) -> Outputs:
    image, shape = call.tracked("self"), call.shape()
    dim = call.get("dim") % image.ndim
    if image.sizes[dim] == shape[dim]:
        return image
    start = _start(call, "start", image.sizes[dim])
    if not image.axes([dim]):
        if start[0] != start[1]:
            call.not_local(NUMBERS)
        return image.arranged([*image.layout[:dim], plain(shape[dim]), *image.layout[dim + 1 :]])
    if start[0] != start[1]:
        call.not_local(FAR_EDGE)
    elif shape[dim][0] == shape[dim][1] and image.sizes[dim][0] != image.sizes[dim][1]:
        call.not_local(f"takes {shape[dim][0]} rows or columns at a fixed place of the image")
    return image.moved({dim: Window(1, call.get("step") or 1, 1, -start[0])}, shape)


@rule("select", "select_copy")
def select(call: Call) -> Outputs:
    image = call.tracked("self")
    dim = call.get("dim") % image.ndim
    if image.axes([dim]):
        call.not_local("takes a row or column at a fixed place of the image")
    return image.without([dim], keep=False)


@rule("unbind", "unbind_copy")
def unbind(call: Call) -> Outputs:
    image = call.tracked("self")
    dim = call.get("dim") % image.ndim
    if image.axes([dim]):
        raise NotLocal("takes the image apart into single rows or columns")
    return [image.without([dim], keep=False)] * call.outputs


@rule("split", "split_with_sizes", "chunk", "tensor_split", "split_copy", "split_with_sizes_copy")
def split(call: Call) -> Outputs:
    image = call.tracked("self")
    dim = call.get("dim") % image.ndim
    if image.axes([dim]):
        raise NotLocal("takes the image apart into parts of a fixed size, or into a fixed number of them")
    parts = [call.shape(i)[dim] for i in range(call.outputs)]
    return [image.arranged([*image.layout[:dim], plain(p), *image.layout[dim + 1 :]]) for p in parts]


@rule("cat", "concatenate")
def cat(call: Call) -> Outputs:
    shape, pairs = call.shape(), list(zip(*call.pair("tensors"), strict=True))
    pairs = [p for p in pairs if not (isinstance(p[0], torch.Tensor) and p[0].numel() == 0)]
    dim = call.get("dim") % len(shape)
    tracked = [call.any_tensor(p) for p in pairs if not isinstance(p[0], torch.Tensor)]
    constants = [p for p in pairs if isinstance(p[0], torch.Tensor)]
    if any(t.axes([dim]) for t in tracked):
        return _cat_rows(call, pairs, dim)
    blank = [t.without([dim], keep=True) for t in tracked]
    result = call.combined(blank, constants)
    return result.arranged([*result.layout[:dim], plain(shape[dim]), *result.layout[dim + 1 :]])


def _cat_rows(call: Call, pairs: list[tuple[Any, Any]], dim: int) -> Tracked:
    """Constant rows before or after the image's: padding by hand."""
    before, image = 0, None
    for a, b in pairs:
        if not isinstance(a, torch.Tensor):
            if image is not None:
                raise Unknown("joins rows or columns of several tensors")
            image = call.any_tensor((a, b))
        elif a.shape[dim] != b.shape[dim]:
            raise NotLocal(PADS)
        elif image is None:
            before += a.shape[dim]
    assert image is not None
    constants = [p for p in pairs if isinstance(p[0], torch.Tensor)]
    moved = image.moved({dim: Pad(before)}, call.shape())
    call.combined([moved.without([dim], keep=True)], constants)
    return moved


@rule("stack")
def stack(call: Call) -> Outputs:
    shape = call.shape()
    dim = call.get("dim") % len(shape)
    result = call.combined(*call.operands())
    return result.arranged([*result.layout[:dim], plain(shape[dim]), *result.layout[dim:]])


@rule("copy")
def overwrite(call: Call) -> Outputs:
    """All of `self` is replaced by `src`."""
    if call.is_tracked("src"):
        shape, source = call.shape(), call.tracked("src")
        base = [call.tracked("self")] if call.is_tracked("self") else []
        base = [t.arranged(t.layout, {axis: r.independent() for axis, r in t.rows.items()}) for t in base]
        result = broadcast([source, *base])
        return result.arranged([d or plain(s) for d, s in zip(result.layout, shape, strict=True)])
    image = call.tracked("self")
    blank = image.arranged(image.layout, {axis: rows.independent() for axis, rows in image.rows.items()})
    return call.combined([blank], call.operands()[1])


@rule("slice_scatter")
def write_slice(call: Call) -> Outputs:
    """`self` with some of its rows, columns or channels replaced by `src`."""
    shape, ends = call.shape(), call.pair("src")
    dim = call.get("dim") % len(shape)
    source = call.any_tensor(ends)
    base = call.any_tensor(call.pair("self"))
    if source.sizes[dim] == shape[dim]:
        return source if call.is_tracked("src") else overwrite_all(call, base)
    start = _start(call, "start", shape[dim])
    tracked = [t for t, name in ((base, "self"), (source, "src")) if call.is_tracked(name)]
    if not any(t.axes([dim]) for t in tracked):
        if start[0] != start[1]:
            call.not_local(NUMBERS)
        constants = [call.pair(n) for n in ("self", "src") if not call.is_tracked(n)]
        blank = [t.without([dim], keep=True) for t in tracked]
        result = call.combined(blank, constants)
        return result.arranged([*result.layout[:dim], plain(shape[dim]), *result.layout[dim + 1 :]])
    step = call.get("step") or 1
    relation = placed(start, step)
    if (source.sizes[dim][1] - source.sizes[dim][0]) * step != shape[dim][1] - shape[dim][0]:
        raise NotLocal("writes to a fixed place of the image, or to a fixed part of it")
    parts = [source.moved({dim: relation}, shape)] if call.is_tracked("src") else []
    parts += [base] if call.is_tracked("self") else []
    return call.combined(parts, [call.pair("self")] if not call.is_tracked("self") else [])


def overwrite_all(call: Call, base: Tracked) -> Tracked:
    blank = base.arranged(base.layout, {axis: rows.independent() for axis, rows in base.rows.items()})
    return call.combined([blank], [call.pair("src")])


@rule("select_scatter")
def write_one(call: Call) -> Outputs:
    shape = call.shape()
    dim = call.get("dim") % len(shape)
    tracked, constants = [], []
    for name in ("self", "src"):
        if call.is_tracked(name):
            tensor = call.tracked(name)
            if name == "src":
                tensor = tensor.arranged([*tensor.layout[:dim], (), *tensor.layout[dim:]])
            elif tensor.axes([dim]):
                raise NotLocal("writes to a fixed place of the image")
            tracked.append(tensor.without([dim], keep=True))
        elif name == "src":
            constants.append(tuple(c.unsqueeze(dim) if c.ndim else c for c in call.pair(name)))
        else:
            constants.append(call.pair(name))
    result = call.combined(tracked, constants)
    return result.arranged([*result.layout[:dim], plain(shape[dim]), *result.layout[dim + 1 :]])
