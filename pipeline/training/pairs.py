"""An image and the class of each of its pixels, as training and validation read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

from pipeline.storage.image import Image, open_image
from pipeline.tiling.geometry import Interval, Region
from pipeline.training.sampling import Cores

IGNORE = -100
"""The class of what has no loss and is not scored: torch's own ignore_index."""


@dataclass(frozen=True)
class Pair:
    """Where an image and its labels are, and which of the network's outputs they are for. Nothing is opened."""

    name: str
    image: str
    label: str
    size: tuple[int, int]
    """(y, x) of the image."""
    region: Region | None = None
    """Outputs whose labels count; None: all."""
    shift: tuple[int, int] = (0, 0)
    """(y, x) of the label pixel of output (0, 0): above 0 where valid convolutions trim the output."""
    counts: tuple[int, ...] = ()
    """Labelled outputs of each class within the region."""
    identity: str = ""
    """Of the image: `Image.identity`."""
    classes: str = ""
    """A hash of the class of each output within the region."""


@dataclass(frozen=True)
class Split:
    """What is trained on, and what is held out."""

    train: tuple[Pair, ...]
    validation: tuple[Pair, ...] = ()
    test: tuple[Pair, ...] = ()
    cores: tuple[np.ndarray, ...] = ()
    """Of each pair that is trained on (cores, classes): the labelled outputs of each core, if these were asked for."""


class Labels:
    """The labels of a pair, read by regions of the network's output."""

    def __init__(self, pair: Pair, *, classes: int, ignore: int | None = None, binary: bool = False) -> None:
        self.pair, self.classes, self.ignore, self.binary = pair, scored(classes), ignore, binary
        self.image: Image = open_image(pair.label, labels=True)

    def read(self, region: Region) -> np.ndarray:
        """(h, w) int64: the class of each output, IGNORE where there is none or where it does not count.

        Raises ValueError, with the place, for a label that is no class of the network.
        """
        height, width = self.image.shape[-2:]
        top, left = self.pair.shift
        counts = self.pair.region or Region.of(0, height - top, 0, width - left)
        inside = Region(
            region.y.clip(counts.y.start, min(counts.y.stop, height - top)),
            region.x.clip(counts.x.start, min(counts.x.stop, width - left)),
        )
        out = np.full(region.shape, IGNORE, np.int64)
        if 0 not in inside.shape:
            there = Region(inside.y.shift(-region.y.start), inside.x.shift(-region.x.start))
            out[there.slices] = self._classes(Region(inside.y.shift(top), inside.x.shift(left)))
        return out

    def _classes(self, pixels: Region) -> np.ndarray:
        """Classes of a region of the label's own pixels."""
        stored = self.image.read(pixels)[0]
        classes: np.ndarray = (stored > 0 if self.binary else stored).astype(np.int64)
        counted = np.ones(stored.shape, bool) if self.ignore is None else stored != self.ignore
        wrong = counted & ((classes < 0) | (classes >= self.classes))
        if wrong.any():
            y, x = np.argwhere(wrong)[0]
            raise ValueError(
                f"{self.pair.label}: label {stored[y, x]} at row {pixels.y.start + y}, column {pixels.x.start + x} is "
                f"none of the classes 0 to {self.classes - 1}; data.ignore leaves one value out, and data.binary: true "
                "takes all above 0 for class 1"
            )
        classes[~counted] = IGNORE
        return classes

    def count(self, cores: Cores | None = None, look: Callable[[np.ndarray], None] = lambda _: None) -> np.ndarray:
        """(cores, classes) int64: labelled outputs that count, from all labels, a part at a time; None: one core.

        `look` is given the classes of each part.
        """
        region = self.pair.region or Region.of(0, self.image.shape[-2], 0, self.image.shape[-1])
        height, width = part_of(self.image.chunk, region.x.size)
        total = np.zeros((1 if cores is None else len(cores), self.classes), np.int64)
        for y, x in product(range(*_ends(region.y), height), range(*_ends(region.x), width)):
            part = Region(Interval(y, y + height).clip(*_ends(region.y)), Interval(x, x + width).clip(*_ends(region.x)))
            classes = self.read(part)
            look(classes)
            for core, inside in [(0, part)] if cores is None else cores.within(part):
                there = Region(inside.y.shift(-part.y.start), inside.x.shift(-part.x.start))
                of_core = classes[there.slices]
                total[core] += np.bincount(of_core[of_core != IGNORE], minlength=self.classes)
        return total

    def close(self) -> None:
        self.image.close()

    def __enter__(self) -> Labels:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


PART = 1 << 21
"""Pixels, about, of which memory is needed while all of a label is read."""


def part_of(chunk: tuple[int, int], width: int) -> tuple[int, int]:
    """(y, x) of what is read at a time: whole chunks where they are small, else rows of one, which is remembered."""
    y, x = chunk
    if y * x > PART:
        return max(1, PART // x), x
    columns = PART // (y * x) * x
    return max(1, PART // (y * min(columns, max(1, width)))) * y, columns


def _ends(interval: Interval) -> tuple[int, int]:
    return interval.start, interval.stop


def scored(classes: int) -> int:
    """Classes that a network of so many outputs tells apart: one output stands for two."""
    return max(2, classes)
