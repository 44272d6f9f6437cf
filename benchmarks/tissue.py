"""Procedural stained tissue: an endless plane of glands, fibres and nuclei, each pixel a function of (seed, y, x).

The plane is drawn in blocks of BLOCK x BLOCK; whatever region is asked for is cut from those, so that it has the same
bytes however it is cut. Random numbers come from hashes of lattice positions. Colour follows Beer and Lambert: each
stain (haematoxylin, eosin) adds its optical density.
"""

from __future__ import annotations

import numpy as np
from glands import glands
from noise import Canvas, Floats, hashed
from nuclei import draw_nuclei
from numpy.typing import NDArray

from pipeline.tiling.geometry import Region

BLOCK = 512
MARGIN = 2
HAEMATOXYLIN = np.array([0.65, 0.72, 0.29], np.float32)
EOSIN = np.array([0.09, 0.94, 0.30], np.float32)


def field(region: Region, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """RGB (y, x, 3) and label (y, x) of the region; a nucleus has the same number in whatever region it is seen."""
    height, width = region.shape
    rgb = np.empty((height, width, 3), np.uint8)
    label = np.empty((height, width), np.uint32)
    for y in range(region.y.start // BLOCK, -(-region.y.stop // BLOCK)):
        for x in range(region.x.start // BLOCK, -(-region.x.stop // BLOCK)):
            part = Region.of(y * BLOCK, (y + 1) * BLOCK, x * BLOCK, (x + 1) * BLOCK)
            rows, columns = region.y.clip(part.y.start, part.y.stop), region.x.clip(part.x.start, part.x.stop)
            here = rows.shift(-region.y.start).slice, columns.shift(-region.x.start).slice
            there = rows.shift(-part.y.start).slice, columns.shift(-part.x.start).slice
            block_rgb, block_label = block(y, x, seed)
            rgb[here], label[here] = block_rgb[there], block_label[there]
    return rgb, label


def block(row: int, column: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """The block at (row, column) of the plane."""
    size = BLOCK + 2 * MARGIN
    y0, x0 = row * BLOCK - MARGIN, column * BLOCK - MARGIN
    canvas = Canvas(seed, y0, x0, size)
    tissue, lumen = _ground(canvas)
    blue, label = draw_nuclei(canvas)
    cover = np.minimum(1, blue * 1.5)
    pink = (tissue * (1 - 0.75 * cover) + 0.12 * cover).astype(np.float32)
    haze = 0.10 * tissue + 0.22 * lumen
    density = _soften(np.stack([np.maximum(blue, haze), pink]))
    inner = slice(MARGIN, MARGIN + BLOCK)
    return _develop(density[:, inner, inner], seed, row, column), np.ascontiguousarray(label[inner, inner])


def _ground(canvas: Canvas) -> tuple[Floats, Floats]:
    """Density of eosin (fibres, cytoplasm, nothing in lumens and gaps), and where epithelium makes it bluish."""
    flow = canvas.noise(170, 1) * 9 + canvas.noise(40, 2) * 1.6
    strand = np.cos(2 * np.pi * flow, dtype=np.float32)
    fine = np.cos(2 * np.pi * (2.7 * flow + canvas.noise(18, 3)), dtype=np.float32)
    grain = canvas.noise(5, 4)
    loose = canvas.noise(260, 5)
    stroma = 0.29 + 0.075 * strand + 0.045 * fine + 0.22 * (grain - 0.5) + 0.30 * (loose - 0.5)
    gap = np.clip((0.34 - loose - 0.13 * strand) * 6, 0, 1)
    stroma *= 1 - 0.9 * gap
    epithelium = np.zeros_like(stroma)
    for gland in glands(canvas):
        ys, xs, radius = gland.distance(canvas)
        edge = canvas.noise(26, 6)[ys, xs] * 18 - 9
        inside = np.clip((gland.outer + 3 - radius - 0.3 * edge) * 0.5, 0, 1)
        hollow = np.clip((gland.inner - radius + edge) * 0.5, 0, 1)
        body = 0.27 + 0.20 * (grain[ys, xs] - 0.5) + 0.10 * canvas.noise(11, 7)[ys, xs]
        stroma[ys, xs] = stroma[ys, xs] * (1 - inside) + inside * (body * (1 - hollow) + 0.02 * hollow)
        epithelium[ys, xs] = np.maximum(epithelium[ys, xs], inside * (1 - hollow))
    return np.maximum(stroma, 0.015).astype(np.float32), epithelium


def _soften(density: Floats) -> Floats:
    """The microscope's blur: (1, 2, 1) / 4 along each axis; the outermost pixels keep their values."""
    for axis in (1, 2):
        middle = np.moveaxis(density, axis, 0)
        middle[1:-1] = 0.5 * middle[1:-1] + 0.25 * (middle[:-2] + middle[2:])
    return density


def _develop(density: Floats, seed: int, row: int, column: int) -> NDArray[np.uint8]:
    """Densities of the two stains (2, y, x) to RGB (y, x, 3) with the camera's noise."""
    tint = hashed(seed, 90, np.arange(6), np.arange(6)) - 0.5
    stains = np.stack([HAEMATOXYLIN + 0.12 * tint[:3], EOSIN * (0.95 + 0.3 * tint[3])]).astype(np.float32)
    light = np.array([243, 241, 245], np.float32)
    optical = density.reshape(2, -1).T @ stains
    rgb = light * np.exp(-1.45 * optical)
    noise = np.random.Generator(np.random.SFC64([seed, row & 0xFFFFFFFF, column & 0xFFFFFFFF]))
    rgb += noise.standard_normal(rgb.shape, np.float32) * np.float32(2.2)
    return np.clip(rgb + 0.5, 0, 255).astype(np.uint8).reshape(*density.shape[1:], 3)
