"""What every kind of image looks like inside: a grid of chunks over (c, z, y, x), decoded one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pipeline.tiling.geometry import Region

Index = tuple[int, int, int, int]
"""Four integers along (c, z, y, x): a shape, or the position of a chunk in the grid."""

MARKS = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
"""Files of which a folder that is a Zarr array or group holds one."""
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
"""How these files begin."""


class ImageReadError(ValueError):
    """Pixels that cannot be read: the message names file, page and chunk."""


@dataclass
class Metadata:
    """What a file says of itself beside its pixels; sizes and transforms are of the level that was opened."""

    format: str
    axes: str
    """The source's own axes, before they became (c, z, y, x)."""
    name: str = ""
    pixel_size: tuple[float, float] | None = None
    z_step: float | None = None
    unit: str | None = None
    crs: str | None = None
    geotransform: tuple[float, ...] | None = None
    channel_names: list[str] = field(default_factory=list)
    etag: str = ""
    """What an object store says of the version of a file; its content is not read to identify it."""
    keeps: Any = None
    """What lives as long as the image: the folder of a file that was fetched."""
    levels: tuple[tuple[int, ...], ...] = ()
    """Shapes of all levels, finest first, each (c, y, x) or (c, z, y, x); empty for one level."""
    extra: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What of the file is not opened, in words for the user."""
    volumetric: bool = False
    """Whether the image is (c, z, y, x) rather than (c, y, x)."""


class Source(Protocol):
    """Chunks over (c, z, y, x); one thread at a time."""

    shape: Index
    dtype: np.dtype[Any]
    chunk: Index
    metadata: Metadata
    size: int
    """Bytes of the file; 0 where there is none."""

    def decode(self, at: Index) -> np.ndarray:
        """The chunk at that position of the grid, clipped to the image. Raises ImageReadError."""

    def sample(self, at: Index) -> bytes:
        """Bytes that change when the pixels of the chunk do: stored bytes where they are cheap to get."""

    def close(self) -> None: ...


@runtime_checkable
class Direct(Protocol):
    """A source whose regions can be had without decoding, so that nothing is cached."""

    def window(self, channels: Sequence[int], plane: int, region: Region) -> np.ndarray:
        """The pixels (c, h, w), a copy or a view."""


@runtime_checkable
class Streamed(Protocol):
    """A source that can be decoded from top to bottom in less memory than one of its chunks takes."""

    def stream(self, at: Index) -> Iterator[np.ndarray] | None:
        """The chunk in blocks (c, z, h, w) that follow one another downwards; None where it must be decoded whole."""


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def native(dtype: np.dtype[Any], what: str) -> np.dtype[Any]:
    """The dtype in this machine's byte order. Raises ValueError for what is no number, or a wider one than Zarr has."""
    if dtype.kind not in "biufc":
        raise ValueError(f"{what} holds {dtype}, not numbers")
    widest = np.dtype("complex128" if dtype.kind == "c" else "float64")
    if dtype.itemsize > widest.itemsize:
        raise ValueError(f"{what} holds {dtype}, which Zarr cannot store: convert it to {widest}")
    return dtype.newbyteorder("=")
