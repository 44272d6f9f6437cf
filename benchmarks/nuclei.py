"""Nuclei: where they lie on the plane, what shape each has, and how they are drawn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from glands import Gland, glands
from noise import Canvas, Doubles, Floats, hashed, noise_at
from numpy.typing import NDArray

CELL = 22
"""Side of the lattice of single nuclei; each cell has at most one."""
REACH = 24
"""No nucleus extends further than this from its centre."""


class Nuclei(NamedTuple):
    """One entry each: centre, half axes, angle of the longer axis, darkness, irregularity, softness, number."""

    y: Doubles
    x: Doubles
    long: Doubles
    short: Doubles
    angle: Doubles
    dark: Doubles
    wave: Doubles
    soft: Doubles
    number: NDArray[np.int64]


def draw_nuclei(canvas: Canvas) -> tuple[Floats, NDArray[np.uint32]]:
    """Density of haematoxylin in the nuclei, and the number of the nucleus at each pixel, 0 for none."""
    nearby = glands(canvas, REACH)
    parts = [_scattered(canvas, nearby), *(_lining(canvas.seed, gland) for gland in nearby)]
    everything = Nuclei(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    blue = np.zeros((canvas.size, canvas.size), np.float32)
    label = np.zeros((canvas.size, canvas.size), np.uint32)
    chromatin = (0.62 + 0.50 * canvas.noise(3.3, 30) + 0.26 * canvas.noise(7, 31)).astype(np.float32)
    far = np.maximum(
        np.abs(everything.y - canvas.y0 - canvas.size / 2), np.abs(everything.x - canvas.x0 - canvas.size / 2)
    )
    for i in np.flatnonzero(far < canvas.size / 2 + REACH):
        _draw(
            canvas, chromatin, blue, label, tuple(float(column[i]) for column in everything[:-1]), everything.number[i]
        )
    return blue, label


def _draw(
    canvas: Canvas, chromatin: Floats, blue: Floats, label: NDArray[np.uint32], shape: tuple[float, ...], number: int
) -> None:
    y, x, long, short, angle, dark, wave, soft = shape
    half = int(long * 1.15) + 4
    top, left = int(y) - canvas.y0 - half, int(x) - canvas.x0 - half
    ys, xs = (slice(max(0, at), max(0, min(canvas.size, at + 2 * half + 1))) for at in (top, left))
    dy = (np.arange(ys.start, ys.stop, dtype=np.float32) - np.float32(y - canvas.y0 - 0.5))[:, None]
    dx = (np.arange(xs.start, xs.stop, dtype=np.float32) - np.float32(x - canvas.x0 - 0.5))[None, :]
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = (dx * c + dy * s) / np.float32(long), (dy * c - dx * s) / np.float32(short)
    square = u * u + v * v + np.float32(1e-4)
    radius = np.sqrt(square)
    radius *= 1 + np.float32(wave) * u * (u * u - 3 * v * v) / (square * radius)
    inside = radius <= 1
    cover = np.clip((1 - radius) * np.float32(short / soft) + np.float32(0.5), 0, 1)
    rim = np.minimum(square, 1)
    density = np.float32(dark) * chromatin[ys, xs] * (np.float32(0.74) + np.float32(0.34) * rim * rim)
    blue[ys, xs] += cover * (density - blue[ys, xs])
    label[ys, xs][inside] = number


def _scattered(canvas: Canvas, nearby: list[Gland]) -> Nuclei:
    """Nuclei of the stroma, drawn out along its fibres, and crowds of round dark ones; none within a gland."""
    seed = canvas.seed
    rows, columns = (
        np.arange((origin - REACH) // CELL, (origin + canvas.size + REACH) // CELL + 1)
        for origin in (canvas.y0, canvas.x0)
    )
    row, column = (grid.ravel() for grid in np.meshgrid(rows, columns, indexing="ij"))
    rand = [hashed(seed, 40 + k, row, column) for k in range(10)]
    y, x = (row + 0.15 + 0.7 * rand[0]) * CELL, (column + 0.15 + 0.7 * rand[1]) * CELL
    crowd = noise_at(seed, 190, 20, y, x) > 0.64
    loose = noise_at(seed, 260, 5, y, x)
    keep = rand[2] < np.where(crowd, 0.78, 0.10 + 0.30 * loose)
    for gland in nearby:
        keep &= gland.unrolled(y, x) > gland.outer + 7
    flow_y, flow_x = (
        _flow(seed, y + 2 * a, x + 2 * b) - _flow(seed, y - 2 * a, x - 2 * b) for a, b in ((1, 0), (0, 1))
    )
    angle = np.where(crowd, 3.1416 * rand[3], np.arctan2(flow_x, -flow_y) + 0.5 * (rand[3] - 0.5))
    plump = ~crowd & (rand[4] < 0.25)
    long = np.where(crowd, 5.0 + 1.8 * rand[5], np.where(plump, 7.5 + 3 * rand[5], 8 + 6 * rand[5]))
    short = np.where(crowd, long * (0.8 + 0.2 * rand[6]), np.where(plump, 5.5 + 2 * rand[6], 2.8 + 1.8 * rand[6]))
    dark = np.where(crowd, 1.05 + 0.35 * rand[7], np.where(plump, 0.55 + 0.3 * rand[7], 0.75 + 0.4 * rand[7]))
    number = 1 + (row % 16384) * 32768 + 2 * (column % 16384)
    columns_ = (y, x, long, short, angle, dark, 0.10 * (rand[8] - 0.5), 1 + 1.2 * rand[9] ** 3, number)
    return Nuclei(*(values[keep] for values in columns_))


def _flow(seed: int, y: Doubles, x: Doubles) -> Doubles:
    """The field whose contour lines are the stroma's fibres."""
    return noise_at(seed, 170, 1, y, x) * 9 + noise_at(seed, 40, 2, y, x) * 1.6


def _lining(seed: int, gland: Gland) -> Nuclei:
    """The nuclei of a gland's epithelium: one dense ring at its outer side, a sparse one further in."""
    middle = gland.outer - 9.5
    count = max(6, int(2 * np.pi * middle / 13.5))
    i = np.arange(2 * count)
    rand = [hashed(seed, 60 + k, np.full(2 * count, gland.row * 65536 + gland.column), i) for k in range(8)]
    second = i >= count
    theta = 2 * np.pi * (i % count + 0.5 * second + 0.5 * (rand[0] - 0.5)) / count
    radius = np.where(second, middle - 11 - 3 * rand[1], middle + 5 * (rand[1] - 0.5))
    keep = np.where(second, rand[2] < 0.22, rand[2] < 0.95) & (radius > 7)
    y, x = gland.at(theta, radius)
    outer_y, outer_x = gland.at(theta, radius + 1)
    angle = np.arctan2(outer_y - y, outer_x - x) + 0.5 * (rand[3] - 0.5)
    long, short = 7.0 + 3.2 * rand[4], 4.6 + 1.7 * rand[5]
    dark = 0.72 + 0.42 * rand[6]
    number = 2 + (gland.row % 4096) * 2**19 + (gland.column % 2048) * 256 + 2 * i
    columns = (y, x, long, short, angle, dark, 0.12 * (rand[7] - 0.5), 1 + rand[3] ** 3, number)
    return Nuclei(*(values[keep] for values in columns))
