"""Pixels into colours: contrast, classes over an image, edges of tiles. Everything is nearest and deterministic."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RGB = tuple[int, int, int]
Pixels = NDArray[np.uint8]
"""Colours (h, w, 3)."""

FIRST_CLASS = (40, 240, 70)
FILL = 0.42
"""How much of a class's colour covers the image; its outline covers it whole."""
LEAST_SPACING = 6
"""Edges of tiles closer than that many pixels of the picture are not drawn."""


def palette(classes: int) -> list[RGB]:
    """A colour for each class: black for class 0, then hues that 21 classes can be told apart by."""
    colours = [(0, 0, 0), FIRST_CLASS]
    for k in range(2, classes):
        hue = (0.69 + 0.43 * (k - 1)) % 1.0
        value, saturation = ((1.0, 1.0), (0.55, 1.0), (1.0, 0.45))[k % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours[:classes]


def contrast(image: NDArray[Any], eight_bit: bool) -> NDArray[np.float64]:
    """(2, c) values that are shown as black and as white: percentiles, of three channels together.

    8-bit images keep 0..255 where they make use of it, and else only their bright end is moved.
    """
    channels = image.shape[0]
    if image.dtype == np.bool_:  # between which there are no percentiles
        image = image.astype(np.uint8)
    groups = image.reshape(1, -1) if channels == 3 else image.reshape(channels, -1)
    limits = np.zeros((2, len(groups)))
    for k, values in enumerate(groups):
        finite = values[np.isfinite(values)]
        low, high = np.percentile(finite, (0.5, 99.7)) if finite.size else (0.0, 1.0)
        if eight_bit:
            low, high = 0.0, 255.0 if high > 128 else max(16.0, float(high))
        limits[:, k] = low, max(high, low + 1e-6 * max(1.0, abs(low)))
    return np.broadcast_to(limits, (2, channels)) if channels == 3 else limits


def to_rgb(image: NDArray[Any], limits: NDArray[np.float64]) -> Pixels:
    """One channel as grey, two as green and magenta, of more the first three as red, green and blue; NaN is black."""
    used = image[:3]
    low, high = (limit[: len(used), None, None] for limit in limits)
    values = np.nan_to_num(np.clip((used - low) / (high - low), 0, 1))
    if len(values) == 1:
        values = np.repeat(values, 3, axis=0)
    elif len(values) == 2:
        values = values[[1, 0, 1]]
    return np.moveaxis(np.asarray(np.round(values * 255), np.uint8), 0, -1)


def faded(image: Pixels) -> Pixels:
    """The image with half of its colour taken out, so that the colours of classes stand out on it."""
    grey = image.mean(axis=2, keepdims=True, dtype=np.float32)
    return np.asarray(np.round(0.5 * image + 0.5 * grey), np.uint8)


def overlay(image: Pixels, mask: NDArray[Any], colours: Sequence[RGB], thickness: int = 1) -> Pixels:
    """The image with each class but 0 tinted in its colour, outlined where another class begins."""
    painted = np.take(np.array(colours, np.uint8), mask, axis=0, mode="clip")
    share = np.where(_edges(mask, thickness), np.uint8(255), np.uint8(round(255 * FILL))) * (mask > 0)
    return np.array(Image.composite(*map(Image.fromarray, (painted, image, share))))


def _edges(mask: NDArray[Any], thickness: int) -> NDArray[np.bool_]:
    """Pixels that see another class within `thickness` pixels above, below, left or right."""
    edges = np.zeros(mask.shape, bool)
    for by in range(1, thickness + 1):
        down, right = mask[by:] != mask[:-by], mask[:, by:] != mask[:, :-by]
        edges[by:] |= down
        edges[:-by] |= down
        edges[:, by:] |= right
        edges[:, :-by] |= right
    return edges


def resize(pixels: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """The nearest pixel for each of another resolution."""
    rows, columns = ((np.arange(n) * 2 + 1) * have // (2 * n) for n, have in zip(shape, pixels.shape[:2], strict=True))
    resized: NDArray[Any] = pixels[:, columns][rows]  # of one axis at a time whole rows are copied
    return resized


def _line_colour(panel: Pixels) -> RGB:
    """Dark on a bright image, bright on a dark one."""
    return (20, 24, 40) if panel.mean() > 110 else (235, 240, 255)


def draw_lines(panel: Pixels, lines: tuple[Sequence[int], Sequence[int]], scale: tuple[float, float]) -> None:
    """Edges of tiles, half transparent; those of an axis on which they would cover the picture are left out."""
    colour = np.array(_line_colour(panel), np.float32)
    for axis, edges in enumerate(lines):
        n = panel.shape[axis]
        at = sorted({round(edge * scale[axis]) for edge in edges} - {0, n})
        if not at or min(np.diff([0, *at]), default=n) < LEAST_SPACING:
            continue
        place = (np.array([p for p in at if p < n], np.intp), slice(None))
        index = place if axis == 0 else place[::-1]
        panel[index] = np.round(panel[index] * 0.45 + colour * 0.55).astype(np.uint8)
