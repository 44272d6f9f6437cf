"""Glands: rings of epithelium around a lumen, on a lattice of which each cell has at most one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from noise import Canvas, Doubles, Floats, hashed, noise_at

SIDE = 300
"""Side of a cell of the lattice, before it is bent."""
BEND = 260
"""How far the bent lattice lies from a straight one at most; neighbours move together."""


@dataclass(frozen=True)
class Gland:
    """A ring of epithelium around a lumen; its outline is an ellipse with a wave of period 2 pi / 3."""

    y: float
    x: float
    outer: float
    inner: float
    stretch: float
    angle: float
    wave: float
    row: int
    column: int

    def distance(self, canvas: Canvas) -> tuple[slice, slice, Floats]:
        """The part of the canvas that it may touch, and there the distance from its centre, the outline's unrolled."""
        half = int(self.outer * 1.35) + 8
        ys, xs = (
            slice(max(0, int(at - origin) - half), max(0, min(canvas.size, int(at - origin) + half)))
            for at, origin in ((self.y, canvas.y0), (self.x, canvas.x0))
        )
        dy = (np.arange(ys.start, ys.stop, dtype=np.float32) + (canvas.y0 - self.y))[:, None]
        dx = (np.arange(xs.start, xs.stop, dtype=np.float32) + (canvas.x0 - self.x))[None, :]
        c, s = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        u, v = (dx * c + dy * s) * np.float32(self.stretch), (dy * c - dx * s) / np.float32(self.stretch)
        square = u * u + v * v + np.float32(1e-3)
        radius = np.sqrt(square)
        return ys, xs, radius * (1 + np.float32(self.wave) * u * (u * u - 3 * v * v) / (square * radius))

    def unrolled(self, y: Doubles, x: Doubles) -> Doubles:
        """The same distance at single points."""
        dy, dx, c, s = y - self.y, x - self.x, np.cos(self.angle), np.sin(self.angle)
        u, v = (dx * c + dy * s) * self.stretch, (dy * c - dx * s) / self.stretch
        radius: Doubles = np.hypot(u, v) + 1e-6
        return radius * (1 + self.wave * u * (u * u - 3 * v * v) / radius**3)

    def at(self, theta: Doubles, radius: Doubles) -> tuple[Doubles, ...]:
        """(y, x) of the points at these angles and unrolled distances."""
        r = radius / (1 + self.wave * np.cos(3 * theta))
        u, v = r * np.cos(theta) / self.stretch, r * np.sin(theta) * self.stretch
        c, s = np.cos(self.angle), np.sin(self.angle)
        return self.y + u * s + v * c, self.x + u * c - v * s


@lru_cache(maxsize=4096)
def _gland(seed: int, row: int, column: int) -> Gland | None:
    """The gland of that cell; rows are shifted against each other and the lattice is bent, so that none shows."""
    cell = np.array([row]), np.array([column])
    a, b, c, d, e, f, g = (float(hashed(seed, 100 + k, *cell)[0]) for k in range(7))
    shift = float(hashed(seed, 110, cell[0], np.zeros(1, np.int64))[0])
    middle = (cell[0] + 0.5) * SIDE, (cell[1] + 0.5 + shift) * SIDE
    crowded = float(noise_at(seed, 900, 111, *middle)[0])
    if a > 1.5 * crowded - 0.2:
        return None
    outer = SIDE * (0.17 + 0.23 * b)
    free = SIDE / 2 - outer * 1.2
    inner = max(4.0, outer - 26 - 8 * c)
    bend_y, bend_x = (BEND * (2 * float(noise_at(seed, 700, salt, *middle)[0]) - 1) for salt in (112, 113))
    y, x = middle[0][0] + bend_y + (2 * d - 1) * free, middle[1][0] + bend_x + (2 * e - 1) * free
    return Gland(float(y), float(x), outer, inner, 0.82 + 0.4 * f, 3.1416 * g, 0.16 * (c - 0.5), row, column)


def glands(canvas: Canvas, margin: int = 0) -> list[Gland]:
    """The glands that may touch the canvas widened by the margin."""
    rows, columns = (
        range((origin - margin) // SIDE - 3, (origin + canvas.size + margin) // SIDE + 3)
        for origin in (canvas.y0, canvas.x0)
    )
    found = (_gland(canvas.seed, row, column) for row in rows for column in columns)
    return [gland for gland in found if gland]
