"""Zarr arrays (v2 and v3) and OME-Zarr images (0.4 and 0.5)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.storage.axes import Arrangement, given_axes, letters, unnamed_axes
from pipeline.storage.source import MARKS, ImageReadError, Index, Metadata, native, one_line

SMALLEST = 256
"""Chunks of less than this a side are read several at once: each costs a millisecond."""


def is_zarr(path: Path) -> bool:
    return path.is_dir() and any((path / mark).is_file() for mark in MARKS)


def open_zarr(
    path: Path | str, axes: str | None, level: int, channels: int | None, time: int = 0, store: Any = None
) -> ZarrSource:
    """An array, or a level of an OME-Zarr image, at a path or in a store. Raises ValueError for what is neither."""
    path = str(path)
    try:
        node = zarr.open(path if store is None else store, mode="r")
    except Exception as error:  # damaged metadata surface in zarr as any of Python's errors
        raise ValueError(f"{path}: not a readable Zarr image: {type(error).__name__}: {one_line(error)}") from error
    try:
        return _open(node, path, axes, level, channels, time)
    except ValueError:
        raise
    except Exception as error:  # as above
        raise ValueError(f"{path}: not a readable Zarr image: {type(error).__name__}: {one_line(error)}") from error


def open_array(array: Any, axes: str | None, channels: int | None, time: int = 0) -> ZarrSource:
    """A Zarr array from Python, read where it is stored. Raises ValueError for a group."""
    if not isinstance(array, zarr.Array):
        raise ValueError(f"an image is a Zarr array, not {type(array).__name__}: name one within it")
    where = str(array.store_path)
    return ZarrSource(array, axes, _named(array), Metadata("zarr", "", Path(where).stem), where, channels, time)


def _open(node: Any, path: str, axes: str | None, level: int, channels: int | None, time: int) -> ZarrSource:
    if isinstance(node, zarr.Array):
        if level != 0:
            raise ValueError(f"{path} is one array: it has no level {level}")
        return ZarrSource(node, axes, _named(node), Metadata("zarr", "", Path(path).stem), path, channels, time)
    attributes = dict(node.attrs)
    inner = attributes.get("ome", attributes)
    if "multiscales" in inner:
        image = Multiscale(node, inner, path)
        return image.open(axes, level, channels, time)
    if inner.get("bioformats2raw.layout") and "0" in node:
        return _open(node["0"], path, axes, level, channels, time)
    arrays = sorted(name for name, _ in node.arrays())
    if len(arrays) == 1:
        return _open(node[arrays[0]], path, axes, level, channels, time)
    kind = "plate or well" if "plate" in inner or "well" in inner else "group"
    within = sorted(node.keys())[:9]
    what = f"name one within it, of {within}" if within else "it is empty"
    raise ValueError(f"{path} is a Zarr {kind}, not an image: {what}")


def _named(array: Any) -> str | None:
    """Axes by the names of the array's dimensions, if all have one."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    if not names or any(n is None for n in names):
        return None
    found = letters([str(n) for n in names])
    return found if {"Y", "X"} <= set(found) and len(found) == array.ndim else None


class Multiscale:
    """The first image of an OME-Zarr group. https://ngff.openmicroscopy.org/0.5/#multiscale-md"""

    def __init__(self, group: Any, attributes: dict[str, Any], path: str) -> None:
        self.group, self.path = group, path
        if not attributes["multiscales"]:
            raise ValueError(f"{path}: its metadata names no image")
        self.image = attributes["multiscales"][0]
        self.omero = attributes.get("omero") or {}
        self.datasets = self.image["datasets"]
        axes = self.image.get("axes") or list("tczyx")  # 0.1 and 0.2 have no names
        self.axes = [a if isinstance(a, dict) else {"name": a} for a in axes]
        self.letters = "".join(self._letter(a) for a in self.axes)

    @staticmethod
    def _letter(axis: dict[str, Any]) -> str:
        by_type = {"channel": "C", "time": "T"}
        return by_type.get(axis.get("type", ""), letters([axis["name"]]))

    def open(self, axes: str | None, level: int, channels: int | None, time: int) -> ZarrSource:
        if not self.datasets:
            raise ValueError(f"{self.path}: its metadata names no levels")
        if not 0 <= level < len(self.datasets):
            raise ValueError(f"{self.path} has levels 0 to {len(self.datasets) - 1}: level {level} is not among them")
        arrays = [self.group[d["path"]] for d in self.datasets]
        meta = Metadata("ome-zarr", self.letters, self.image.get("name") or Path(self.path).stem)
        self._describe(meta, level)
        source = ZarrSource(arrays[level], axes, self.letters, meta, self.path, channels, time)
        shapes = [Arrangement.of(source.arrangement.axes, tuple(a.shape), time).shape4 for a in arrays]
        meta.levels = tuple(s if meta.volumetric else (s[0], *s[2:]) for s in shapes)
        return source

    def _describe(self, meta: Metadata, level: int) -> None:
        scale = self._scale(level)
        names = [c.get("label") or "" for c in self.omero.get("channels", []) if isinstance(c, dict)]
        meta.channel_names = names if any(names) else []
        if scale is None:
            return
        sizes = dict(zip(self.letters, scale, strict=True))
        units = {letter: a.get("unit") for letter, a in zip(self.letters, self.axes, strict=True)}
        if "Y" in sizes and "X" in sizes and (units.get("X") or (sizes["Y"], sizes["X"]) != (1, 1)):
            meta.pixel_size, meta.unit = (sizes["Y"], sizes["X"]), units.get("X")
            meta.z_step = sizes.get("Z")

    def _scale(self, level: int) -> list[float] | None:
        """Size of a pixel per axis: the scales of the level and of the image, multiplied."""
        result = None
        for owner in (self.datasets[level], self.image):
            for transform in owner.get("coordinateTransformations") or []:
                scale = transform.get("scale")
                if transform.get("type") == "scale" and isinstance(scale, list) and len(scale) == len(self.axes):
                    result = [float(a) * float(b) for a, b in zip(result or [1.0] * len(scale), scale, strict=True)]
        if result and not all(math.isfinite(size) and size > 0 for size in result):
            return None  # damage, which is no size
        return result


class ZarrSource:
    """Chunks of a Zarr array; in shards, the chunks within."""

    size = 0

    def __init__(
        self, array: Any, axes: str | None, named: str | None, metadata: Metadata, path: str,
        channels: int | None = None, time: int = 0,
    ) -> None:  # fmt: skip
        self.array, self.metadata, self.path = array, metadata, path
        shape, what = tuple(array.shape), path
        names = given_axes(axes, shape, what) if axes else named or unnamed_axes(shape, channels, what)
        if len(names) != len(shape):
            raise ValueError(f"{what}: axes {names} do not fit shape {shape}")
        self.dtype = native(np.dtype(array.dtype), what)
        self.arrangement = Arrangement.of(names, shape, time, what)
        self.shape = self.arrangement.shape4
        c, z, y, x = self.arrangement.chunk4(array.chunks)
        self.chunk: Index = (c, z, y * -(-SMALLEST // y), x * -(-SMALLEST // x))
        metadata.axes = names
        metadata.notes += self.arrangement.notes
        metadata.volumetric = self.shape[1] > 1 or (metadata.format == "zarr" and "Z" in names)

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
