"""Images of any format as one thing: (c, y, x) or (c, z, y, x), read region by region in bounded memory."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.storage import scratch
from pipeline.storage.arrays import over_anywhere
from pipeline.storage.cache import ChunkCache
from pipeline.storage.location import anywhere, is_url, local_path
from pipeline.storage.opening import Version, identity, open_source, version
from pipeline.storage.source import Direct, ImageReadError, Index, Metadata, Source
from pipeline.tiling.geometry import Interval, Region

__all__ = ["Image", "ImageReadError", "open_image"]

log = logging.getLogger("pipeline")

CACHE_BYTES = 64 << 20
"""Decoded chunks that an image remembers: a row of tiles of 2048 rows, 8192 RGB pixels wide."""
HALO_PART = 16
"""A halo is taken to be no more than this part of a read: only what tiles to come share is kept with care."""


def open_image(
    source: Any,
    *,
    axes: str | None = None,
    level: int = 0,
    channels: int | None = None,
    time: int = 0,
    labels: bool = False,
) -> Image:
    """Open an image, reading only its metadata: a path or URL, or a NumPy, dask or Zarr array.

    `axes` names the source's axes where its metadata do not or are wrong, for instance "YXC"; `level` picks a
    resolution, 0 the finest; `time` the time where there are several. `channels`, what the network takes, serves
    to tell an array with its channels last; `labels`: its pixels are numbers, not colours, which matters for PNG that
    has a palette or fewer than 8 bits. Raises ValueError for what is no image that can be read,
    FileNotFoundError for a missing file.
    """
    if isinstance(source, Image):
        return source
    source, options = asked_for(source, axes, level, channels, time)
    image = Image(source, options | {"labels": labels})
    image.warn()
    return image


def asked_for(source: Any, axes: str | None, level: int, channels: int | None, time: int) -> tuple[Any, dict[str, Any]]:
    """The source such that it means the same in another working directory, and the options of an Image."""
    if isinstance(source, str | os.PathLike):
        source = local_path(source)
        source = source if is_url(source) else os.path.abspath(source)
    else:
        source = over_anywhere(source) if hasattr(source, "dask") else anywhere(source)
    return source, {"axes": axes.upper() if axes else None, "level": level, "channels": channels, "time": time}


class Image:
    """An image that is read region by region; it can be pickled, and opens itself anew elsewhere."""

    def __init__(self, source: Any, options: dict[str, Any]) -> None:
        self._source_given, self._options = source, options
        self.version = version(source)
        self._original: Source = open_source(source, **options)
        self._source = self._original
        self._scratch: scratch.Scratch | None = None
        self._copy: scratch.Copy | None = None
        self._cache = ChunkCache(CACHE_BYTES)
        self._lock = threading.RLock()
        self._identity: str | None = None
        self.level: int = options["level"]

    def warn(self) -> None:
        """Says what of the source is not opened."""
        for note in self._meta.notes:
            log.warning("%s: %s", self._source_given if isinstance(self._source_given, str) else "the array", note)

    # What it is

    @property
    def given(self) -> tuple[Any, dict[str, Any], str | None]:
        """Source, options and, where it is known already, identity: what another Image of the same is made from."""
        return self._source_given, self._options, self._identity

    @property
    def shape(self) -> tuple[int, ...]:
        """(c, y, x), or (c, z, y, x)."""
        c, z, y, x = self._source.shape
        return (c, z, y, x) if self._meta.volumetric else (c, y, x)

    @property
    def _meta(self) -> Metadata:
        return self._original.metadata

    @property
    def dtype(self) -> np.dtype[Any]:
        """In this machine's byte order."""
        return self._source.dtype

    @property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of all resolutions of the source, finest first."""
        return self._meta.levels or (self.shape,)

    @property
    def pixel_size(self) -> tuple[float, float] | None:
        """(y, x) of a pixel of this level, in `unit`."""
        return self._meta.pixel_size

    @property
    def unit(self) -> str | None:
        return self._meta.unit

    @property
    def crs(self) -> str | None:
        """Coordinate reference system, for example "EPSG:32631"."""
        return self._meta.crs

    @property
    def geotransform(self) -> tuple[float, ...] | None:
        """Six numbers for this level in GDAL's order: x0, dx/dcolumn, dx/drow, y0, dy/dcolumn, dy/drow."""
        return self._meta.geotransform

    @property
    def chunk(self) -> tuple[int, int]:
        """(y, x) of what is decoded at once: a tile or strip of the source, or a chunk of its copy in scratch."""
        return self._chunk_shape[2], self._chunk_shape[3]

    @property
    def _chunk_shape(self) -> Index:
        return scratch.chunk_of(self._original) if self.needs_copy else self._source.chunk

    @property
    def cache_bytes(self) -> int:
        """Most that is kept of decoded chunks."""
        return self._cache.limit

    @cache_bytes.setter
    def cache_bytes(self, limit: int) -> None:
        with self._lock:
            self._cache.resize(limit)

    @property
    def metadata(self) -> dict[str, Any]:
        """What is kept for the attributes of an output; plain JSON."""
        meta = self._meta
        return {
            "name": meta.name,
            "format": meta.format,
            "axes": meta.axes,
            "shape": list(self.shape),
            "dtype": self.dtype.name,
            "level": self.level,
            "pixel_size": list(meta.pixel_size) if meta.pixel_size else None,
            "z_step": meta.z_step,
            "unit": meta.unit,
            "crs": meta.crs,
            "geotransform": list(meta.geotransform) if meta.geotransform else None,
            "channel_names": meta.channel_names,
            **meta.extra,
        }

    # Reading

    def read(self, region: Region, plane: int = 0, channels: Sequence[int] | None = None) -> np.ndarray:
        """The pixels (c, h, w) of a region within the image, in the stored dtype.

        Raises ImageReadError, which names file, page and chunk, where they cannot be decoded.
        """
        out = np.empty((len(self._picked(channels)), *region.shape), self.dtype)
        for _ in self.fill(out, region, plane, channels):
            pass
        return out

    def fill(
        self, out: np.ndarray, region: Region, plane: int = 0, channels: Sequence[int] | None = None
    ) -> Iterator[int]:
        """Writes what `read` gives into `out` (c, h, w), a row of chunks at a time; yields how many rows are there."""
        picked, (_, planes, height, width) = self._picked(channels), self._source.shape
        if region.clip(height, width) != region or not 0 <= plane < planes:
            raise ValueError(f"{region}, plane {plane} is not within an image of {self.shape}")
        with self._lock:
            source = self.prepare()
        top, bottom, step = region.y.start, region.y.stop, source.chunk[2]
        for start in range(top // step * step, bottom, step):
            rows = region.y.clip(start, start + step)
            part = out[:, rows.start - top : rows.stop - top]
            with self._lock:
                if isinstance(source, Direct):
                    part[:] = source.window(picked, plane, Region(rows, region.x))
                else:
                    self._gather(part, source, picked, plane, Region(rows, region.x), region.y)
            yield rows.stop - top

    def _picked(self, channels: Sequence[int] | None) -> list[int]:
        """The channels, all of them for None. Raises ValueError for one that the image does not have."""
        count = self._source.shape[0]
        picked = list(range(count)) if channels is None else [int(c) for c in channels]
        if any(not 0 <= c < count for c in picked):
            raise ValueError(f"channels {picked} are not within an image of {self.shape}")
        return picked

    @property
    def needs_copy(self) -> bool:
        """Whether every read would decode far more than it needs, as long as there is no copy in scratch."""
        return self._copy is None and scratch.is_needed(self._original, self.cache_bytes)

    @property
    def decoding(self) -> int:
        """Bytes that a read takes beside its pixels and the cache: of the chunk that is being decoded."""
        if isinstance(self._original, Direct):
            return 0
        return scratch.DECODING * scratch.chunk_bytes(self._original, self._chunk_shape)

    def prepare(self) -> Source:
        """Copies the image to scratch where it needs that."""
        with self._lock:
            if self.needs_copy:
                self._source = self._copied().open()
            return self._source

    def _copied(self) -> scratch.Copy:
        """The copy in scratch, made if it is not there yet."""
        if self._copy is None:
            self._scratch = self.copy_to(scratch.place())
            self._copy = scratch.Copy(self._scratch.path, replace(self._meta, keeps=None))
        return self._copy

    def copy_to(self, place: Path) -> scratch.Scratch:
        """A copy in scratch for others to read, which is the caller's to remove."""
        return scratch.copy(self._original, self._meta.name or "the image", place)

    def _gather(
        self, out: np.ndarray, source: Source, picked: list[int], plane: int, region: Region, read: Interval
    ) -> None:
        """Copies the region out of the one row of chunks that it touches; `read` are the rows that it is part of."""
        n_c, n_z, n_y, n_x = source.chunk
        groups: dict[int, list[tuple[int, int]]] = {}
        for i, c in enumerate(picked):
            groups.setdefault(c // n_c, []).append((i, c % n_c))
        columns, y = region.x, region.y.start // n_y
        z, within = divmod(plane, n_z)
        from_y = region.y.shift(-y * n_y).slice
        for x in range(columns.start // n_x, -(-columns.stop // n_x)):
            to_x, from_x = _overlap(columns.start, columns.stop, x * n_x, n_x)
            for group, members in groups.items():
                chunk = self._chunk(source, (group, z, y, x))
                for i, c in members:
                    out[i, :, to_x] = chunk[c, within, from_y, from_x]
                if _is_spent(read, y * n_y, n_y) and _is_spent(columns, x * n_x, n_x):
                    self._cache.spend((group, z, y, x))

    def _chunk(self, source: Source, at: Index) -> np.ndarray:
        chunk = self._cache.get(at)
        if chunk is None:
            chunk = source.decode(at)
            self._cache.put(at, chunk)
        return chunk

    @property
    def dask(self) -> Any:
        """The image as a lazy dask array, (c, y, x) or (c, z, y, x), its chunks whole numbers of the source's own."""
        from pipeline.storage.lazy import as_dask

        return as_dask(self, self._chunk_shape)

    # Identity, and opening anew

    def identity(self) -> str:
        """ "sha256:..." of size, shape, dtype and 64 chunks, the same wherever the file lies; of all of an array."""
        if self._identity is None:
            with self._lock:
                self._identity = "sha256:" + identity(self._original)
        return self._identity

    def is_same(self) -> bool:
        """Whether what lies here is what was identified where this image was opened first."""
        if self._identity is None or isinstance(self._source_given, scratch.Copy):
            return True
        with self._lock:
            return self._identity == "sha256:" + identity(self._original)

    def is_replaced(self, then: Version | None) -> bool:
        """Whether another file lies here than `then`, or than was identified at a URL, as far as that is told at once.

        Nothing tells it on another machine, where the same image may be a copy of another time.
        """
        if self._meta.etag:
            return not self.is_same()
        now = self.version
        return then is not None and now is not None and then[0] == now[0] and then != now

    def __reduce__(self) -> tuple[Any, ...]:
        """Opens itself anew elsewhere: from its copy, if there is one, which this process keeps and removes."""
        with self._lock:
            self.prepare()
            if scratch.is_heavy(self._original):
                self._copied()
            source = self._source_given
            if self._copy is not None:
                self.identity()  # which cannot be told from the copy
                source = self._copy
            return reopen, (source, self._options, self._identity, self.cache_bytes)

    def close(self) -> None:
        """Closes files and forgets chunks."""
        with self._lock:
            self._cache.clear()
            self._source.close()
            self._original.close()
            for folder in (self._scratch, self._meta.keeps):
                if folder is not None:
                    folder.remove()

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Image {self._meta.name!r} {self.shape} {self.dtype}>"


def reopen(source: Any, options: dict[str, Any], identity: str | None, cache_bytes: int) -> Image:
    """An image that was opened or asked for elsewhere. Raises as `open_image` does."""
    image = Image(source, options)
    image._identity = identity
    image.cache_bytes = cache_bytes
    return image


def _overlap(start: int, stop: int, origin: int, size: int) -> tuple[slice, slice]:
    """Where a chunk's part of [start, stop) lies in the result, and in the chunk."""
    low, high = max(start, origin), min(stop, origin + size)
    return slice(low - start, high - start), slice(low - origin, high - origin)


def _is_spent(read: Interval, origin: int, size: int) -> bool:
    """Whether the next read along the axis, which begins two halos before this one ends, is beyond the chunk."""
    return origin + size <= read.stop - 2 * (read.size // HALO_PART)
