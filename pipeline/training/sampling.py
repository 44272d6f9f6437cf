"""Which samples a training step takes: a pure function of the step's number, so that a run can go on anywhere.

    stream     0   1   2   3   4 | 5   6   7   8   9 | ...     each epoch holds every core once, in an order of its own
    step       |---- 0 ----|---- 1 ----|---- 2 ----| - ...     `batch` samples each
    worker     0   1   0   0   1   0   0   1   0   0   ...     dealt in turn from each step's first, alone or in groups

Cores without a label are in no epoch. A stream that is balanced has the classes in turn instead, and draws for each
place a core with that class, by how much of it there is in the core.

What a sample is, where it lies and what is drawn for it depends on the seed and its number in the stream, never on who
reads it or how many do.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import accumulate, chain
from typing import Literal

import numpy as np

from pipeline.tiling.geometry import Interval, ReceptiveField, Region
from pipeline.tiling.grid import Grid, Tile

Kind = Literal["tiles", "whole", "patches"]


@dataclass(frozen=True)
class Sample:
    """A tile of an image: what is read, and of which outputs the loss is taken."""

    number: int
    """Its place in the stream, from which everything random about it follows."""
    image: int
    tile: Tile
    at: int = 0
    """Its place in the step, by which samples are dealt to workers and share passes."""


class Cores:
    """The outputs of one image that may carry loss, cut into cores that are numbered in row-major order."""

    def __init__(self, grid: Grid, step: tuple[int, int], region: Region) -> None:
        self.grid, self.step, self.region = grid, step, region
        self.rows, self.columns = (
            range(part.start // n, -(-part.stop // n) if part.size else part.start // n)
            for part, n in zip((region.y, region.x), step, strict=True)
        )

        self.numbers: np.ndarray | range = range(len(self.rows) * len(self.columns))
        self.counts: np.ndarray | None = None

    def labelled(self, counts: np.ndarray) -> Cores:
        """Those with a label, numbered anew; `counts`: (cores, classes), the labelled outputs of each."""
        some = Cores(self.grid, self.step, self.region)
        some.numbers = np.flatnonzero(counts.any(axis=1))
        some.counts = counts[some.numbers]
        return some

    def __len__(self) -> int:
        return len(self.numbers)

    def within(self, region: Region) -> Iterator[tuple[int, Region]]:
        """The cores that a region of outputs has parts of, and these parts."""
        (y, x), (high, wide) = (region.y, region.x), self.step
        for row in range(y.start // high, -(-y.stop // high)):
            for column in range(x.start // wide, -(-x.stop // wide)):
                part = Region(
                    Interval(row * high, (row + 1) * high).clip(y.start, y.stop),
                    Interval(column * wide, (column + 1) * wide).clip(x.start, x.stop),
                )
                yield (row - self.rows.start) * len(self.columns) + column - self.columns.start, part

    def tile(self, number: int) -> Tile:
        row, column = divmod(int(self.numbers[number]), len(self.columns))
        y, x = (
            Interval(at * n, (at + 1) * n).clip(part.start, part.stop)
            for at, n, part in zip(
                (self.rows[row], self.columns[column]), self.step, (self.region.y, self.region.x), strict=True
            )
        )
        return self.grid.window(Region(y, x))


def cut(
    size: tuple[int, int], field: ReceptiveField, kind: Kind, core: tuple[int, int] | None, region: Region | None = None
) -> Cores:
    """The cores of an image of `size` whose outputs within `region` (all: None) carry loss.

    `whole`: one core, all outputs, read from the whole image, or where something is held out of it, from what they
    need; `tiles`: `core` input pixels each; `patches`: a single output each, whose read is its receptive field, aligned
    and clipped at the image's edge as every read.
    Raises ValueError for a core that is no multiple of the field's alignment, and for tiles of what is not local.
    """
    a = field.alignment
    everything = Region.of(0, field.output_shape(*size)[0], 0, field.output_shape(*size)[1])
    if kind == "whole" and region not in (None, everything):
        if not field.is_local:
            raise ValueError("data is held out by=region: the network is not local, so it would see what is held out")
        step = (max(1, everything.y.stop), max(1, everything.x.stop))
        return Cores(Grid.build(size, field.extended(*size), field), step, region)
    if kind == "whole":
        rows, columns = field.extended(*size)
        grid = Grid.build(size, (rows, columns), replace(field, halo=((rows, rows), (columns, columns))))
        return Cores(grid, (max(1, everything.y.stop), max(1, everything.x.stop)), everything)
    if not field.is_local:
        raise ValueError(
            f"sampling.kind={kind}: the network is not local, so no part of an image has its gradient: "
            + "; ".join(field.nonlocal_operations)
        )
    core = a if kind == "patches" or core is None else core
    if any(n < 1 or n % by for n, by in zip(core, a, strict=True)):
        near = [max(by, n // by * by) for n, by in zip(core, a, strict=True)]
        raise ValueError(
            f"sampling.core={_pair(core)} is no multiple of the network's alignment {_pair(a)}: "
            f"the nearest are {_pair(near)} and {_pair([n + by for n, by in zip(near, a, strict=True)])}"
        )
    grid = Grid.build(size, core, field)
    step = (1, 1) if kind == "patches" else (grid.y.step, grid.x.step)
    return Cores(grid, step, everything if region is None else region.clip(everything.y.stop, everything.x.stop))


def _pair(numbers: Sequence[int]) -> str:
    y, x = numbers
    return str(y) if y == x else f"{y},{x}"


class Sampler:
    """The samples of every step, over the cores of all images.

    `batch` samples a step, or with "image" all of one image; so many more where each output keeps its loss with
    probability `keep` only (Long, Shelhamer & Darrell 2015, section 3.4, doi:10.1109/CVPR.2015.7298965).
    `balanced`: classes in turn, each time from a core that has it; the cores are those that are labelled.
    Raises ValueError where there is nothing to sample.
    """

    def __init__(
        self,
        cores: Sequence[Cores],
        batch: int | Literal["image"],
        *,
        keep: float = 1.0,
        seed: int = 0,
        balanced: bool = False,
    ) -> None:
        self.cores, self.seed, self.keep = cores, seed, keep
        self.images = [image for image, of_image in enumerate(cores) if len(of_image)]
        if not self.images:
            raise ValueError("no image is large enough to give the network an output to train on")
        self.by_image = batch == "image"
        self.batch = max(1, round((1 if batch == "image" else batch) / keep))
        self.ends = list(accumulate(len(cores[image]) for image in self.images))
        self.largest = max(len(of_image) for of_image in cores)
        self.classes = [] if not balanced else _by_class([cores[image].counts for image in self.images])

    def __len__(self) -> int:
        """What there is in an epoch: samples, or images where a step takes all of one."""
        return len(self.images) if self.by_image else self.ends[-1]

    def step(self, number: int) -> list[Sample]:
        """The samples of that step, over all workers."""
        places = range(number * self.batch, (number + 1) * self.batch)
        samples = chain.from_iterable(map(self._all_of, places)) if self.by_image else map(self._one, places)
        return [replace(sample, at=at) for at, sample in enumerate(samples)]

    def kept(self, sample: Sample) -> np.ndarray:
        """Which outputs (h, w) of the sample's core keep their loss."""
        random = np.random.default_rng((self.seed, sample.number))
        return random.random(sample.tile.core.shape) < self.keep

    def _drawn(self, place: int) -> int:
        epoch, index = divmod(place, len(self))
        return shuffled(index, len(self), self.seed, epoch)

    def _of_class(self, place: int) -> int:
        """A core of the class whose turn it is, with a probability in proportion to how much of it the core has."""
        found, ends = self.classes[place % len(self.classes)]
        drawn = np.random.default_rng((self.seed, place, 2)).integers(ends[-1])
        return int(found[np.searchsorted(ends, drawn, side="right")])

    def _one(self, place: int) -> Sample:
        index = self._of_class(place) if self.classes else self._drawn(place)
        at = bisect_right(self.ends, index)
        image = self.images[at]
        return Sample(place, image, self.cores[image].tile(index - self.ends[at] + len(self.cores[image])))

    def _all_of(self, place: int) -> list[Sample]:
        image = self.images[self._drawn(place)]
        tiles = range(len(self.cores[image]))
        return [Sample(place * self.largest + n, image, self.cores[image].tile(n)) for n in tiles]


def dealt(samples: Sequence[Sample], rank: int, world: int, group: int = 1) -> list[Sample]:
    """The samples of a step for one of `world` workers, which take groups of so many places in turn."""
    return [sample for sample in samples if sample.at // group % world == rank]


def _by_class(counts: Sequence[np.ndarray | None]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each class that there is: the cores that have it, counted over all images, and running sums of how much."""
    table = np.concatenate([of_image for of_image in counts if of_image is not None])
    found = [np.flatnonzero(column) for column in table.T]
    return [(cores, table[cores, k].cumsum()) for k, cores in enumerate(found) if len(cores)]


def shuffled(index: int, count: int, *key: int) -> int:
    """Which of range(count) comes at `index` in the random order that the key stands for; no order is stored.

    A Feistel network of eight rounds permutes the least 4**n numbers that are enough, and is walked on until it comes
    to one below count (Black & Rogaway 2002, doi:10.1007/3-540-45760-7_9).
    """
    assert 0 <= index < count
    bits = max(1, ((count - 1).bit_length() + 1) // 2)
    while True:
        left, right = index >> bits, index & ((1 << bits) - 1)
        for turn in range(8):
            mixed = blake2b(repr((key, turn, right)).encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(mixed, "little") & ((1 << bits) - 1))
        index = left << bits | right
        if index < count:
            return index
