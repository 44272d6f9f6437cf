"""What one output of a network sees of its input, derived from the network's graph.

The network is recorded at two image sizes. Going forwards, each operation's rule says where rows and columns lie in
its result and from which rows of its operands they come (`analysis`). Going backwards, the demand of every output row
is followed to the image, on a map that is large enough to have an inside, borders included (`reach`).

A read gives the same result as the whole image where it holds the rows from which an output is computed, and enough
rows for everything in between to exist: a row that a layer would find cut off at the read's edge, and replace by
padding, is as wrong as a missing one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import nn

from pipeline.network.analysis import Findings, analyse, same_operations
from pipeline.network.graph import CaptureError, Graph, capture, dtype_of
from pipeline.network.layouts import Rows
from pipeline.network.reach import axis_field
from pipeline.network.sliding import PADS
from pipeline.tiling.geometry import ReceptiveField

UNITS = (32, 84, 48, 36, 60, 72, 112, 144)
"""Captures are made at multiples of the first, or of the others where the network insists on strides of 3, 5, 7."""
MULTIPLES = (2, 4, 7, 18)
FIXED = (224, 256, 96, 128, 192, 384, 512)
"""Sizes that networks of a fixed input size tend to want."""
COARSE = 64
"""Captures of networks that fill their input up to a multiple of something are made at multiples of this, too."""
LARGEST_ALIGNMENT = 4096
OTHERS = ": the network runs other operations on images of another size"


class UnknownOperation(ValueError):
    """The analysis does not know an operation of the network, and never guesses."""


def receptive_field(
    module: nn.Module,
    channels: int,
    shape: tuple[int, int] | None = None,
    *,
    reach: int | None = None,
    found: Found | None = None,
) -> ReceptiveField:
    """The receptive field of a network that takes (1, channels, y, x); `shape` is a size (y, x) that it accepts.

    `reach` declares, where operations are not known, the pixels that an output sees on each side; they are then taken
    to keep the shifts of the rest of the network. A network with operations that are not local gets its field with
    them named, and reach 0. `found` is what `followed` returned for it, where somebody has that already.

    Raises:
        UnknownOperation: its sole obstacle is an operation that the analysis does not know.
        ValueError: it fails on every size that was tried, or does not map one image to one image.
    """
    found = found or followed(module, channels, shape)
    analysis, alignment = found.analysis, found.alignment
    if analysis.not_local or found.first is found.second:
        return _not_local(analysis, alignment)
    if analysis.unknown and (reach is None or analysis.output is None):
        raise UnknownOperation(f"{'; '.join(analysis.unknown)}; --reach N declares the receptive field by hand")
    alignment = _confirmed(module, channels, found)
    _does_so_when_small(module, channels, found, alignment)
    if analysis.unknown and reach is not None:
        return _declared(analysis, alignment, reach)
    if any(n % math.lcm(*alignment) for n in found.sizes):
        raise ValueError(f"no alignment of at most {LARGEST_ALIGNMENT} pixels was found")
    return _local(analysis, alignment)


@dataclass(frozen=True)
class Found:
    """Two captures of a network and what follows from them."""

    first: Graph
    second: Graph
    analysis: Findings
    alignment: tuple[int, int]

    @property
    def sizes(self) -> list[int]:
        """Heights and widths of both."""
        return [n for rows in self.analysis.image.values() for n in rows.sizes]


def followed(
    module: nn.Module, channels: int, shape: tuple[int, int] | None = None, *, dtype: torch.dtype | None = None
) -> Found:
    """Two captures of a network, at multiples of its alignment where that can be had, and their analysis.

    Of images of the network's own type, or of that one.

    Raises:
        ValueError: it fails on every size that was tried.
    """
    dtype = dtype or dtype_of(module)
    found = _analysed(module, channels, shape, dtype)
    if any(line.endswith(PADS) for line in found.analysis.not_local):
        again = _analysed(module, channels, shape, dtype, COARSE)
        found = found if again.analysis.not_local else again
    return found


def _analysed(
    module: nn.Module, channels: int, shape: tuple[int, int] | None, dtype: torch.dtype, unit: int | None = None
) -> Found:
    """Captures at multiples of the alignment that they show, where it is found in three steps."""
    for _ in range(3):
        first, second = captures(module, channels, shape, dtype, unit)
        analysis = analyse(first, second)
        found = Found(first, second, analysis, _alignment(analysis))
        unit = math.lcm(*found.alignment)
        if all(n % unit == 0 for n in found.sizes) or first is second or unit > LARGEST_ALIGNMENT:
            break
    return found


def _confirmed(module: nn.Module, channels: int, found: Found) -> tuple[int, int]:
    """The alignment, or the least multiple at which the network does what it was recorded to do.

    At multiples of 32 rows a network that fills its input up to a multiple of 16 fills up nothing; whether it does
    so is seen one alignment further.
    """
    y, x = (found.analysis.image[axis].sizes for axis in ("y", "x"))
    step = math.gcd(*found.sizes)
    a, b = found.alignment
    for times in (n for n in range(1, step) if step % n == 0):
        alignment = math.lcm(a, times), math.lcm(b, times)
        if step % alignment[0] or step % alignment[1] or alignment == (step, step):
            break
        try:
            third = capture(module, (channels, y[0] + alignment[0], x[0] + alignment[1]), dtype_of(module))
        except CaptureError:
            continue
        if same_operations(found.first, third) is None:
            analysis = analyse(found.first, third)
            if not analysis.not_local and len(analysis.unknown) == len(found.analysis.unknown):
                return alignment
    return (step, step) if step % a == 0 and step % b == 0 else (a, b)


def _does_so_when_small(module: nn.Module, channels: int, found: Found, alignment: tuple[int, int]) -> None:
    """Compares with an image of the least size that is recorded, where the captures are of larger ones.

    Raises:
        UnknownOperation: the network runs other operations on it.
    """
    y, x = (max(2, math.ceil(2 * UNITS[0] / n)) * n for n in alignment)
    if y >= found.analysis.image["y"].sizes[0]:
        return
    try:
        small = capture(module, (channels, y, x), dtype_of(module))
    except CaptureError:
        return
    if differs := same_operations(found.first, small):
        raise UnknownOperation(differs + OTHERS)


def captures(
    module: nn.Module, channels: int, shape: tuple[int, int] | None, dtype: torch.dtype, unit: int | None = None
) -> tuple[Graph, Graph]:
    """The network recorded at two sizes, different in height and in width, that are multiples of `unit`.

    Twice the same capture where it accepts one size only.

    Raises:
        ValueError: it fails on every size that was tried.
    """
    failed: dict[tuple[int, int], CaptureError] = {}
    differs: str | None = None
    for step, times in _steps(unit):
        sizes = [(step * times, step * (times + 1)), (step * (times + 1), step * (times + 2))]
        try:
            first, second = (capture(module, (channels, *size), dtype) for size in sizes)
        except CaptureError as error:
            failed[sizes[0]] = error
            continue
        differs = same_operations(first, second)
        if differs is None:
            return first, second
    if differs is not None:
        raise UnknownOperation(differs + OTHERS)
    for size in ([shape] if shape else []) + [(n, n) for n in FIXED]:
        try:
            graph = capture(module, (channels, *size), dtype)
        except CaptureError as error:
            failed[size] = error
            continue
        return graph, graph
    raise ValueError(_failure(module, failed))


def _steps(unit: int | None) -> Iterator[tuple[int, int]]:
    if unit is not None:
        step = unit * math.ceil(UNITS[0] / unit)
        yield from ((step, times) for times in (2, 4, 7, 12) if step * times < 1000 or times == 2)
        return
    yield from ((UNITS[0], times) for times in MULTIPLES)
    yield from ((step, 3) for step in UNITS[1:])


def _failure(module: nn.Module, failed: dict[tuple[int, int], CaptureError]) -> str:
    kinds = {type(m) for m in module.modules()}
    if nn.Conv3d in kinds and nn.Conv2d not in kinds:
        return "the network is three-dimensional (Conv3d); only networks that take (c, y, x) are supported"
    size, error = next(iter(failed.items()))
    tried = ", ".join(f"{y} x {x}" for y, x in failed)
    where = f" in {error.path}" if error.path else ""
    return f"the network fails on every size that was tried ({tried}); on {size[0]} x {size[1]}{where}: {error}"


def _alignment(analysis: Findings) -> tuple[int, int]:
    """Per axis, the least number of the image's rows that is a whole number of rows everywhere in the network."""
    parts: dict[str, list[int]] = {"y": [], "x": []}
    for rows in analysis.everything:
        if rows.rate is not None:
            parts[rows.axis].append((rows.rate / rows.period).denominator)
    y, x = (math.lcm(*parts[axis]) for axis in ("y", "x"))
    return y, x


def _output_rows(analysis: Findings) -> dict[str, Rows]:
    """Rows and columns of the output.

    Raises:
        ValueError: it is not (1, classes, y, x).
    """
    output = analysis.output
    assert output is not None
    axes = [[f.axis for f in dimension] for dimension in output.layout]
    if len(axes) == 4:
        output = output.resolved(2).resolved(3)
        axes = [[f.axis for f in dimension] for dimension in output.layout]
    if len(axes) != 4 or axes[2:] != [["y"], ["x"]] or "y" in axes[1] or "x" in axes[1]:
        shape = tuple(a for a, _ in output.sizes)
        raise ValueError(
            f"the network's output has shape {shape} for an image of "
            f"{analysis.image['y'].sizes[0]} x {analysis.image['x'].sizes[0]}, and is not (1, classes, y, x)"
        )
    return output.rows


def _local(analysis: Findings, alignment: tuple[int, int]) -> ReceptiveField:
    output = _output_rows(analysis)
    y, x = (axis_field(analysis.image[a], output[a], n) for a, n in zip(("y", "x"), alignment, strict=True))
    return ReceptiveField(
        before=(y.before, x.before),
        after=(y.after, x.after),
        alignment=alignment,
        rate=(y.rate, x.rate),
        surplus=(y.surplus, x.surplus),
        offset=(y.offset, x.offset),
        halo=(y.halo, x.halo),
    )


def _not_local(analysis: Findings, alignment: tuple[int, int]) -> ReceptiveField:
    """What can be said of a network that sees the whole image: what makes it so, and its output's size."""
    named = list(dict.fromkeys(analysis.not_local + analysis.unknown))
    images = analysis.image["y"].sizes, analysis.image["x"].sizes
    if images[0][0] == images[0][1]:
        named.append(f"network: fixed size: it works on images of {images[0][0]} x {images[1][0]} only")
    rate, surplus = _growth(analysis, {} if analysis.output is None else analysis.output.rows)
    return ReceptiveField((0, 0), (0, 0), alignment, rate, surplus, nonlocal_operations=tuple(named))


def _declared(analysis: Findings, alignment: tuple[int, int], reach: int) -> ReceptiveField:
    """Sizes as they were measured, reach as the caller says."""
    rate, surplus = _growth(analysis, _output_rows(analysis))
    return ReceptiveField((reach, reach), (reach, reach), alignment, rate, surplus)


def _growth(analysis: Findings, output: dict[str, Rows]) -> tuple[tuple[Fraction, Fraction], tuple[int, int]]:
    """(rate, surplus) of the output's size, from the two captures."""
    rates, surplus = [], []
    for axis in ("y", "x"):
        image = analysis.image[axis].sizes
        sizes = output[axis].sizes if axis in output else image
        grows = image[0] != image[1] and sizes[0] != sizes[1]
        rate = Fraction(sizes[1] - sizes[0], image[1] - image[0]) if grows else Fraction(sizes[0], image[0])
        rates.append(rate)
        surplus.append(int(sizes[0] - rate * image[0]))
    return (rates[0], rates[1]), (surplus[0], surplus[1])
