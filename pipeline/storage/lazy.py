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
        spans = [range(n)[k] for n, k in zip(self.shape, key, strict=True)]
        y, x = (Interval(s.start, s.stop) for s in spans[-2:])
        planes = spans[1] if self.ndim == 4 else range(1)
        stack = [self.image.read(Region(y, x), plane, list(spans[0])) for plane in planes]
        return np.stack(stack, axis=1) if self.ndim == 4 else stack[0]


def as_dask(image: Image, chunk: Index) -> Any:
    """Chunks are whole numbers of the source's own, `chunk`, along y and x."""
    import dask.array as da

    c, z, y, x = _grown(chunk, image.shape[-2:], image.dtype.itemsize)
    chunks = (c, z, y, x) if len(image.shape) == 4 else (c, y, x)
    meta = np.empty((0,) * len(chunks), image.dtype)
    return da.from_array(Window(image), chunks=chunks, name=False, asarray=False, lock=False, meta=meta)


def _grown(chunk: Index, size: tuple[int, ...], itemsize: int) -> Index:
    """As many chunks together as make up CHUNK_BYTES: along x first, as rows of chunks are stored together."""
    c, z, *yx = chunk
    for i in (1, 0):
        room = CHUNK_BYTES // max(1, c * z * itemsize * yx[0] * yx[1])
        wanted = math.isqrt(room) if i else room
        least = -(-size[i] // (MOST * yx[i]))
        yx[i] = min(size[i], yx[i] * max(1, wanted, least))
    return c, z, yx[0], yx[1]
