"""Reads of the extended image: its pixels with the last row and column repeated, the next rows read meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np

from pipeline.storage.image import Image
from pipeline.tiling.geometry import Region

T = TypeVar("T")


class Reading:
    """One read of the extended image, which arrives from the top down, a row of the image's chunks at a time."""

    def __init__(
        self, image: Image, read: Region, size: tuple[int, int], plane: int = 0, channels: Sequence[int] | None = None
    ) -> None:
        """Of a region of the extended image, whose own pixels end at `size`, (y, x); nothing is read yet."""
        self.image, self.plane, self.channels = image, plane, channels
        self.inside = read.clip(*size)
        self.pixels = np.empty((image.shape[0] if channels is None else len(channels), *read.shape), image.dtype)
        """(c, h, w) as stored; what has not arrived is not there yet."""

    def all(self) -> np.ndarray:
        """The pixels, when all have arrived."""
        for _ in self._arriving():
            pass
        return self.pixels

    def bands(self, height: int) -> Iterator[np.ndarray]:
        """The pixels in bands (c, height, w) from the top down; while one is used, what comes next is read."""
        there, arriving = 0, ahead(self._arriving())
        for top in range(0, self.pixels.shape[1], height):
            bottom = min(top + height, self.pixels.shape[1])
            while there < bottom:
                there = next(arriving)
            yield self.pixels[:, top:bottom]

    def _arriving(self) -> Iterator[int]:
        """Reads; yields how many rows are there."""
        height, width = self.inside.shape
        there = 0
        for rows in self.image.fill(self.pixels[:, :height, :width], self.inside, self.plane, self.channels):
            self.pixels[:, there:rows, width:] = self.pixels[:, there:rows, width - 1 : width]
            yield rows
            there = rows
        self.pixels[:, height:] = self.pixels[:, height - 1 : height]
        yield self.pixels.shape[1]


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; while one is used, a thread makes the next."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming = thread.submit(list, islice(items, 1))
        while item := coming.result():
            coming = thread.submit(list, islice(items, 1))
            yield from item


def extend_to(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The pixels (..., y, x) with their last row and column repeated up to `shape`."""
    missing = [n - have for n, have in zip(shape, pixels.shape[-2:], strict=True)]
    if not any(missing):
        return pixels
    return np.pad(pixels, [(0, 0)] * (pixels.ndim - 2) + [(0, n) for n in missing], mode="edge")
