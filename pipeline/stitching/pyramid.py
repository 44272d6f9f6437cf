"""Coarser levels from finer ones, in bounded memory. Each pixel stands for 2 x 2 pixels of the level below.

At an odd edge the last row or column counts twice:

    a b        level k - 1           a b | b        3 columns: the last is repeated
    c d   ->   one pixel             c d | d
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.tiling.geometry import Interval

How = Literal["mean", "mode"]
ROWS = 256
"""Rows of a coarse shard that are made at once."""


def reduce(data: NDArray[Any], how: How) -> NDArray[Any]:
    """Half the rows and columns of (..., y, x), rounded up, in the same dtype.

    mean: integers are rounded, halves up, without overflow; floats are averaged in float64; of bools at least two
    make one. mode: the value that most of the four have, of equally frequent ones the first in row-major order.
    """
    height, width = data.shape[-2:]
    if height % 2 or width % 2:
        data = np.pad(data, [(0, 0)] * (data.ndim - 2) + [(0, height % 2), (0, width % 2)], mode="edge")
    four = [data[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
    if how == "mode":
        return _mode(*four)
    return _mean(four)


def build_shard(
    read: Callable[[tuple[Interval, ...]], NDArray[Any]],
    region: Sequence[Interval],
    below: tuple[int, ...],
    how: How,
    rows: int = ROWS,
) -> NDArray[Any]:
    """The region of a level from the level below it, of which `read` gives any region and `below` is the shape.

    Reads 2 * rows rows at a time, so that memory is the shard's own and a strip's.
    """
    *leading, y, x = region
    shard: NDArray[Any] | None = None
    for start in range(y.start, y.stop, rows):
        stop = min(start + rows, y.stop)
        strips = Interval(start, stop), x
        fine = [Interval(2 * i.start, min(2 * i.stop, n)) for i, n in zip(strips, below[-2:], strict=True)]
        strip = reduce(read((*leading, *fine)), how)
        if shard is None:
            shard = np.empty(tuple(i.size for i in region), strip.dtype)
        shard[..., start - y.start : stop - y.start, :] = strip
    assert shard is not None, "a shard has rows"
    return shard


def _mean(four: list[NDArray[Any]]) -> NDArray[Any]:
    dtype = four[0].dtype
    if dtype.kind == "b":
        return np.asarray(sum(part.astype(np.uint8) for part in four) >= 2)
    if dtype.kind in "iu":
        # v = 4 * (v >> 2) + (v & 3) for either sign, so the sum of quotients stays within the dtype.
        quotients, remainders = four[0] >> 2, (four[0] & 3).astype(np.int8)
        for part in four[1:]:
            quotients += part >> 2
            remainders += (part & 3).astype(np.int8)
        return np.asarray(quotients + ((remainders + 2) >> 2).astype(dtype))
    wide = np.complex128 if dtype.kind == "c" else np.float64
    total = four[0].astype(wide) * 0.25
    for part in four[1:]:
        total += part.astype(wide) * 0.25
    return total.astype(dtype)


def _mode(a: NDArray[Any], b: NDArray[Any], c: NDArray[Any], d: NDArray[Any]) -> NDArray[Any]:
    """A value that occurs twice cannot be outdone by a later one, but by the three that differ from it."""
    rest = np.where((b == c) | (b == d), b, np.where(c == d, c, a))
    return np.where((a == b) | (a == c) | (a == d), a, rest)
