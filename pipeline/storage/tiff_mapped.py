"""Uncompressed TIFF pages, read by mapping the file: any region costs no more than its own rows."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.storage.arrays import release
from pipeline.storage.source import ImageReadError, Index, Metadata, native
from pipeline.storage.tiff_layout import PageLayout
from pipeline.tiling.geometry import Region


class MappedPages:
    """Pages whose pixels lie in the file one after the other, in rows."""

    def __init__(self, file: Any, series: Any, layout: PageLayout, metadata: Metadata) -> None:
        self.file, self.series, self.layout, self.metadata = file, series, layout, metadata
        self._name = file.filehandle.path
        self.size = file.filehandle.size
        self.dtype = native(np.dtype(series.dtype), self._name)
        self._stored_dtype = np.dtype(file.byteorder + series.keyframe._dtype.char)
        self.shape = layout.arrangement.shape4
        _, _, y, x = self.shape
        rows = max(1, min(y, (1 << 20) // max(1, x * self.dtype.itemsize)))
        self.chunk: Index = (1, 1, rows, x)
        self._maps: dict[int, mmap.mmap] = {}
        if not layout.page_axes and series.keyframe.size > 1:
            raise ValueError(f"{self._name}: pages of shape {series.keyframe.shape} do not fit {series.shape}")
        self._page(0)

    def _page(self, number: int) -> np.ndarray | None:
        """A view of a page over its five axes; None for one that is not stored."""
        first = self.series[0]
        nbytes = int(np.prod(self.layout.page, dtype=object)) * self._stored_dtype.itemsize
        if self.series.dataoffset is not None:
            page, offset = first, self.series.dataoffset + number * nbytes
        else:
            page = self.series[number]
            if page is None or not page.dataoffsets or page.dataoffsets[0] == 0:
                return None
            offset = page.dataoffsets[0]
        handle = page.parent.filehandle
        if handle.closed:  # a further file of an OME-TIFF
            handle.open()
        if offset + nbytes > handle.size:
            raise ImageReadError(
                f"{self._name}: page {number} ends at {offset + nbytes}, beyond the end of the file "
                f"({handle.size} bytes)"
            )
        mapping = self._maps.get(id(handle))
        if mapping is None:
            mapping = self._maps[id(handle)] = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        return np.ndarray(self.layout.page, self._stored_dtype, buffer=mapping, offset=offset)

    def _plane(self, channel: int, plane: int, region: Region) -> np.ndarray:
        """(h, w) of one channel."""
        arrangement = self.layout.arrangement
        slices = arrangement.slices((channel, plane, 0, 0), (1, 1, *self.shape[2:]))
        page = self._page(self.layout.page_number(slices))
        if page is None:
            return np.full(region.shape, self.series.keyframe.nodata, self.dtype)
        pixels = page[self.layout.within_page(slices)]
        whole: np.ndarray = self.layout.to_4d(pixels, slices)[0, 0]  # a view
        return whole[region.slices]

    def window(self, channels: Sequence[int], plane: int, region: Region) -> np.ndarray:
        pixels = np.empty((len(channels), *region.shape), self.dtype)
        for i, channel in enumerate(channels):
            pixels[i] = self._plane(channel, plane, region)
        for mapping in self._maps.values():
            release(mapping)
        return pixels

    def decode(self, at: Index) -> np.ndarray:
        y, x = (
            (i * n, min((i + 1) * n, size)) for i, n, size in zip(at[2:], self.chunk[2:], self.shape[2:], strict=True)
        )
        return self.window([at[0]], at[1], Region.of(*y, *x))[:, np.newaxis]

    def sample(self, at: Index) -> bytes:
        return self.decode(at).tobytes()

    def close(self) -> None:
        self._maps.clear()
        self.file.close()
