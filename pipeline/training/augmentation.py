"""Other views of a sample: turned, deformed, stained, noisier; drawn by the seed and the sample's number alone.

A read is turned with its halo, and its crop with it. A halo need not be the same on all sides, and what was below a
core may come to lie above it, so reads get the larger halo all around (`field`). A turned tile then has the gradient
that the turned image has there, edges included; where an image is extended, the extension turns with it.

A deformed pixel is taken from at most `margin` away. With reads wider by that, all that a core depends on is what the
whole image, deformed alike, has there; only in the outermost `margin` rows and columns of a read are there others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F

from pipeline.tiling.geometry import Interval, ReceptiveField, Region
from pipeline.tiling.grid import Tile
from pipeline.training.gradient import Read

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density in red, green and blue of haematoxylin, eosin and DAB (Ruifrok & Johnston 2001)."""
STIFFNESS = 8
"""Distance between places that are moved independently, over the longest way that they are: nothing folds over."""


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
    stain: float = 0.0
    """The density of each of three stains times 1 + u, plus v; u and v within this of 0 (Tellez et al. 2018,
    doi:10.1109/TMI.2018.2820199)."""
    elastic: float = 0.0
    """Pixels by which places are moved along each axis at most, smoothly."""
    seed: int = 0

    @property
    def margin(self) -> int:
        """Pixels that are needed around what a view shows."""
        return math.ceil(self.elastic)

    def field(self, field: ReceptiveField) -> ReceptiveField:
        """The field whose reads serve every view.

        Raises ValueError where rows are no match for columns, or outputs for pixels.
        """
        if not (self.flip or self.rotate or self.elastic):
            return field
        if self.elastic and any(rate != 1 for rate in field.rate):
            raise ValueError("augment.elastic: the network has not one output a pixel, so labels cannot move with them")
        if self.rotate and any(y != x for y, x in (field.alignment, field.rate, field.surplus)):
            raise ValueError("augment.rotate: the network does not treat rows as columns, so no image can be turned")
        sides = [_side(field, axis) + self.margin for axis in (0, 1)]
        if self.rotate:
            sides = [max(sides)] * 2
        y, x = sides
        least = (max(field.least),) * 2 if self.rotate else field.least
        return replace(field, before=(y, x), after=(y, x), halo=((y, y), (x, x)), least=least)

    def views(self, reads: Iterable[Read], field: ReceptiveField) -> Iterator[Read]:
        """Each read as it is seen this time, and the classes of its core; `field`: by which reads are cut.

        Reads come with the classes of `margin` more on each side of the core, IGNORE where there is none.
        """
        for sample, pixels, labels in reads:
            stored = pixels.dtype
            if self.stain and (stored != np.uint8 or len(pixels) != 3):
                raise ValueError(f"augment.stain: is for RGB of 8 bits, not for {len(pixels)} channels of {stored}")
            if self.elastic:
                pixels, labels = self._deformed(sample.number, sample.tile, pixels, labels, field)
            draw = np.random.default_rng((self.seed, sample.number, 1))
            turns = int(draw.integers(4)) if self.rotate else 0
            up, across = (bool(n) for n in draw.integers(2, size=2)) if self.flip else (False, False)
            tile = turned(sample.tile, field, turns, up, across)
            yield (
                replace(sample, tile=tile),
                self._recoloured(view(pixels, turns, up, across).copy(), stored, draw),
                view(labels, turns, up, across).copy(),  # as torch takes it, also where it has a single row
            )

    def _deformed(
        self, number: int, tile: Tile, pixels: np.ndarray, labels: np.ndarray, field: ReceptiveField
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (c, h, w) between those where they are taken from, and the class of the nearest for the core."""
        moves = displacements(pixels.shape[1:], self.elastic, np.random.default_rng((self.seed, number, 3)))
        # Output (0, 0) of a network with valid convolutions stands for a pixel further in.
        top, left = (max(0, -surplus) // 2 for surplus in field.surplus)
        core = Region(tile.core.y.shift(top - tile.read.y.start), tile.core.x.shift(left - tile.read.x.start))
        offsets = np.rint(moves[:, *core.slices]).astype(np.int64)
        rows, columns = np.indices(core.shape) + self.margin + offsets
        return moved(pixels, moves), labels[rows, columns]

    def _recoloured(self, pixels: np.ndarray, stored: np.dtype, draw: np.random.Generator) -> np.ndarray:
        """Pixels (c, h, w) within the range of what is stored; as they are where nothing of this is asked for."""
        if not (self.brightness or self.contrast or self.noise or self.stain):
            return pixels
        brightness, contrast = 1 + draw.uniform(-1, 1, 2) * (self.brightness, self.contrast)
        values = pixels.astype(np.float32)
        if self.stain:
            values = restained(values, *draw.uniform(-self.stain, self.stain, (2, 3, 1, 1)))
        mean = values.mean(axis=(1, 2), keepdims=True)
        values = ((values - mean) * contrast + mean) * brightness
        if self.noise:
            values += draw.normal(0, self.noise, values.shape)
        if stored.kind in "iu":
            limits = np.iinfo(stored)
            values = values.clip(limits.min, limits.max)
        recoloured: np.ndarray = values.astype(np.float32)
        return recoloured


def displacements(shape: tuple[int, ...], most: float, draw: np.random.Generator) -> np.ndarray:
    """(2, h, w): how far down and to the right each pixel of a view is taken from, at most `most`."""
    lattice = [max(2, round(n / (STIFFNESS * max(1.0, most))) + 1) for n in shape]
    loose = torch.from_numpy(draw.uniform(-most, most, (1, 2, *lattice)))
    smooth = F.interpolate(loose, tuple(shape), mode="bicubic", align_corners=True)[0]
    found: np.ndarray = smooth.clamp(-most, most).numpy()
    return found


def moved(pixels: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Pixels (c, h, w), each from so far away: between four, and from the edge where that is beyond it."""
    height, width = pixels.shape[1:]
    rows, columns = np.indices((height, width)) + moves
    places = np.stack([2 * columns / max(1, width - 1) - 1, 2 * rows / max(1, height - 1) - 1], axis=-1)
    dtype = np.float64 if pixels.dtype == np.float64 else np.float32
    values = torch.from_numpy(pixels.astype(dtype))[None]
    grid = torch.from_numpy(places.astype(dtype))[None]
    found: np.ndarray = F.grid_sample(values, grid, padding_mode="border", align_corners=True)[0].numpy()
    return found


def restained(values: np.ndarray, gains: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Values (3, h, w) in 0..255 with other densities of the three stains: times 1 + gain, plus more."""
    stains = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    density = -np.log((np.clip(values, 0, 255) + 1) / 256)
    amounts = np.einsum("ij,jyx->iyx", np.linalg.inv(stains.T), density)
    found: np.ndarray = 256 * np.exp(-np.einsum("ij,jyx->iyx", stains.T, amounts * (1 + gains) + more)) - 1
    return found


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
