"""An image as a dask array."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.storage.source import Index
from pipeline.tiling.geometry import Interval, Region

if TYPE_CHECKING:
    from pipeline.storage.image import Image

CHUNK_BYTES = 4 << 20
"""Size up to which chunks of the source are taken together."""
MOST = 4096
"""Chunks along an axis, at most, so that absurd images open too."""


class Window:
    """What dask slices: an array-like that reads regions, and can be pickled."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.shape, self.dtype, self.ndim = image.shape, image.dtype, len(image.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        pairs = zip(self.shape, key, strict=True)
        spans = [range(n)[k] if isinstance(k, slice) else range(int(k), int(k) + 1) for n, k in pairs]
        boxes = [Interval(min(s), max(s) + 1) if s else Interval(0, 0) for s in spans]
        planes = range(boxes[1].start, boxes[1].stop) if self.ndim == 4 else range(1)
        region, channels = Region(boxes[-2], boxes[-1]), list(range(boxes[0].start, boxes[0].stop))
        pixels = np.empty([b.size for b in boxes], self.dtype)
        for i, plane in enumerate(planes):
            pixels[(slice(None), i) if self.ndim == 4 else ...] = self.image.read(region, plane, channels)
        steps = [slice(None, None, s.step) for s in spans]
        return pixels[tuple(step if isinstance(k, slice) else 0 for step, k in zip(steps, key, strict=True))]


def as_dask(image: Image, chunk: Index) -> Any:
    """Chunks are whole numbers of the source's own, `chunk`, along y and x."""
    import dask.array as da

    c, z, y, x = _grown(chunk, image.shape[-2:], image.dtype.itemsize)
    chunks = (c, z, y, x) if len(image.shape) == 4 else (c, y, x)
    meta = np.empty((0,) * len(chunks), image.dtype)
    window = Window(image)
    return da.from_array(window, chunks=chunks, name=False, asarray=False, fancy=False, lock=False, meta=meta)


def _grown(chunk: Index, size: tuple[int, ...], itemsize: int) -> Index:
    """As many chunks together as make up CHUNK_BYTES: along x first, as rows of chunks are stored together."""
    c, z, *yx = chunk
    for i in (1, 0):
        room = CHUNK_BYTES // max(1, c * z * itemsize * yx[0] * yx[1])
        wanted = math.isqrt(room) if i else room
        least = -(-size[i] // (MOST * yx[i]))
        yx[i] = min(size[i], yx[i] * max(1, wanted, least))
    return c, z, yx[0], yx[1]
