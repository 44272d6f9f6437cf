"""The picture of a result: the image, and the same with mask and tiles drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.stitching.drawing import (
    RGB,
    Pixels,
    contrast,
    draw_lines,
    faded,
    overlay,
    palette,
    resize,
    to_rgb,
)
from pipeline.tiling.geometry import Interval, Region

SIDE = 768
"""Largest side of the image in the preview."""
SMALL, THIN = 640, 12
"""An image is enlarged to about the first, and no side is drawn thinner than the second."""
MARGIN, GAP, FONT = 20, 16, 17
LEAST_WIDTH = 640
PAPER, INK, FAINT = (18, 20, 24), (236, 238, 240), (150, 156, 164)


def factor(shape: tuple[int, int], side: int = SIDE) -> int:
    """Pixels of the image along each axis of one pixel of the preview."""
    return max(1, -(-max(shape) // side))


def thumbnail(
    pixels: NDArray[Any], region: Region, factor: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """What a region (c, h, w) of the image gives to the preview: (rows, columns, values (c, rows, columns)).

    Pixel i of the preview stands for the rows [i * factor, (i + 1) * factor) of the image and belongs to the region
    that holds the first of them; it is the mean of those that lie in that region. So regions that partition the
    image give each pixel exactly once: `picture[:, rows[:, None], columns] = values`.
    """
    positions = []
    for axis, rows in ((1, region.y), (2, region.x)):
        cells = np.arange(-(-rows.start // factor), -(-rows.stop // factor))
        positions.append(cells)
        if cells.size == 0:
            pixels = pixels[(slice(None),) * axis + (slice(0, 0),)].astype(np.float32)
            continue
        edges = cells * factor - rows.start
        counts = np.diff(np.append(edges, rows.size)).astype(np.float32)
        sums = np.add.reduceat(pixels, edges, axis=axis, dtype=np.float32)
        pixels = sums / counts.reshape([-1 if i == axis else 1 for i in range(3)])
    return positions[0], positions[1], np.asarray(pixels, np.float32)


def compose(
    image: NDArray[Any],
    mask: NDArray[Any] | None,
    *,
    size: tuple[int, int],
    lines: tuple[Sequence[int], Sequence[int]] = ((), ()),
    title: str = "",
    facts: Sequence[str] = (),
    classes: Sequence[str] = (),
    eight_bit: bool = False,
    extent: Region | None = None,
) -> Image.Image:
    """The picture of an image (c, h, w) and the class of each pixel (h', w'), both in any resolution.

    size: of the whole image, in the pixels in which lines (edges of tiles on each axis) and extent (what the mask
    covers; None is all) are given. eight_bit: values 0..255 are shown as they are.
    """
    colours = palette(max(2, len(classes), 0 if mask is None or not mask.size else int(mask.max()) + 1))
    limits = contrast(image, eight_bit)
    height, width = shown = _shown(image.shape[-2:])
    small = to_rgb(image, limits)
    plain = resize(small, shown)
    scale = height / size[0], width / size[1]
    panels = [plain, plain.copy()]
    if mask is not None:
        panels[1] = overlay(resize(faded(small), shown), _placed(mask, extent, size, shown), colours)
    draw_lines(panels[1], lines, scale)
    captions = ["image", "result and tiles" if any(map(len, lines)) else "result"]
    legend = [(name, colours[k]) for k, name in enumerate(classes) if k]
    return _page(panels, captions, title, facts, legend)


def _shown(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width in the picture: a small image is enlarged by a whole number."""
    times = max(1, SMALL // max(shape))
    return max(THIN, shape[0] * times), max(THIN, shape[1] * times)


def _placed(mask: NDArray[Any], extent: Region | None, size: tuple[int, int], shown: tuple[int, int]) -> NDArray[Any]:
    """The mask in the picture's resolution, 0 where the result does not cover the image."""
    if extent is None:
        return resize(mask, shown)
    placed = np.zeros(shown, mask.dtype)
    rows, columns = (
        Interval(round(i.start * n / whole), round(i.stop * n / whole)).clip(0, n)
        for i, n, whole in zip((extent.y, extent.x), shown, size, strict=True)
    )
    if rows.size and columns.size:
        placed[rows.slice, columns.slice] = resize(mask, (rows.size, columns.size))
    return placed


def _page(
    panels: Sequence[Pixels],
    captions: Sequence[str],
    title: str,
    facts: Sequence[str],
    legend: Sequence[tuple[str, RGB]],
) -> Image.Image:
    """Panels side by side (one above the other where they are wide), a caption under each, title and legend on top."""
    large, small = _font(FONT + 5), _font(FONT)
    beside = sum(p.shape[1] for p in panels) <= 2.6 * SIDE or panels[0].shape[1] <= 1.5 * panels[0].shape[0]
    line = round(FONT * 1.6)
    heights = [p.shape[0] for p in panels]
    widths = [max(p.shape[1], round(small.getlength(c))) for p, c in zip(panels, captions, strict=True)]
    if beside:
        inner, below = sum(widths) + GAP * (len(panels) - 1), max(heights) + line
    else:
        inner, below = max(widths), sum(heights) + (line + GAP) * len(panels) - GAP
    inner = max(inner, LEAST_WIDTH)
    rows = _rows([name for name, _ in legend], small, inner)
    top = MARGIN + round((FONT + 5) * 1.5) + (line if facts else 0) + line * len(rows) + GAP // 2
    page = Image.new("RGB", (inner + 2 * MARGIN, top + below + MARGIN // 2), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN), _shortened(title, large, inner), INK, font=large)
    y = MARGIN + round((FONT + 5) * 1.5)
    if facts:
        draw.text((MARGIN, y), _shortened("  ·  ".join(facts), small, inner), FAINT, font=small)
        y += line
    _draw_legend(draw, legend, rows, y, line, small)
    x, y = MARGIN, top
    for panel, caption, width in zip(panels, captions, widths, strict=True):
        page.paste(Image.fromarray(panel), (x, y))
        draw.text((x, y + panel.shape[0] + 5), _shortened(caption, small, inner), FAINT, font=small)
        x, y = (x + width + GAP, y) if beside else (x, y + panel.shape[0] + line + GAP)
    return page


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    legend: Sequence[tuple[str, RGB]],
    rows: Sequence[Sequence[tuple[int, float]]],
    y: int,
    line: int,
    font: Any,
) -> None:
    """A square in the colour of each class and its name, in the rows and at the places that `_rows` found."""
    for row in rows:
        for index, x in row:
            name, colour = legend[index]
            left, top = MARGIN + x, y + 4
            draw.rectangle((left, top, left + FONT - 4, top + FONT - 4), fill=colour)
            draw.text((left + FONT + 2, y), name, INK, font=font)
        y += line


def _rows(names: Sequence[str], font: Any, width: int) -> list[list[tuple[int, float]]]:
    """Index and place of each legend entry, in as many rows as it takes."""
    rows: list[list[tuple[int, float]]] = []
    x = float(width)
    for index, name in enumerate(names):
        needed = FONT + 2 + font.getlength(name) + 1.4 * FONT
        if not rows or x + needed > width:
            rows.append([])
            x = 0.0
        rows[-1].append((index, x))
        x += needed
    return rows


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _shortened(text: str, font: Any, width: int) -> str:
    """The text, cut with an ellipsis where it is too wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
