"""OME-Zarr 0.5 metadata of an output: the group's `ome` attribute. https://ngff.openmicroscopy.org/0.5/"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.storage.axes import UNITS
from pipeline.tiling.grid import Layout

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Description:
    """What readers of OME-Zarr are told about an output, but for its arrays."""

    name: str = "result"
    scale: tuple[float, ...] | None = None
    """Size of a pixel of level 0, one number an axis, in `unit`."""
    translation: tuple[float, ...] | None = None
    """Centre of the first pixel of level 0, one number an axis, in `unit`."""
    unit: str | None = None
    label: bool = False
    """Whether the values are classes or objects: levels are made by majority, and viewers show colours."""
    channels: Sequence[tuple[str, RGB]] = field(default=())
    """Name and colour of each channel."""
    window: tuple[float, float] | None = None
    """Values that viewers show as black and as full colour; the range of the dtype if not given."""
    classes: Sequence[tuple[int, str, RGB]] = field(default=())
    """Value, name and colour of each class of a label."""

    def attributes(self, layout: Layout) -> dict[str, Any]:
        """The value of the group's `ome` attribute."""
        how = "mode" if self.label else "mean"
        multiscale = {
            "name": self.name,
            "axes": [self._axis(a) for a in layout.axes],
            "datasets": [{"path": str(k), "coordinateTransformations": t} for k, t in enumerate(self._levels(layout))],
            "type": how,
            "metadata": {"method": f"pipeline.stitching.pyramid.reduce: {how} of 2 x 2 pixels"},
        }
        ome: dict[str, Any] = {"version": "0.5", "multiscales": [multiscale]}
        if self.channels:
            low, high = self.window or _range(layout.dtype)
            window = {"start": low, "end": high, "min": low, "max": high}
            ome["omero"] = {"channels": [self._channel(name, rgb, window) for name, rgb in self.channels]}
        if self.label:
            ome["image-label"] = self._label()
        return ome

    def _axis(self, name: str) -> dict[str, str]:
        if name == "c":
            return {"name": "c", "type": "channel"}
        axis = {"name": name, "type": "space"}
        if self.unit and self.unit != "pixel":
            axis["unit"] = UNITS.get(self.unit.lower(), self.unit)
        return axis

    def _levels(self, layout: Layout) -> list[list[dict[str, Any]]]:
        """Scale and translation of each level, whose pixels are means of 2 x 2 pixels of the level below."""
        dimensions = len(layout.axes)
        scale = self.scale or (1.0,) * dimensions
        translation = self.translation or (0.0,) * dimensions
        assert len(scale) == len(translation) == dimensions, "one number an axis"
        levels = []
        for level in range(len(layout.shapes)):
            factors = [2**level if axis in "yx" else 1 for axis in layout.axes]
            sizes = [float(s * f) for s, f in zip(scale, factors, strict=True)]
            centres = [t + s * (f - 1) / 2 for t, s, f in zip(translation, scale, factors, strict=True)]
            transforms: list[dict[str, Any]] = [{"type": "scale", "scale": sizes}]
            if any(centres):
                transforms.append({"type": "translation", "translation": [float(c) for c in centres]})
            levels.append(transforms)
        return levels

    @staticmethod
    def _channel(name: str, rgb: RGB, window: dict[str, float]) -> dict[str, Any]:
        return {"label": name, "color": "{:02X}{:02X}{:02X}".format(*rgb), "active": True, "window": window}

    def _label(self) -> dict[str, Any]:
        classes = self.classes or [(0, "background", (0, 0, 0)), (1, "foreground", (255, 255, 255))]
        colors = [{"label-value": v, "rgba": [*rgb, 255 if v else 0]} for v, _, rgb in classes]
        properties = [{"label-value": v, "name": name} for v, name, _ in classes]
        return {"colors": colors, "properties": properties}


def _range(dtype: str) -> tuple[float, float]:
    import numpy as np

    kind = np.dtype(dtype)
    if kind.kind not in "iu":
        return 0.0, 1.0
    limits = np.iinfo(kind)
    return int(limits.min), int(limits.max)
