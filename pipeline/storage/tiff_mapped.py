"""Uncompressed TIFF pages: any region costs no more than its own rows."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.storage.arrays import release
from pipeline.storage.remote import read_at
from pipeline.storage.source import ImageReadError, Index, Metadata, native
from pipeline.storage.tiff_layout import PageLayout
from pipeline.tiling.geometry import Region


class Pages:
    """Pages whose pixels lie in the file one after the other, in rows."""

    def __init__(self, file: Any, series: Any, layout: PageLayout, metadata: Metadata, name: str) -> None:
        self.file, self.series, self.layout, self.metadata = file, series, layout, metadata
        self._name = name
        self.size = file.filehandle.size
        self.dtype = native(np.dtype(series.dtype), self._name)
        self._stored_dtype = np.dtype(file.byteorder + series.keyframe._dtype.char)
        self.shape = layout.arrangement.shape4
        if not layout.page_axes and series.keyframe.size > 1:
            raise ValueError(f"{self._name}: pages of shape {series.keyframe.shape} do not fit {series.shape}")
        self._locate(0)

    def _locate(self, number: int) -> tuple[Any, int] | None:
        """The file that holds a page and where it begins in it; None for one that is not stored."""
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
        return handle, offset

    def close(self) -> None:
        self.file.close()


class RangedPages(Pages):
    """Pages of an object in a store, of which whole rows are asked for at a time."""

    def __init__(self, file: Any, series: Any, layout: PageLayout, metadata: Metadata, name: str) -> None:
        _, _, rows, x, samples = layout.page
        rows = max(1, min(rows, (1 << 20) // max(1, x * samples * series.keyframe.dtype.itemsize)))
        super().__init__(file, series, replace(layout, tile=(1, 1, rows, x, samples)), metadata, name)
        self.chunk = self.layout.chunk

    def decode(self, at: Index) -> np.ndarray:
        slices = self.layout.arrangement.slices(at, self.chunk)
        number, part = self.layout.page_number(slices), self.layout.within_page(slices)
        found = self._locate(number)
        if found is None:
            pixels = np.full([s.stop - s.start for s in part], self.series.keyframe.nodata, self.dtype)
            return self.layout.to_4d(pixels, slices)
        handle, offset = found
        shape = (1, 1, part[2].stop - part[2].start, *self.layout.page[3:])
        row = shape[3] * shape[4] * self._stored_dtype.itemsize
        first = (part[0].start * self.layout.page[1] + part[1].start) * self.layout.page[2] + part[2].start
        try:
            data = read_at(handle, shape[2] * row, offset + first * row)
        except (ValueError, OSError) as error:
            raise ImageReadError(f"{self._name}: page {number}, rows from {part[2].start}: {error}") from error
        pixels = np.frombuffer(data, self._stored_dtype).reshape(shape)[..., part[4]]
        return self.layout.to_4d(pixels, slices).astype(self.dtype, copy=False)

    def sample(self, at: Index) -> bytes:
        return self.decode(at).tobytes()


class MappedPages(Pages):
    """Pages of a file on this machine, which is mapped."""

    def __init__(self, file: Any, series: Any, layout: PageLayout, metadata: Metadata, name: str) -> None:
        super().__init__(file, series, layout, metadata, name)
        _, _, y, x = self.shape
        self.chunk: Index = (1, 1, max(1, min(y, (1 << 20) // max(1, x * self.dtype.itemsize))), x)
        self._maps: dict[int, mmap.mmap] = {}

    def _page(self, number: int) -> np.ndarray | None:
        """A view of a page over its five axes; None for one that is not stored."""
        found = self._locate(number)
        if found is None:
            return None
        handle, offset = found
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
        super().close()
