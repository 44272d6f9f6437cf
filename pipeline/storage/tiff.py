"""TIFF files: which series and level is opened, and how its pages and strips or tiles become chunks."""

from __future__ import annotations

import logging
import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from pipeline.storage import streams, tiff_legacy
from pipeline.storage.arrays import release
from pipeline.storage.location import name_of
from pipeline.storage.remote import RemoteFile, read_at
from pipeline.storage.source import ImageReadError, Index, Metadata, Source, native, one_line
from pipeline.storage.tiff_layout import PageLayout
from pipeline.storage.tiff_mapped import MappedPages, RangedPages
from pipeline.storage.tiff_metadata import describe

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what matters comes as one line of an error

LARGEST_CHUNK = 1 << 31
"""Bytes of a decoded strip or tile beyond which it is taken for damage, not for an image."""
THUMBNAIL = 16
"""An image with this many times fewer pixels than a later one is its thumbnail."""


def open_tiff(path: Path | RemoteFile, axes: str | None, level: int, time: int = 0) -> Source | None:
    """The image of the file at that level; None for an object that must be fetched first.

    Raises ValueError for what cannot be read.
    """
    try:
        file = tifffile.TiffFile(path)
    except Exception as error:  # damage surfaces in tifffile as any of Python's errors
        raise ValueError(f"{path}: not a readable TIFF file: {one_line(error)}") from error
    try:
        return _open(file, path, axes, level, time)
    except ValueError:
        file.close()
        raise
    except Exception as error:  # as above
        file.close()
        raise ValueError(f"{path}: damaged TIFF file: {type(error).__name__}: {one_line(error)}") from error


def _open(file: tifffile.TiffFile, path: Path | RemoteFile, axes: str | None, level: int, time: int) -> Source | None:
    series, notes = _chosen_series(file, path)
    if not 0 <= level < len(series.levels):
        raise ValueError(f"{path} has levels 0 to {len(series.levels) - 1}: level {level} is not among them")
    finest, series = series, series.levels[level]
    keyframe = series.keyframe
    if keyframe.dtype is None or 0 in series.shape:
        raise ValueError(
            f"{path}: unsupported image: shape {series.shape}, {keyframe.bitspersample} bits, "
            f"sample format {keyframe.sampleformat}"
        )
    layout = PageLayout.of(series, axes, time, str(path))
    metadata = describe(file, finest, series)
    metadata.name = metadata.name or name_of(str(path))
    metadata.notes = notes + layout.arrangement.notes
    metadata.levels = tuple(_shape(s, axes, time, str(path)) for s in finest.levels)
    metadata.axes, metadata.volumetric = layout.arrangement.axes, layout.arrangement.shape4[1] > 1
    if tiff_legacy.is_needed(keyframe):
        return tiff_legacy.open_page(file, series, metadata, path) if isinstance(path, Path) else None
    if keyframe.is_final and lookup_table(keyframe) is None:
        pages = MappedPages if isinstance(path, Path) else RangedPages
        return pages(file, series, layout, metadata, str(path))
    return TiffSource(file, series, layout, metadata, str(path))


def _chosen_series(file: tifffile.TiffFile, path: Path | RemoteFile) -> tuple[Any, list[str]]:
    """The first image, masks and thumbnails aside: one with a sixteenth of a later one's pixels is a thumbnail too."""
    usable = [s for s in file.series if s.shape and s.keyframe.shape]
    full = [s for s in usable if not int(s.keyframe.subfiletype) & 0b101]
    images = [s for s in full if len(s.keyframe.treeindex) == 1] or full or usable
    if not images:
        raise ValueError(f"{path}: a TIFF file without an image")
    largest = max(images, key=_area)
    series = images[0] if _area(images[0]) * THUMBNAIL > _area(largest) else largest
    number, size = images.index(series), "x".join(map(str, series.shape))
    note = f"it holds {len(images)} images: number {number} is opened ({size}, axes {series.axes})"
    return series, [note] if len(images) > 1 else []


def _area(series: Any) -> int:
    return int(series.keyframe.imagelength) * int(series.keyframe.imagewidth)


def _shape(series: Any, axes: str | None, time: int, what: str) -> tuple[int, ...]:
    """(c, y, x) or (c, z, y, x) of a level."""
    try:
        layout = PageLayout.of(series, axes, time, what)
    except ValueError:
        return tuple(series.shape)
    c, z, y, x = layout.arrangement.shape4
    if lookup_table(series.keyframe) is not None and c == 1:
        c = 3
    return (c, z, y, x) if z > 1 else (c, y, x)


def lookup_table(page: Any) -> np.ndarray | None:
    """The colours (3, n) uint8 of a palette image, else None."""
    if page.photometric != tifffile.PHOTOMETRIC.PALETTE or page.samplesperpixel != 1:
        return None
    table = page.colormap
    if table is None or table.ndim != 2 or len(table) != 3 or page.dtype.kind not in "bu":
        return None
    colours: np.ndarray = (table >> 8 if table.max() > 255 else table).astype(np.uint8)
    return colours


class TiffSource:
    """Strips or tiles, decoded one by one."""

    def __init__(self, file: tifffile.TiffFile, series: Any, layout: PageLayout, metadata: Metadata, name: str) -> None:
        self.file, self.series, self.layout, self.metadata = file, series, layout, metadata
        self._name = name
        self.keyframe = series.keyframe
        self.size = file.filehandle.size
        self.dtype = native(np.dtype(series.dtype), self._name)
        self.chunk = layout.chunk
        self.shape = layout.arrangement.shape4
        self.table = lookup_table(self.keyframe) if self.shape[0] == 1 else None
        if self.table is not None:
            self.shape, self.chunk = (3, *self.shape[1:]), (3, *self.chunk[1:])
            self.dtype = self.table.dtype
        self._refuse_unsupported()

    def _refuse_unsupported(self) -> None:
        size = math.prod(self.layout.tile) * np.dtype(self.series.dtype).itemsize
        if size > LARGEST_CHUNK:
            raise ValueError(f"{self._name}: a strip or tile of {size} bytes {self.layout.tile[1:]}")
        try:
            self.keyframe.decode(None, 0)
        except Exception as error:  # tifffile answers so where it cannot decode
            raise ValueError(
                f"{self._name}: cannot be decoded (compression {_compression(self.keyframe.compression)}): "
                f"{one_line(error)}"
            ) from error
        if not self.keyframe.dataoffsets:
            raise ValueError(f"{self._name}: says nowhere where its pixels are")

    def _locate(self, at: Index) -> tuple[tuple[slice, ...], Any, int]:
        """The part of the series, the page and the number of the strip or tile."""
        slices = self.layout.arrangement.slices((0, *at[1:]) if self.table is not None else at, self._chunk)
        page = self.series[self.layout.page_number(slices)]
        return slices, page, self.layout.segment_number(self.layout.within_page(slices))

    @property
    def _chunk(self) -> Index:
        return self.chunk if self.table is None else (1, *self.chunk[1:])

    def decode(self, at: Index) -> np.ndarray:
        slices, page, number = self._locate(at)
        part = self.layout.within_page(slices)
        extent = tuple(s.stop - s.start for s in part)
        try:
            segment = self._segment(page, number)
        except Exception as error:  # decoders answer damage with any of Python's errors
            raise self._failure(error, page, slices, number) from error
        if segment is None:
            pixels = np.full(extent, self.keyframe.nodata, self.series.dtype)
        else:
            pixels = self._clip(segment, extent)
        result = self.layout.to_4d(pixels, slices)
        return result if self.table is None else self._colours(page)[:, result[0].astype(np.intp)]

    def _colours(self, page: Any) -> np.ndarray:
        """The palette of that page, which may differ from the first one's."""
        assert self.table is not None
        if page is None or page is self.keyframe or page.is_virtual:
            return self.table
        table = lookup_table(page.aspage() if page.is_frame else page)
        return self.table if table is None or table.shape != self.table.shape else table

    def stream(self, at: Index) -> Iterator[np.ndarray] | None:
        """A strip in blocks of rows, where its compression can be undone from the front."""
        slices, page, number = self._locate(at)
        rows = self.layout.arrangement.order[2]
        if not streams.is_streamable(self.keyframe) or not rows or self.table is not None:
            return None
        try:
            if self._stored(page, number, 1) is None:
                return None
        except Exception as error:  # as in decode
            raise self._failure(error, page, slices, number) from error
        return self._stream(slices, page, number, rows[0])

    def _stream(self, slices: tuple[slice, ...], page: Any, number: int, axis: int) -> Iterator[np.ndarray]:
        done, span = 0, slices[axis]
        mapping = None
        try:
            if isinstance(page.parent.filehandle._fh, RemoteFile):
                data = memoryview(self._stored(page, number) or b"")
            else:
                mapping = mmap.mmap(page.parent.filehandle.fileno(), 0, access=mmap.ACCESS_READ)
                start, count = page.dataoffsets[number], page.databytecounts[number]
                data = memoryview(mapping)[start : start + count]
            for block in streams.strip_blocks(self.keyframe, data, span.stop - span.start):
                part = (*slices[:axis], slice(done, done + block.shape[1]), *slices[axis + 1 :])
                yield self.layout.to_4d(block[np.newaxis].astype(self.series.dtype, copy=False), part)
                done += block.shape[1]
                if mapping is not None:
                    release(mapping)
        except Exception as error:  # as in decode
            raise self._failure(error, page, slices, number) from error
        if done != span.stop - span.start:
            raise self._failure(ValueError(f"ends after {done} rows"), page, slices, number)

    def _failure(self, error: Exception, page: Any, slices: tuple[slice, ...], number: int) -> ImageReadError:
        kind = "tile" if self.keyframe.is_tiled else "strip"
        where = getattr(page, "index", self.layout.page_number(slices))
        return ImageReadError(
            f"{self._name}: page {where}, {kind} {number} cannot be decoded: {type(error).__name__}: {one_line(error)}"
        )

    def _segment(self, page: Any, number: int) -> np.ndarray | None:
        """The strip or tile (depth, rows, columns, samples); None where it is not stored."""
        data = self._stored(page, number)
        if data is None:
            return None
        options: dict[str, Any] = {}
        if page.jpegtables is not None:
            options["jpegtables"] = page.jpegtables
        if self.keyframe.jpegheader is not None:
            options["jpegheader"] = self.keyframe.jpegheader
        segment: np.ndarray | None = self.keyframe.decode(data, number, **options)[0]
        return segment

    def _stored(self, page: Any, number: int, most: int = 1 << 62) -> bytes | None:
        """The bytes of a strip or tile as they are in the file, at most so many; None where it is not stored."""
        if page is None or number >= len(page.dataoffsets) or number >= len(page.databytecounts):
            return None
        offset, count = page.dataoffsets[number], page.databytecounts[number]
        if offset == 0 or count == 0:
            return None
        handle = page.parent.filehandle
        if handle.closed:  # a further file of an OME-TIFF
            handle.open()
        if offset >= handle.size:
            raise ValueError(f"lies at {offset}, beyond the end of the file ({handle.size} bytes)")
        return read_at(handle, min(count, handle.size - offset, most), offset)

    def _clip(self, segment: np.ndarray, extent: tuple[int, ...]) -> np.ndarray:
        _, d, h, w, c = extent
        pixels = segment[:d, :h, :w, :c]
        if pixels.shape != (d, h, w, c):
            raise ImageReadError(f"{self._name}: a strip or tile holds {segment.shape}, not {extent[1:]} pixels")
        if pixels.dtype != self.series.dtype:
            pixels = pixels.astype(self.series.dtype)
        return pixels[np.newaxis]

    def sample(self, at: Index) -> bytes:
        slices, page, number = self._locate(at)
        try:
            return self._stored(page, number) or b""
        except Exception as error:  # as in decode
            raise self._failure(error, page, slices, number) from error

    def close(self) -> None:
        self.file.close()


def _compression(compression: int) -> str:
    return getattr(compression, "name", None) or str(int(compression))
