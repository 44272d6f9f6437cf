"""Rules for operations that move along rows and columns: convolution, pooling, resizing, padding, shuffling."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any, Literal

import numpy as np

from pipeline.network.layouts import NotLocal, Sizes, Tracked, Unknown, plain
from pipeline.network.operations import Call, Outputs, rule
from pipeline.network.relations import SAME, Pad, Relation, Resample, Transposed, Window, block, repeat

COUNTED = 1 << 17
"""Rows of a result for which the places that nearest resizing takes are compared."""
PADS = "pads by an amount that depends on the image's size"


def each(value: Any, count: int) -> list[int]:
    """One number per dimension, from one number, one for all, or as many."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def last(tensor: Tracked, count: int) -> range:
    """The last `count` dimensions."""
    return range(tensor.ndim - count, tensor.ndim)


def same_size_in_both(call: Call, name: str) -> None:
    """Finds a kernel, or another number, that follows the image's size.

    Raises:
        NotLocal: it does.
    """
    first, second = call.pair(name)
    if first != second:
        raise NotLocal(f"its {name.replace('_', ' ')} depends on the image's size")


@rule("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution", "conv2d")
def convolution(call: Call) -> Outputs:
    image = call.tracked("input")
    if image.axes([1]):
        call.not_local("sums over all rows or columns")
    weights = call.pair("weight")
    if call.is_tracked("weight"):
        kernel = [n for n, _ in call.tracked("weight").sizes]
        if call.tracked("weight").rows:
            raise Unknown("its weights depend on rows and columns of the image")
    else:
        kernel = list(weights[0].shape)
        if weights[0].shape != weights[1].shape:
            raise NotLocal("its kernel depends on the image's size")
    count = len(kernel) - 2
    for name in ("stride", "padding", "dilation"):
        same_size_in_both(call, name)
    stride, padding, dilation = (each(call.get(n), count) for n in ("stride", "padding", "dilation"))
    kind = Transposed if call.get("transposed") else Window
    relations: dict[int, Relation] = {
        dim: kind(kernel[2 + i], stride[i], dilation[i], padding[i]) for i, dim in enumerate(last(image, count))
    }
    shape = call.shape()
    moved = image.moved(relations, shape)
    return moved.arranged([moved.layout[0], plain(shape[1]), *moved.layout[2:]])


@rule(
    "max_pool2d_with_indices", "max_pool2d", "max_pool1d", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d",
    "avg_pool3d", "mkldnn_max_pool2d",
)  # fmt: skip
def pool(call: Call) -> Outputs:
    image = call.tracked("self")
    count = next(n for n in (1, 2, 3) if f"{n}d" in call.name)
    dims = last(image, count)
    kernel = each(call.get("kernel_size"), count)
    if call.pair("kernel_size")[0] != call.pair("kernel_size")[1]:
        raise NotLocal("global pooling: its kernel is as large as the image")
    for name in ("stride", "padding", "dilation"):
        same_size_in_both(call, name)
    stride = each(call.get("stride") or kernel, count)
    padding = each(call.get("padding", 0), count)
    dilation = each(call.get("dilation") or 1, count)
    relations: dict[int, Relation] = {
        dim: Window(kernel[i], stride[i], dilation[i], padding[i]) for i, dim in enumerate(dims)
    }
    result = image.moved(relations, call.shape())
    if call.outputs == 1:
        return result
    back: dict[str, tuple[Relation, Sizes]] = {
        next(iter(image.axes([dim]))): (Transposed(kernel[i], stride[i], dilation[i], padding[i]), image.sizes[dim])
        for i, dim in enumerate(dims)
        if image.axes([dim])
    }
    return [result, Tracked(result.layout, result.rows, pooled=back)]


@rule(
    "adaptive_avg_pool1d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d"
)
def adaptive_pool(call: Call) -> Outputs:
    image = call.tracked("self")
    shape = call.shape()
    relations: dict[int, Relation] = {}
    for dim in last(image, len(call.get("output_size"))):
        given, wanted = image.sizes[dim], shape[dim]
        if given == wanted or not image.axes([dim]):
            relations[dim] = SAME
        elif wanted[0] == wanted[1]:
            raise NotLocal(f"pools the whole image to a fixed size ({wanted[0]})")
        else:
            scale = _ratio(given, wanted, part=True)
            if any(n != o * scale for n, o in zip(given, wanted, strict=True)):  # in captures at no multiple of it
                call.not_local("pools cells whose places depend on the image's size")
            relations[dim] = Resample(scale, "cells")
    result = image.moved(relations, shape)
    return [result, Tracked(result.layout, result.rows, pooled={})][: call.outputs]


@rule("max_unpool2d")
def unpool(call: Call) -> Outputs:
    image, indices = call.tracked("self"), call.tracked("indices")
    if not indices.pooled:
        raise Unknown("its indices do not come straight from a pooling with a kernel")
    shape = call.shape()
    pooled = {dim: indices.pooled[a] for dim in last(image, 2) for a in image.axes([dim]) if a in indices.pooled}
    if any(pooled[dim][1] != shape[dim] for dim in pooled if dim == image.ndim - 1):
        raise Unknown("its indices count in rows of another length")
    relations = {dim: relation for dim, (relation, _) in pooled.items()}
    return call.combined([image.moved(relations, shape), indices.moved(relations, shape)], [])


Kind = Literal["nearest", "exact", "linear", "cubic", "area2", "area4"]
RESIZES: dict[str, tuple[Kind, int]] = {
    "upsample_nearest1d": ("nearest", 1),
    "upsample_nearest2d": ("nearest", 2),
    "upsample_nearest3d": ("nearest", 3),
    "_upsample_nearest_exact1d": ("exact", 1),
    "_upsample_nearest_exact2d": ("exact", 2),
    "_upsample_nearest_exact3d": ("exact", 3),
    "upsample_linear1d": ("linear", 1),
    "upsample_bilinear2d": ("linear", 2),
    "upsample_trilinear3d": ("linear", 3),
    "upsample_bicubic2d": ("cubic", 2),
    "_upsample_bilinear2d_aa": ("area2", 2),
    "_upsample_bicubic2d_aa": ("area4", 2),
}
"""How they interpolate, and along how many dimensions."""


@rule(*RESIZES)
def resize(call: Call) -> Outputs:
    image, shape = call.tracked("input" if call.has("input") else "self"), call.shape()
    kind, count = RESIZES[call.name]
    scales = [call.get(n) for n in (["scales"] if count == 1 else ["scales_d", "scales_h", "scales_w"][-count:])]
    relations: dict[int, Relation] = {}
    for dim, factor in zip(last(image, count), scales, strict=True):
        given, wanted = image.sizes[dim], shape[dim]
        if not image.axes([dim]) or (given == wanted and _near(Fraction(1), factor)):
            relations[dim] = SAME
        elif call.get("align_corners"):
            raise NotLocal("align_corners=True stretches the image by a ratio that depends on its size")
        else:
            scale = _ratio(given, wanted, factor)
            if kind in ("nearest", "exact") and not _rounds_alike(scale, factor, kind):
                raise NotLocal(
                    f"nearest resizing by {float(1 / scale):.6g} rounds differently at other places of the image: "
                    "resize by a whole number, or bilinearly"
                )
            relations[dim] = Resample(scale, kind)
    return image.moved(relations, shape)


def _ratio(given: Sizes, wanted: Sizes, factor: float | None = None, part: bool = False) -> Fraction:
    """Input rows per output row; `part`: the output may be a whole part of the input, rounded down.

    Raises:
        NotLocal: the ratio depends on the image's size.
    """
    ratios = {Fraction(a, b) for a, b in zip(given, wanted, strict=True)}
    if len(ratios) == 1 and _near(1 / min(ratios), factor):
        return ratios.pop()
    if wanted[0] == wanted[1]:
        raise NotLocal(f"resizes to a fixed size ({wanted[0]})")
    if factor:
        near = Fraction(factor).limit_denominator(64)
        if _near(near, factor):
            return 1 / near
    if part:  # a capture at a multiple of the part shows whether it is one
        for times in range(2, 65):
            if all(a // times == b for a, b in zip(given, wanted, strict=True)):
                return Fraction(times)
    raise NotLocal("resizes by a ratio that depends on the image's size")


@cache
def _rounds_alike(scale: Fraction, factor: float | None, kind: Kind) -> bool:
    """Whether the rows that torch takes, in any of the ways in which it counts them, are those of exact arithmetic.

    It multiplies by the ratio in single precision, where the input is in double or the layout another in part in
    double; a product that falls just below a whole number gives the row before, and not at all places alike.
    """
    rows = np.arange(COUNTED)
    ratio = 1 / factor if factor else scale.numerator / scale.denominator
    centre = rows if kind == "nearest" else rows + 0.5
    single, near = centre.astype(np.float32), np.float32(ratio)
    products = [single * near, centre * np.float64(near), centre * ratio]
    if kind == "exact":
        products += [(single * near - np.float32(0.5)) + np.float32(0.5), (centre * ratio - 0.5) + 0.5]
    exact = Resample(scale, kind).demand(rows, rows + 1, COUNTED)[0]
    return all(np.array_equal(np.floor(product.astype(np.float32)), exact) for product in products)


def _near(ratio: Fraction, factor: float | None) -> bool:
    """Whether the ratio is the factor that the operation is told, if any: places are computed with that."""
    return not factor or abs(ratio - Fraction(factor)) < Fraction(1, 10**6)


@rule(
    "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d",
)  # fmt: skip
def pad(call: Call) -> Outputs:
    image = call.tracked("self")
    first, second = call.pair("pad" if call.has("pad") else "padding")
    mode: Any = {"constant": "constant", "reflecti": "reflect", "replicat": "replicate"}[call.name[:8]]
    relations: dict[int, Relation] = {}
    for i in range(len(first) // 2):
        dim = image.ndim - 1 - i
        if first[2 * i : 2 * i + 2] != second[2 * i : 2 * i + 2]:
            raise NotLocal(PADS)
        relations[dim] = Pad(first[2 * i], mode)
    return image.moved(relations, call.shape())


@rule("pad")
def wrap(call: Call) -> Outputs:
    raise NotLocal("circular padding: continues the image with rows or columns of its far edge")


@rule("pixel_shuffle", "pixel_unshuffle")
def shuffle(call: Call) -> Outputs:
    image, shape = call.tracked("self"), call.shape()
    if image.axes([-3]):
        raise Unknown("shuffles rows or columns that lie in the channels")
    relation: Relation
    relation = (
        repeat(call.get("upscale_factor")) if call.name == "pixel_shuffle" else block(call.get("downscale_factor"))
    )
    moved = image.moved({dim: relation for dim in last(image, 2)}, shape)
    return moved.arranged([*moved.layout[:-3], plain(shape[-3]), *moved.layout[-2:]])


@rule("im2col")
def windows(call: Call) -> Outputs:
    """Windows as columns: (n, c, y, x) -> (n, c * kernel, windows)."""
    image, shape = call.tracked("self"), call.shape()
    kernel, stride, dilation, padding = (each(call.get(n), 2) for n in ("kernel_size", "stride", "dilation", "padding"))
    relations: dict[int, Relation] = {
        dim: Window(kernel[i], stride[i], dilation[i], padding[i]) for i, dim in enumerate(last(image, 2))
    }
    counts: list[Sizes] = []
    for i, dim in enumerate(last(image, 2)):
        reach = dilation[i] * (kernel[i] - 1) + 1
        rows, other = ((n + 2 * padding[i] - reach) // stride[i] + 1 for n in image.sizes[dim])
        counts.append((rows, other))
    moved = image.moved(relations, [*image.sizes[:-2], *counts])
    return moved.arranged([*moved.layout[:-3], plain(shape[-2]), moved.layout[-2] + moved.layout[-1]])


@rule("col2im")
def unwindows(call: Call) -> Outputs:
    """The sum of windows that were taken apart: (n, c * kernel, windows) -> (n, c, y, x)."""
    columns, shape = call.tracked("self"), call.shape()
    kernel, stride, dilation, padding = (each(call.get(n), 2) for n in ("kernel_size", "stride", "dilation", "padding"))
    if columns.axes(range(columns.ndim - 1)) or [f.axis for f in columns.layout[-1]] != ["y", "x"]:
        raise Unknown("its windows are not in row-major order")
    image = columns.arranged([*columns.layout[:-1], *((factor,) for factor in columns.layout[-1])])
    relations: dict[int, Relation] = {
        dim: Transposed(kernel[i], stride[i], dilation[i], padding[i]) for i, dim in enumerate(last(image, 2))
    }
    moved = image.moved(relations, shape)
    return moved.arranged([*moved.layout[:-3], plain(shape[-3]), *moved.layout[-2:]])


@rule("unfold")
def unfold(call: Call) -> Outputs:
    """Windows along one dimension, each laid out in a new last one."""
    image, shape = call.tracked("self"), call.shape()
    same_size_in_both(call, "size")
    dim = call.get("dimension") % image.ndim
    moved = image.moved({dim: Window(call.get("size"), call.get("step"))}, shape)
    return moved.arranged([*moved.layout, plain(shape[-1])])


def placed(start: Sequence[int], step: int) -> Transposed:
    """Row j is put at row start + j * step.

    Raises:
        NotLocal: where it is put depends on the image's size.
    """
    if start[0] != start[1]:
        raise NotLocal("counts rows or columns from the far edge of the image (circular padding does)")
    return Transposed(1, step, 1, -start[0])
