"""Where tiles lie: cores that partition the output, reads that cover them, and the pyramid's shards.

One axis, alignment 4, an image of 22 rows extended to 24, cores of 8 rows, reach 3 on each side:

    image      0.....................22
    extended   0.......................24
    cores      |--- 0 ---|--- 1 ---|- 2 -|        what a tile writes
    reads      |===== 0 =====|                    starts and ends at a multiple of 4,
                   |====== 1 =======|             clipped at the true edge, never padded
                             |==== 2 ====|
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

from pipeline.tiling.geometry import Interval, ReceptiveField, Region


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis. Sizes in input rows, but for `output`, the rows of the result.

    `before` and `after` are the halo of a core that begins and ends at multiples of the alignment.
    """

    size: int
    core: int
    before: int
    after: int
    alignment: int
    rate: Fraction
    output: int
    least: int = 1
    """No read has fewer rows than this, a multiple of the alignment, where the extended image has as many."""

    @property
    def extended(self) -> int:
        """The size rounded up to the alignment: what the network is thought to run on."""
        return -(-self.size // self.alignment) * self.alignment

    @property
    def step(self) -> int:
        """Output rows of a full core."""
        step = self.core * self.rate
        assert step.denominator == 1, "a core is a multiple of the alignment"
        return step.numerator

    def __len__(self) -> int:
        return -(-self.output // self.step)

    def core_of(self, tile: int) -> Interval:
        """Output rows that the tile writes."""
        return Interval(tile * self.step, min((tile + 1) * self.step, self.output))

    def read_for(self, rows: Interval) -> Interval:
        """Rows of the extended image from which the output rows can be computed exactly."""
        a = self.alignment
        start = math.floor(rows.start / self.rate) // a * a - self.before
        stop = -(-math.ceil(rows.stop / self.rate) // a) * a + self.after
        start = min(max(0, start // a * a), self.extended - a)
        stop = max(start + a, min(self.extended, -(-stop // a) * a))
        start = max(0, min(start, stop - self.least))
        return Interval(start, max(stop, min(self.extended, start + self.least)))

    def read_of(self, tile: int) -> Interval:
        """Rows of the extended image that the tile reads: its core with the halo."""
        return self.read_for(self.core_of(tile))

    @property
    def largest_read(self) -> int:
        """Rows of the largest read; 0 where there is no tile."""
        # reads grow until their halo is no longer clipped at the start, and shrink from where it is at the end
        turns = (self.before // self.core, (self.extended - self.after) // self.core)
        candidates = {0, len(self) - 1, *(turn + more for turn in turns for more in (-1, 0, 1))}
        return max((self.read_of(i).size for i in candidates if 0 <= i < len(self)), default=0)

    @property
    def reads(self) -> list[int]:
        """Rows of reads at both ends and in the middle, each number once."""
        numbers = {0, 1, len(self) // 2, len(self) - 2, len(self) - 1}
        return sorted({self.read_of(i).size for i in numbers if 0 <= i < len(self)})

    def crop(self, rows: Interval, read: Interval) -> Interval:
        """Where the output rows lie in the network's output for that read."""
        return rows.shift(-int(read.start * self.rate))


@dataclass(frozen=True)
class Tile:
    """One unit of work: plane z, core in output pixels, read in pixels of the extended image."""

    plane: int
    core: Region
    read: Region
    crop: Region


@dataclass(frozen=True)
class Grid:
    """All tiles of an image, numbered plane by plane in row-major order."""

    y: Axis
    x: Axis
    planes: int = 1

    @classmethod
    def build(cls, size: tuple[int, int], core: tuple[int, int], field: ReceptiveField, planes: int = 1) -> Grid:
        """The grid of cores of `core` input pixels (multiples of the field's alignment) on an image of `size`."""
        output = field.output_shape(*size)
        y, x = (
            Axis(
                size[i], core[i], *field.halo_of(i), field.alignment[i], field.rate[i], output[i], field.least[i]
            )
            for i in (0, 1)
        )  # fmt: skip
        return cls(y, x, planes)

    def __len__(self) -> int:
        return self.planes * len(self.y) * len(self.x)

    def tile(self, number: int) -> Tile:
        """The tile of that number, 0 <= number < len(grid)."""
        rest, column = divmod(number, len(self.x))
        plane, row = divmod(rest, len(self.y))
        return self.window(Region(self.y.core_of(row), self.x.core_of(column)), plane)

    def window(self, core: Region, plane: int = 0) -> Tile:
        """Any output region as if it were a tile's core: what must be read for it."""
        read = Region(self.y.read_for(core.y), self.x.read_for(core.x))
        return Tile(plane, core, read, Region(self.y.crop(core.y, read.y), self.x.crop(core.x, read.x)))

    @property
    def read_amplification(self) -> float:
        """Pixels read over pixels of the extended image: what the halo costs."""
        per_axis = [
            sum(axis.read_of(i).size for i in range(len(axis))) / max(1, axis.extended) for axis in (self.y, self.x)
        ]
        return per_axis[0] * per_axis[1]

    @property
    def reads(self) -> list[tuple[int, int]]:
        """Rows and columns of reads in the corners, on the borders and in the middle."""
        return list(product(self.y.reads, self.x.reads))

    @property
    def largest_read(self) -> tuple[int, int]:
        """Rows and columns of the largest read."""
        return self.y.largest_read, self.x.largest_read


@dataclass(frozen=True)
class Layout:
    """The arrays of an output: one per level, finest first, all of one dtype, cut into shards and chunks.

    A unit is what one worker writes whole: unit n < tiles is tile n, whose core is a whole number of shards of
    level 0; the rest are the shards of levels 1, 2, ... in row-major order.
    """

    axes: str
    """Of "czyx", those that the arrays have, in that order."""
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    shards: tuple[tuple[int, ...], ...]
    chunk: tuple[int, ...]

    def shard_counts(self, level: int) -> tuple[int, ...]:
        return tuple(-(-n // s) for n, s in zip(self.shapes[level], self.shards[level], strict=True))

    def pyramid_units(self, level: int) -> int:
        """Number of shards of a level >= 1."""
        return math.prod(self.shard_counts(level))

    def pyramid_shard(self, level: int, index: int) -> tuple[Interval, ...]:
        """What shard `index` of the level covers, an interval per axis."""
        position = []
        for count in reversed(self.shard_counts(level)):
            index, at = divmod(index, count)
            position.append(at)
        return tuple(
            Interval(at * shard, min((at + 1) * shard, size))
            for at, shard, size in zip(reversed(position), self.shards[level], self.shapes[level], strict=True)
        )

    def shards_within(self, level: int, region: tuple[Interval, ...]) -> list[tuple[int, ...]]:
        """Grid positions of the shards that cover the region, row major; the region is a whole number of shards."""
        ranges = [range(i.start // s, -(-i.stop // s)) for i, s in zip(region, self.shards[level], strict=True)]
        return list(product(*ranges))

    def to_json(self) -> dict[str, Any]:
        return {
            "axes": self.axes,
            "dtype": self.dtype,
            "shapes": [list(s) for s in self.shapes],
            "shards": [list(s) for s in self.shards],
            "chunk": list(self.chunk),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Layout:
        return cls(
            data["axes"],
            data["dtype"],
            tuple(tuple(s) for s in data["shapes"]),
            tuple(tuple(s) for s in data["shards"]),
            tuple(data["chunk"]),
        )


CHUNK = 512
"""Largest side of a chunk, in output pixels."""
SHARD = 2048
"""Largest side of a shard that the planner chooses."""
COARSEST = 512
"""The pyramid ends with the first level whose larger side is at most this."""


def largest_divisor(n: int, limit: int, least: int = 64) -> int:
    """The largest divisor of n in [least, limit], else n itself."""
    return next((d for d in range(min(n, limit), least - 1, -1) if n % d == 0), n)


def build_layout(axes: str, dtype: str, shape: tuple[int, ...], step: tuple[int, int], *, whole: bool) -> Layout:
    """The layout of a result of `shape` whose tiles write `step` (y, x) output pixels.

    `whole`: a tile is one shard, whatever its size; else shards are at most SHARD a side.
    """
    shard_yx = [n if whole or n <= SHARD else largest_divisor(n, SHARD) for n in step]
    chunk_yx = [largest_divisor(n, CHUNK) for n in shard_yx]
    leading = (1,) * (len(axes) - 2)
    chunk = leading + tuple(chunk_yx)
    shapes, shards = [shape], [leading + tuple(shard_yx)]
    while max(shapes[-1][-2:]) > COARSEST:
        below = shapes[-1]
        shapes.append(below[:-2] + tuple(-(-n // 2) for n in below[-2:]))
        shards.append(
            leading
            + tuple(c * max(1, min(SHARD // c, -(-n // c))) for c, n in zip(chunk_yx, shapes[-1][-2:], strict=True))
        )
    return Layout(axes, dtype, tuple(shapes), tuple(shards), chunk)
