"""From the axes that a file or array has to (c, z, y, x)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.storage.source import Index

NAMES = {
    "channel": "C", "channels": "C", "band": "C", "bands": "C", "sample": "S", "samples": "S", "rgb": "S",
    "depth": "Z", "plane": "Z", "slice": "Z", "height": "Y", "row": "Y", "rows": "Y", "lat": "Y", "latitude": "Y",
    "northing": "Y", "width": "X", "column": "X", "columns": "X", "col": "X", "lon": "X", "longitude": "X",
    "easting": "X", "time": "T", "frame": "T",
}  # fmt: skip
"""Names of dimensions in Zarr arrays and their letters; a single letter stands for itself."""
UNITS = {
    "µm": "micrometer", "μm": "micrometer", "um": "micrometer", "micron": "micrometer", "microns": "micrometer",
    "\\u00b5m": "micrometer", "nm": "nanometer", "mm": "millimeter", "cm": "centimeter", "m": "meter", "metre": "meter",
    "metres": "meter", "km": "kilometer", "pm": "picometer", "å": "angstrom", "in": "inch", "inch": "inch",
    "ft": "foot",
}  # fmt: skip
"""Other spellings of the units of length that OME-Zarr names."""
UNNAMED = {2: "YX", 3: "CYX", 4: "CZYX"}
"""Axes of an array that has no names."""


def letters(names: Sequence[str]) -> str:
    """One letter an axis; Q for a name that is not known."""
    return "".join(n.upper() if len(n) == 1 else NAMES.get(n.lower(), "Q") for n in names)


def given_axes(axes: str, shape: tuple[int, ...], what: str) -> str:
    """The axes that the caller named, checked against the shape."""
    axes = axes.upper()
    if len(axes) != len(shape):
        raise ValueError(f"axes {axes!r} names {len(axes)} axes, but {what} has shape {shape}: name each one")
    unknown = [a for a in axes if a not in "TCSZYX"]
    if unknown or len(set(axes)) != len(axes) or not {"Y", "X"} <= set(axes):
        raise ValueError(f"axes {axes!r} must be letters of T, C, S, Z, Y, X, each once, with Y and X among them")
    return axes


def unnamed_axes(shape: tuple[int, ...], channels: int | None, what: str) -> str:
    """(y, x), (c, y, x) or (c, z, y, x). Raises ValueError where channels, if known, lie last instead."""
    if len(shape) < 2:
        raise ValueError(f"{what} has shape {shape}: an image has 2 dimensions at least")
    if len(shape) not in UNNAMED:
        raise ValueError(f"{what} has shape {shape}: name its {len(shape)} axes with --axes, for example TCZYX")
    if channels is not None and len(shape) > 2 and shape[0] != channels and shape[-1] == channels:
        last = UNNAMED[len(shape)][1:] + "C"
        raise ValueError(
            f"{what} of shape {shape} is read with its channels first, {shape[0]} of them, but the network takes "
            f"{channels}, as many as the last axis has: say --axes {last}"
        )
    return UNNAMED[len(shape)]


@dataclass(frozen=True)
class Arrangement:
    """How the axes of an array become (c, z, y, x): each of the four from no, one or several of them."""

    axes: str
    shape: tuple[int, ...]
    order: tuple[tuple[int, ...], ...]
    """For c, z, y, x: the array's axes that make it up, outermost first."""
    fixed: dict[int, int]
    """Axes of which one position is taken."""

    @classmethod
    def of(cls, axes: str, shape: tuple[int, ...], time: int = 0, what: str = "the image") -> Arrangement:
        """Y and X as they are; C and S are channels; T is opened at one time; all else is planes.

        Raises ValueError for axes without Y and X, or a size of 0.
        """
        if "Y" not in axes or "X" not in axes or axes.count("Y") > 1 or axes.count("X") > 1:
            raise ValueError(
                f"{what}: unsupported axes {axes!r} of shape {shape}: an image needs Y and X (name them with --axes)"
            )
        if 0 in shape:
            raise ValueError(f"{what} is empty: shape {shape}, axes {axes!r}")
        roles: dict[str, list[int]] = {"C": [], "Z": [], "Y": [], "X": []}
        fixed = {}
        for i, (axis, size) in enumerate(zip(axes, shape, strict=True)):
            if axis == "T":
                if not 0 <= time < size:
                    raise ValueError(f"time {time} is not among the {size} of the image (axes {axes}, shape {shape})")
                fixed[i] = time
            elif axis in "CS":
                roles["C"].append(i)
            else:
                roles[axis if axis in "YX" else "Z"].append(i)
        return cls(axes, shape, tuple(tuple(v) for v in roles.values()), fixed)

    @property
    def notes(self) -> list[str]:
        """What of the array is left out, in words."""
        return [
            f"it has {self.shape[i]} times (axes {self.axes}, shape {self.shape}): time {at} is opened"
            for i, at in self.fixed.items()
            if self.shape[i] > 1
        ]

    @property
    def shape4(self) -> Index:
        c, z, y, x = (math.prod(self.shape[i] for i in role) for role in self.order)
        return c, z, y, x

    def chunk4(self, chunk: Sequence[int]) -> Index:
        """The chunk's size along (c, z, y, x): it extends along the innermost axis of each alone."""
        sizes = []
        for role in self.order:
            if not role:
                sizes.append(1)
                continue
            size = min(chunk[role[-1]], self.shape[role[-1]])
            sizes.append(size if len(role) == 1 else math.gcd(size, self.shape[role[-1]]))
        c, z, y, x = sizes
        return c, z, y, x

    def slices(self, at: Index, chunk: Index) -> tuple[slice, ...]:
        """Where the chunk at that position lies in the array."""
        result = [slice(0, n) for n in self.shape]
        for i, position in self.fixed.items():
            result[i] = slice(position, position + 1)
        for role, number, size in zip(self.order, at, chunk, strict=True):
            for i in reversed(role):
                step = size if i == role[-1] else 1
                number, here = divmod(number, -(-self.shape[i] // step))
                result[i] = slice(here * step, min((here + 1) * step, self.shape[i]))
        return tuple(result)

    def to_4d(self, block: np.ndarray) -> np.ndarray:
        """A block of the array, with all its axes, as (c, z, y, x); a view where numpy can."""
        flat = [i for role in self.order for i in role]
        moved = block.transpose(*self.fixed, *flat)
        sizes = [math.prod(block.shape[i] for i in role) for role in self.order]
        return moved.reshape(sizes)
