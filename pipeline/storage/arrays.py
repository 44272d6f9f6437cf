"""NumPy arrays, .npy files and dask arrays as images."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.storage.axes import Arrangement, given_axes, unnamed_axes
from pipeline.storage.location import anywhere
from pipeline.storage.source import ImageReadError, Index, Metadata, native, one_line
from pipeline.tiling.geometry import Region

STRIDE = 512
"""Side of the chunks into which an array without chunks of its own is divided."""


def release(mapping: mmap.mmap) -> None:
    """Gives the pages that were read back to the system, so that they do not count as this process's memory."""
    if hasattr(mmap, "MADV_DONTNEED"):
        with contextlib.suppress(OSError):
            mapping.madvise(mmap.MADV_DONTNEED)


class ArraySource:
    """An array in memory or in a mapped file, read by slicing."""

    def __init__(
        self, array: np.ndarray, axes: str | None, channels: int | None, time: int = 0, *, what: str = "the array",
        metadata: Metadata | None = None, size: int = 0,
    ) -> None:  # fmt: skip
        axes = given_axes(axes, array.shape, what) if axes else unnamed_axes(array.shape, channels, what)
        self.array = array
        self.size = size
        self.dtype = native(array.dtype, what)
        self.arrangement = Arrangement.of(axes, array.shape, time, what)
        self.shape = self.arrangement.shape4
        c, _, y, x = self.shape
        self.chunk: Index = (c, 1, min(y, STRIDE), min(x, STRIDE))
        self.metadata = metadata or Metadata("array", axes)
        self.metadata.axes, self.metadata.volumetric = axes, "Z" in axes
        self.metadata.notes += self.arrangement.notes
        self._view = self.arrangement.to_4d(array[self._fixed()])

    def _fixed(self) -> tuple[slice, ...]:
        fixed = self.arrangement.fixed
        return tuple(slice(fixed[i], fixed[i] + 1) if i in fixed else slice(None) for i in range(self.array.ndim))

    def window(self, channels: Sequence[int], plane: int, region: Region) -> np.ndarray:
        view = self._view[:, plane, region.y.slice, region.x.slice]
        return np.stack([view[c] for c in channels]).astype(self.dtype, copy=False)

    def decode(self, at: Index) -> np.ndarray:
        slices = tuple(slice(i * n, (i + 1) * n) for i, n in zip(at, self.chunk, strict=True))
        return self._view[slices].astype(self.dtype)

    def sample(self, at: Index) -> bytes:
        return np.ascontiguousarray(self.decode(at)).tobytes()

    def content(self) -> str:
        """Hash of all pixels."""
        digest = hashlib.sha256()
        for c in range(self.shape[0]):
            for z in range(self.shape[1]):
                for y in range(0, self.shape[2], STRIDE):
                    digest.update(np.ascontiguousarray(self._view[c, z, y : y + STRIDE].astype(self.dtype)).tobytes())
        return digest.hexdigest()

    def close(self) -> None: ...


class MappedSource(ArraySource):
    """An array in a mapped file; pages are given back after each read, so that memory stays bounded."""

    def window(self, channels: Sequence[int], plane: int, region: Region) -> np.ndarray:
        pixels = super().window(channels, plane, region)
        self._release()
        return pixels

    def decode(self, at: Index) -> np.ndarray:
        pixels = super().decode(at)
        self._release()
        return pixels

    def _release(self) -> None:
        mapping = getattr(self.array, "_mmap", None)
        if mapping is not None:
            release(mapping)


def open_npy(path: Path, axes: str | None, channels: int | None, time: int) -> MappedSource:
    """A .npy file, mapped. Raises ValueError where it holds no plain numbers."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, TypeError) as error:
        raise ValueError(f"{path}: not a readable .npy file: {one_line(error)}") from error
    return MappedSource(
        array, axes, channels, time, what=str(path), metadata=Metadata("npy", "", path.stem), size=path.stat().st_size
    )


def over_anywhere(array: Any) -> Any:
    """A dask array over zarr arrays such that these are read from another working directory too."""
    from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

    layers, moved = getattr(array.dask, "layers", {}), {}
    for name, layer in layers.items():
        part = layer.get(name) if isinstance(layer, MaterializedLayer) else None
        if (there := anywhere(part)) is not part:
            moved[name] = {name: there}
    if not moved:
        return array
    graph = HighLevelGraph({**layers, **moved}, array.dask.dependencies)
    return type(array)(graph, array.name, array.chunks, meta=array._meta)


class DaskSource:
    """A dask array, computed chunk by chunk in the thread that reads."""

    size = 0

    def __init__(self, array: Any, axes: str | None, channels: int | None, time: int) -> None:
        if any(n != n for n in array.shape):
            raise ValueError(f"the dask array has unknown sizes {array.shape}: call compute_chunk_sizes() first")
        axes = given_axes(axes, array.shape, "the array") if axes else unnamed_axes(array.shape, channels, "the array")
        self.array = array
        self.dtype = native(array.dtype, "the array")
        self.arrangement = Arrangement.of(axes, array.shape, time)
        self.shape = self.arrangement.shape4
        self.chunk = self.arrangement.chunk4([max(sizes) for sizes in array.chunks])
        self.metadata = Metadata("array", axes, volumetric="Z" in axes, notes=self.arrangement.notes)

    def decode(self, at: Index) -> np.ndarray:
        block = self.array[self.arrangement.slices(at, self.chunk)]
        try:
            pixels = block.compute(scheduler="synchronous")
        except Exception as error:  # whatever the caller's graph raises
            raise ImageReadError(f"dask array, chunk {at}: {type(error).__name__}: {one_line(error)}") from error
        return self.arrangement.to_4d(np.asarray(pixels)).astype(self.dtype, copy=False)

    def sample(self, at: Index) -> bytes:
        return np.ascontiguousarray(self.decode(at)).tobytes()

    def close(self) -> None: ...
