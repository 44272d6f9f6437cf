"""Other views of a sample: turned, mirrored, brighter, noisier; drawn by the seed and the sample's number alone.

A read is turned with its halo, and its crop with it. A halo need not be the same on all sides, and what was below a
core may come to lie above it, so reads get the larger halo all around (`field`). A turned tile then has the gradient
that the turned image has there, edges included; where an image is extended, the extension turns with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from pipeline.tiling.geometry import Interval, ReceptiveField, Region
from pipeline.tiling.grid import Tile
from pipeline.training.gradient import Read


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each sample."""

    flip: bool = False
    """Mirrored up and down, and left and right, with probability a half each."""
    rotate: bool = False
    """Turned by none, one, two or three quarters."""
    brightness: float = 0.0
    """All values times 1 + u, u within this of 0."""
    contrast: float = 0.0
    """The distance from each channel's mean times 1 + u, u within this of 0."""
    noise: float = 0.0
    """Standard deviation, in stored values, of what is added to each value."""
    seed: int = 0

    def field(self, field: ReceptiveField) -> ReceptiveField:
        """The field whose reads serve every view. Raises ValueError where rows are no match for columns."""
        if not (self.flip or self.rotate):
            return field
        if self.rotate and any(y != x for y, x in (field.alignment, field.rate, field.surplus)):
            raise ValueError("augment.rotate: the network does not treat rows as columns, so no image can be turned")
        sides = [_side(field, axis) for axis in (0, 1)]
        if self.rotate:
            sides = [max(sides)] * 2
        y, x = sides
        least = (max(field.least),) * 2 if self.rotate else field.least
        return replace(field, before=(y, x), after=(y, x), halo=((y, y), (x, x)), least=least)

    def views(self, reads: Iterable[Read], field: ReceptiveField) -> Iterator[Read]:
        """Each read as it is seen this time; `field`: by which reads are cut."""
        for sample, pixels, labels in reads:
            draw = np.random.default_rng((self.seed, sample.number, 1))
            turns = int(draw.integers(4)) if self.rotate else 0
            up, across = (bool(n) for n in draw.integers(2, size=2)) if self.flip else (False, False)
            tile = turned(sample.tile, field, turns, up, across)
            yield (
                replace(sample, tile=tile),
                self._recoloured(view(pixels, turns, up, across), draw),
                np.ascontiguousarray(view(labels, turns, up, across)),
            )

    def _recoloured(self, pixels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Pixels (c, h, w) within the range of their type; as they are where nothing of this is asked for."""
        if not (self.brightness or self.contrast or self.noise):
            return pixels
        brightness, contrast = 1 + draw.uniform(-1, 1, 2) * (self.brightness, self.contrast)
        values = pixels.astype(np.float32)
        mean = values.mean(axis=(1, 2), keepdims=True)
        values = ((values - mean) * contrast + mean) * brightness
        if self.noise:
            values += draw.normal(0, self.noise, values.shape)
        if pixels.dtype.kind in "iu":
            limits = np.iinfo(pixels.dtype)
            values = values.clip(limits.min, limits.max)
        recoloured: np.ndarray = values.astype(np.float32)
        return recoloured


def view(array: np.ndarray, turns: int, up: bool, across: bool) -> np.ndarray:
    """An array (..., y, x) turned counterclockwise by so many quarters, then mirrored up and down, and across."""
    turned = np.rot90(array, turns, (-2, -1))
    return turned[..., :: -1 if up else 1, :: -1 if across else 1]


def turned(tile: Tile, field: ReceptiveField, turns: int, up: bool, across: bool) -> Tile:
    """The tile of a view: where the core lies in the output for the turned read; it is at no place in the image."""
    height, width = (
        int(n * rate) + surplus for n, rate, surplus in zip(tile.read.shape, field.rate, field.surplus, strict=True)
    )
    y, x = tile.crop.y, tile.crop.x
    for _ in range(turns % 4):
        y, x = _mirrored(x, width), y
        height, width = width, height
    crop = Region(_mirrored(y, height) if up else y, _mirrored(x, width) if across else x)
    read = tile.read.shape if turns % 2 == 0 else tile.read.shape[::-1]
    return Tile(tile.plane, Region.of(0, crop.y.size, 0, crop.x.size), Region.of(0, read[0], 0, read[1]), crop)


def _mirrored(rows: Interval, of: int) -> Interval:
    return Interval(of - rows.stop, of - rows.start)


def _side(field: ReceptiveField, axis: int) -> int:
    """Halo that is enough on both sides of a core and of its mirror image, whose place the trimmed rows shift."""
    return max(field.halo_of(axis)) + math.ceil(max(0, -field.surplus[axis]) / field.rate[axis])
