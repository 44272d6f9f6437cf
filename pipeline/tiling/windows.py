"""Where overlapping windows lie: as the image alone says, whatever the tiles are, neighbours half over each other.

image      0..............................100
windows    |=========|                          48 pixels, a step of 24
                |=========|
                     |=========|
                       |=========|              the last one ends with the image
core            |-- a tile --|                  averages all windows that touch it
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import product

from pipeline.tiling.geometry import Interval, Region
from pipeline.tiling.grid import Grid


def half_step(window: int, alignment: int) -> int:
    """Half the window, rounded down to the alignment but at least that."""
    return max(alignment, window // 2 // alignment * alignment)


def starts(size: int, window: int, step: int) -> list[int]:
    """Where windows start along an axis: every step, and the last so that it ends with the axis.

    All are multiples of the network's alignment where size, window and step are.
    """
    window = min(window, size)
    last = size - window
    return [*range(0, last, step), last]


def touching(at: Sequence[int], side: int, rows: Interval) -> Sequence[int]:
    """Those of the windows of that side, which start in ascending order, that touch the rows."""
    return at[bisect_right(at, rows.start - side) : bisect_left(at, rows.stop)]


def windows(core: Region, shape: tuple[int, int], window: tuple[int, int], step: tuple[int, int]) -> list[Region]:
    """The windows of an image of `shape` that touch the core, in row-major order."""
    axes = []
    for rows, size, side, by in zip((core.y, core.x), shape, window, step, strict=True):
        side = min(side, size)
        axes.append([Interval(s, s + side) for s in touching(starts(size, side, by), side, rows)])
    return [Region(y, x) for y, x in product(*axes)]


def amplification(grid: Grid, window: tuple[int, int]) -> float:
    """Pixels of the windows that run for all tiles over pixels of the extended image: what overlap and junctions cost.

    Overlap alone makes 4 of a large image. A window on a junction runs for each of its tiles.
    """
    result = 1.0
    for axis, side in zip((grid.y, grid.x), window, strict=True):
        at, side = starts(axis.extended, side, half_step(side, axis.alignment)), min(side, axis.extended)
        count = sum(len(touching(at, side, axis.core_of(i))) for i in range(len(axis)))
        result *= count * side / max(1, axis.extended)
    return result
