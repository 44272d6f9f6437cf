"""What a TIFF file says of itself: pixel size, units, channel names, coordinates."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree

from pipeline.storage.axes import UNITS
from pipeline.storage.source import Metadata

PRINT_DPI = 600
"""Resolutions in dots per inch up to this are for printers, and say nothing of a specimen."""
LINEAR = {9001: ("meter", 1.0), 9002: ("foot", 1.0), 9003: ("foot", 1.0)}
"""Codes of EPSG for units of length."""


def describe(file: Any, finest: Any, series: Any) -> Metadata:
    """Metadata of a series at one of its levels; what is damaged is left out."""
    meta = Metadata(finest.kind or "tiff", series.axes, finest.name or "")
    page = finest.keyframe
    ratio = _ratio(finest, series)
    for part in (_ome, _imagej, _svs, _shaped, _resolution):
        try:
            part(file, finest, meta)
        except (ValueError, KeyError, TypeError, IndexError, ZeroDivisionError, ElementTree.ParseError, AttributeError):
            continue
        if meta.pixel_size is not None:
            break
    try:
        _geo(page, meta)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        meta.crs = meta.geotransform = None
    if meta.pixel_size is not None:
        y, x = meta.pixel_size
        meta.pixel_size = (y * ratio[0], x * ratio[1])
    if meta.geotransform is not None:
        x0, xx, xy, y0, yx, yy = meta.geotransform
        meta.geotransform = (x0, xx * ratio[1], xy * ratio[0], y0, yx * ratio[1], yy * ratio[0])
    nodata = page.tags.valueof(42113)
    if isinstance(nodata, str):
        meta.extra["nodata"] = nodata.strip("\x00 ")
    return meta


def _ratio(finest: Any, series: Any) -> tuple[float, float]:
    """Pixels of the finest level per pixel of this one, (y, x)."""
    whole, part = finest.keyframe, series.keyframe
    return whole.imagelength / max(1, part.imagelength), whole.imagewidth / max(1, part.imagewidth)


def _set(meta: Metadata, y: float, x: float, unit: str | None) -> None:
    if all(math.isfinite(n) and n > 0 for n in (y, x)):
        meta.pixel_size, meta.unit = (float(y), float(x)), unit


def _unit(name: str | None) -> str | None:
    return UNITS.get(name.strip().lower(), name.strip()) if name and name.strip() else None


def _ome(file: Any, series: Any, meta: Metadata) -> None:
    """OME-XML. https://docs.openmicroscopy.org/ome-model/latest/"""
    if series.kind != "ome" or not file.ome_metadata:
        return
    root = ElementTree.fromstring(file.ome_metadata)
    images = [e for e in root if e.tag.endswith("}Image") or e.tag == "Image"]
    image = images[series._index] if series._index < len(images) else images[0]
    meta.name = image.get("Name") or meta.name
    pixels = next(e for e in image if e.tag.endswith("Pixels"))
    channels = [e for e in pixels if e.tag.rpartition("}")[2] == "Channel"]
    meta.channel_names = [e.get("Name") or "" for e in channels] if any(e.get("Name") for e in channels) else []
    unit = _unit(pixels.get("PhysicalSizeXUnit", "µm"))
    if pixels.get("PhysicalSizeZ"):
        meta.z_step = float(pixels.get("PhysicalSizeZ", "nan"))
    _set(meta, float(pixels.get("PhysicalSizeY", "nan")), float(pixels.get("PhysicalSizeX", "nan")), unit)


def _imagej(file: Any, series: Any, meta: Metadata) -> None:
    """ImageJ keeps the unit in its description and pixels per unit in the resolution tags."""
    described = file.imagej_metadata if series.kind == "imagej" else None
    if not described:
        return
    if described.get("spacing"):
        meta.z_step = float(described["spacing"])
    labels = described.get("Labels")
    if isinstance(labels, list) and len(labels) == described.get("channels"):
        meta.channel_names = [str(label) for label in labels]
    x, y = series.keyframe.get_resolution()
    if described.get("unit") and series.keyframe.tags.get(282) is not None:
        _set(meta, 1 / y, 1 / x, _unit(str(described["unit"])))


def _svs(file: Any, series: Any, meta: Metadata) -> None:
    """Aperio slides: |MPP = 0.2520| in the description, micrometers per pixel."""
    if series.kind != "svs":
        return
    found = re.search(r"\bMPP\s*=\s*([0-9.]+)", series.keyframe.description)
    if found:
        _set(meta, float(found[1]), float(found[1]), "micrometer")


def _shaped(file: Any, series: Any, meta: Metadata) -> None:
    """tifffile's own JSON may name the unit and the distance of planes."""
    described = (file.shaped_metadata or [{}])[0] if series.kind == "shaped" else {}
    if described.get("spacing"):
        meta.z_step = float(described["spacing"])
    if described.get("unit") and series.keyframe.tags.get(282) is not None and series.keyframe.resolutionunit in (0, 1):
        x, y = series.keyframe.get_resolution()
        _set(meta, 1 / y, 1 / x, _unit(str(described["unit"])))


def _resolution(file: Any, series: Any, meta: Metadata) -> None:
    """Baseline tags, where they mean the specimen and not the printer."""
    page = series.keyframe
    if page.tags.get(282) is None or page.resolutionunit not in (2, 3):
        return
    x, y = page.get_resolution()
    if page.resolutionunit == 3 and x > PRINT_DPI / 2.54:
        _set(meta, 1e4 / y, 1e4 / x, "micrometer")
    elif page.resolutionunit == 2 and x > PRINT_DPI:
        _set(meta, 25400 / y, 25400 / x, "micrometer")


def _geo(page: Any, meta: Metadata) -> None:
    """GeoTIFF. https://docs.ogc.org/is/19-008r4/19-008r4.html, sections 7.1 and B.6"""
    keys = page.geotiff_tags or {}
    transform = _geotransform(page, int(keys.get("GTRasterTypeGeoKey", 1)) == 2)
    if transform is None:
        return
    meta.geotransform = transform
    model = int(keys.get("GTModelTypeGeoKey", 0))
    code = int(keys.get("ProjectedCSTypeGeoKey", 32767) if model == 1 else keys.get("GeographicTypeGeoKey", 32767))
    if 0 < code < 32767:
        meta.crs = f"EPSG:{code}"
    else:
        meta.crs = str(keys.get("PCSCitationGeoKey") or keys.get("GTCitationGeoKey") or "") or None
    _, xx, xy, _, yx, yy = transform
    unit = "degree" if model == 2 else LINEAR.get(int(keys.get("ProjLinearUnitsGeoKey", 9001)), (None, 1.0))[0]
    _set(meta, math.hypot(xy, yy), math.hypot(xx, yx), unit)


def _geotransform(page: Any, of_points: bool) -> tuple[float, ...] | None:
    """(x0, dx/dcolumn, dx/drow, y0, dy/dcolumn, dy/drow) of the upper left corner of the first pixel."""
    matrix, scale, tie = (page.tags.valueof(code) for code in (34264, 33550, 33922))
    if matrix is not None and len(matrix) == 16:
        xx, xy, x0, yx, yy, y0 = (float(matrix[i]) for i in (0, 1, 3, 4, 5, 7))
    elif scale is not None and tie is not None and len(tie) >= 6:
        column, row, _, x, y, _ = (float(n) for n in tie[:6])
        xx, xy, yx, yy = float(scale[0]), 0.0, 0.0, -float(scale[1])
        x0, y0 = x - column * xx, y - row * yy
    else:
        return None
    if of_points:  # the point is a pixel's centre
        x0, y0 = x0 - (xx + xy) / 2, y0 - (yx + yy) / 2
    return x0, xx, xy, y0, yx, yy
