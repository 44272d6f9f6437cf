"""What a TIFF file says of itself: pixel size, units, channel names, coordinates."""

from __future__ import annotations

from typing import Any

from pipeline.storage.source import Metadata


def describe(file: Any, finest: Any, series: Any) -> Metadata:
    """Metadata of a series at one of its levels."""
    return Metadata(finest.kind or "tiff", series.axes, finest.name)
