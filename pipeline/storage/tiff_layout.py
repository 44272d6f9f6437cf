"""How the pages of a TIFF series, and the strips or tiles within each, make up an array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.storage.axes import Arrangement, given_axes
from pipeline.storage.source import Index


@dataclass(frozen=True)
class PageLayout:
    """Where the pixels of an array of pages are: which axes count pages, which lie within one."""

    arrangement: Arrangement
    page_axes: dict[int, int]
    """Axis of the series -> axis of a page's (samples, depth, rows, columns, samples)."""
    tile: tuple[int, int, int, int, int]
    """Size of a strip or tile along those."""
    page: tuple[int, int, int, int, int]

    @classmethod
    def of(cls, series: Any, axes: str | None, time: int, what: str) -> PageLayout:
        keyframe = series.keyframe
        shape, names = tuple(series.get_shape(False)), series.get_axes(False)
        within = _match(shape, keyframe.shaped)
        if within is None or not {"Y", "X"} <= set(names):  # metadata that contradict the pages
            pages = len(series)
            shape, names = (pages, *keyframe.shape), "I" + keyframe.axes
            within = _match(shape, keyframe.shaped)
            assert within is not None, "a page matches itself"
        if axes is not None:
            shape, names, within = _rename(shape, names, within, axes, what)
        samples = keyframe.samplesperpixel if keyframe.planarconfig == 1 else 1
        if keyframe.is_tiled:
            tile = (1, keyframe.tiledepth, keyframe.tilelength, keyframe.tilewidth, samples)
        else:
            tile = (1, 1, keyframe.rowsperstrip or keyframe.imagelength, keyframe.imagewidth, samples)
        if min(tile) < 1:
            raise ValueError(f"{what}: strips or tiles of size {tile[1:4]}")
        return cls(Arrangement.of(names, shape, time), within, tile, tuple(keyframe.shaped))

    @property
    def chunk(self) -> Index:
        axes = range(len(self.arrangement.shape))
        return self.arrangement.chunk4([self.tile[self.page_axes[i]] if i in self.page_axes else 1 for i in axes])

    def page_number(self, slices: tuple[slice, ...]) -> int:
        """Number of the page within the series."""
        number = 0
        for i, n in enumerate(self.arrangement.shape):
            if i not in self.page_axes:
                number = number * n + slices[i].start
        return number

    def within_page(self, slices: tuple[slice, ...]) -> tuple[slice, ...]:
        """The part of a page's five axes."""
        result = [slice(0, 1)] * 5
        for i, k in self.page_axes.items():
            result[k] = slices[i]
        return tuple(result)

    def segment_number(self, part: tuple[slice, ...]) -> int:
        """Number of the strip or tile that begins at that part of a page."""
        number = 0
        for position, size, n in list(zip(part, self.tile, self.page, strict=True))[:4]:
            number = number * -(-n // size) + position.start // size
        return number

    def to_4d(self, pixels: np.ndarray, slices: tuple[slice, ...]) -> np.ndarray:
        """Pixels over a page's five axes as (c, z, y, x)."""
        sizes = [s.stop - s.start for s in slices]
        return self.arrangement.to_4d(pixels.reshape(sizes))


def _match(shape: tuple[int, ...], page: tuple[int, ...]) -> dict[int, int] | None:
    """Which axes of the series are those of a page, from the last on; None where they do not agree."""
    within, i = {}, len(shape) - 1
    for k in reversed(range(5)):
        if page[k] == 1:
            continue
        while i >= 0 and shape[i] == 1:
            i -= 1
        if i < 0 or shape[i] != page[k]:
            return None
        within[i] = k
        i -= 1
    return within


def _rename(
    shape: tuple[int, ...], names: str, within: dict[int, int], axes: str, what: str
) -> tuple[tuple[int, ...], str, dict[int, int]]:
    """The axes that the caller named, for all axes or for those longer than 1."""
    if len(axes) == len(shape):
        return shape, given_axes(axes, shape, what), within
    kept = [i for i, (a, n) in enumerate(zip(names, shape, strict=True)) if n > 1 or a in "YX"]
    short = tuple(shape[i] for i in kept)
    return short, given_axes(axes, short, what), {kept.index(i): k for i, k in within.items() if i in kept}
