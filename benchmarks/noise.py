"""Noise on an endless plane: a function of (seed, salt, y, x) alone, whatever part of the plane is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Canvas:
    """A square of the plane with its origin, and noise on it."""

    seed: int
    y0: int
    x0: int
    size: int

    def noise(self, period: float, salt: int) -> Floats:
        """Smooth noise in [0, 1], with a mean of one half, that varies over `period` pixels."""
        rows, weights_y = _spline(self.y0, self.size, period)
        columns, weights_x = _spline(self.x0, self.size, period)
        values = hashed(self.seed, salt, rows[:, None], columns[None, :])
        smooth: Floats = weights_y @ values.astype(np.float32) @ weights_x.T
        return _contrast(smooth)


def noise_at(seed: int, period: float, salt: int, y: Doubles, x: Doubles) -> Doubles:
    """The same noise at single points."""
    (rows, weights_y), (columns, weights_x) = _spline_at(y / period), _spline_at(x / period)
    result = np.zeros(len(y))
    for i in range(4):
        for j in range(4):
            result += weights_y[i] * weights_x[j] * hashed(seed, salt, rows + i, columns + j)
    return _contrast(result)


def _contrast(smooth: NDArray[np.floating]) -> NDArray:
    return np.clip((smooth - 0.5) * 1.6 + 0.5, 0, 1)


def hashed(seed: int, salt: int, y: NDArray[np.int64], x: NDArray[np.int64]) -> Doubles:
    """Uniform numbers in [0, 1) that depend on nothing but the arguments (the finalizer of splitmix64)."""
    with np.errstate(over="ignore"):
        z = y.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + x.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
        z ^= np.uint64((seed * 0xD6E8FEB86659FD93 + salt * 0xA0761D6478BD642F) % 2**64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 0xD6E8FEB86659FD93)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53


@lru_cache(maxsize=64)
def _spline(start: int, size: int, period: float) -> tuple[NDArray[np.int64], Floats]:
    """Lattice positions around [start, start + size) and each pixel's weights of them."""
    first, pieces = _spline_at((np.arange(start, start + size) + 0.5) / period)
    lattice = np.arange(first[0], first[-1] + 4)
    weights = np.zeros((size, len(lattice)), np.float32)
    for offset, piece in enumerate(pieces):
        weights[np.arange(size), first - first[0] + offset] = piece
    return lattice, weights


def _spline_at(at: Doubles) -> tuple[NDArray[np.int64], list[Doubles]]:
    """For each point the first of its four lattice positions, and the four cubic B-spline weights."""
    low = np.floor(at).astype(np.int64)
    t = at - low
    pieces = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    return low - 1, [piece / 6 for piece in pieces]
