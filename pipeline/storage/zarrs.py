"""Zarr arrays (v2 and v3) and OME-Zarr images (0.4 and 0.5)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.storage.axes import Arrangement, given_axes, letters, unnamed_axes
from pipeline.storage.source import ImageReadError, Index, Metadata, native, one_line

log = logging.getLogger("pipeline")

MARKS = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
"""Files of which a folder that is a Zarr array or group holds one."""


def is_zarr(path: Path) -> bool:
    return path.is_dir() and any((path / mark).is_file() for mark in MARKS)


def open_zarr(path: Path, axes: str | None, level: int, channels: int | None, time: int = 0) -> ZarrSource:
    """An array, or a level of an OME-Zarr image. Raises ValueError for what is neither."""
    try:
        node = zarr.open(str(path), mode="r")
        if isinstance(node, zarr.Group):
            node, names, metadata = _of_group(node, path, level)
        else:
            names, metadata = _named(node), Metadata("zarr", "", path.stem)
            if level != 0:
                raise ValueError(f"{path} is one array: it has no level {level}")
    except ValueError:
        raise
    except Exception as error:  # damaged metadata surface in zarr as any of Python's errors
        raise ValueError(f"{path}: not a readable Zarr image: {type(error).__name__}: {one_line(error)}") from error
    return ZarrSource(node, names, metadata, path, axes, channels, time)


def _named(array: Any) -> str | None:
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    if not names or any(n is None for n in names):
        return None
    return letters([str(n) for n in names])


def _of_group(group: Any, path: Path, level: int) -> tuple[Any, str | None, Metadata]:
    """The array of a level, its axes and what its metadata say."""
    attributes = dict(group.attrs)
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        return _without_multiscales(group, path, level, attributes)
    image = multiscales[0]
    paths = [d["path"] for d in image["datasets"]]
    if not 0 <= level < len(paths):
        raise ValueError(f"{path} has levels 0 to {len(paths) - 1}: level {level} is not among them")
    axes = image.get("axes") or list("tczyx")
    names = letters([a["name"] if isinstance(a, dict) else a for a in axes])
    metadata = Metadata("ome-zarr", names, image.get("name") or path.stem)
    return group[paths[level]], names, metadata


def _without_multiscales(group: Any, path: Path, level: int, attributes: dict[str, Any]) -> Any:
    """The only array of a plain group."""
    arrays = sorted(name for name, _ in group.arrays())
    if len(arrays) == 1 and level == 0:
        return group[arrays[0]], _named(group[arrays[0]]), Metadata("zarr", "", path.stem)
    raise ValueError(f"{path} is a Zarr group, not an image: name one within it, of {sorted(group.keys())[:9]}")


class ZarrSource:
    """Chunks of a Zarr array; in shards, the chunks within."""

    def __init__(
        self, array: Any, names: str | None, metadata: Metadata, path: Path, axes: str | None, channels: int | None,
        time: int,
    ) -> None:  # fmt: skip
        self.array, self.metadata, self.path = array, metadata, path
        shape, what = tuple(array.shape), str(path)
        if axes:
            names = given_axes(axes, shape, what)
        elif not names or len(names) != len(shape):
            names = unnamed_axes(shape, channels, what)
        self.dtype = native(np.dtype(array.dtype), what)
        self.arrangement = Arrangement.of(names, shape, time)
        self.shape = self.arrangement.shape4
        self.chunk = self.arrangement.chunk4(array.chunks)
        self.size = 0
        metadata.axes, metadata.volumetric = names, self.shape[1] > 1

    def decode(self, at: Index) -> np.ndarray:
        try:
            pixels = np.asarray(self.array[self.arrangement.slices(at, self.chunk)])
        except Exception as error:  # a decoder of hostile bytes
            raise ImageReadError(
                f"{self.path}: array {self.array.path or '/'}, chunk {at} (c, z, y, x) cannot be read: "
                f"{type(error).__name__}: {one_line(error)}"
            ) from error
        return self.arrangement.to_4d(pixels).astype(self.dtype, copy=False)

    def sample(self, at: Index) -> bytes:
        return np.ascontiguousarray(self.decode(at)).tobytes()

    def close(self) -> None: ...
