"""Compressions of old that only libtiff decodes: a page is decoded whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from pipeline.storage.source import ImageReadError, Index, Metadata, one_line

OJPEG, NEXT, THUNDERSCAN, PIXARLOG, SGILOG, SGILOG24 = 6, 32766, 32809, 32909, 34676, 34677
LARGEST = 1 << 30
"""Bytes of a page or file beyond which it is not decoded whole."""


def is_needed(keyframe: Any) -> bool:
    """Whether the page is of a kind that is left to libtiff."""
    return int(keyframe.compression) in {OJPEG, NEXT, THUNDERSCAN, PIXARLOG, SGILOG, SGILOG24} or (
        keyframe.is_subsampled and int(keyframe.compression) not in {7, 33007, 34892}
    )


def open_page(file: Any, series: Any, metadata: Metadata, path: Path) -> LegacySource:
    """The only page of a series. Raises ValueError for several, or one too large."""
    keyframe = series.keyframe
    name = getattr(keyframe.compression, "name", keyframe.compression)
    if len(series) != 1 or len(keyframe.treeindex) != 1:
        raise ValueError(f"{path}: compression {name} is read in files of one page only")
    if max(keyframe.nbytes * 4, file.filehandle.size) > LARGEST:
        raise ValueError(f"{path}: compression {name} is read in images of less than {LARGEST >> 20} MB only")
    ends = [o + n for o, n in zip(keyframe.dataoffsets, keyframe.databytecounts, strict=False)]
    if not ends or max(ends) > file.filehandle.size:
        raise ValueError(f"{path}: strips lie beyond the end of the file ({file.filehandle.size} bytes)")
    return LegacySource(file, keyframe, metadata, path)


class LegacySource:
    """One page that is one chunk."""

    def __init__(self, file: Any, keyframe: Any, metadata: Metadata, path: Path) -> None:
        self.metadata, self.path = metadata, path
        self.size = file.filehandle.size
        index = keyframe.index
        file.close()
        self._pixels = self._decode(index, subsampled=keyframe.is_subsampled and int(keyframe.compression) != OJPEG)
        c, y, x = self._pixels.shape
        if (y, x) != (keyframe.imagelength, keyframe.imagewidth):
            raise ImageReadError(f"{path}: decodes to {y} x {x} pixels, not to those of its header")
        metadata.volumetric = False
        metadata.levels = ((c, y, x),)
        self.dtype = self._pixels.dtype
        self.shape: Index = (c, 1, y, x)
        self.chunk = self.shape

    def _decode(self, index: int, subsampled: bool) -> np.ndarray:
        try:
            pixels = imagecodecs.tiff_decode(self.path.read_bytes(), index, asrgb=subsampled)
        except Exception as error:  # a decoder of hostile bytes
            raise ImageReadError(f"{self.path}: page {index} cannot be decoded: {one_line(error)}") from error
        if pixels.ndim == 2:
            return pixels[np.newaxis]
        return np.ascontiguousarray(np.moveaxis(pixels[..., :3] if subsampled else pixels, -1, 0))

    def decode(self, at: Index) -> np.ndarray:
        return self._pixels[:, np.newaxis]

    def sample(self, at: Index) -> bytes:
        return self.path.read_bytes()

    def close(self) -> None: ...
