"""Draws a large image of procedural stained tissue, with the truth about its nuclei where that is wanted.

    python benchmarks/draw.py big.tif --size 8192 --seed 0 [--label big_label.tif]

RGB, tiled BigTIFF, deflate; written block row by block row, so that memory does not grow with the height.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from tissue import BLOCK, field

from pipeline.tiling.geometry import Region

MICROMETRES = 0.5
"""Side of a pixel that the drawn nuclei would have at 20 x."""


def draw(path: Path, height: int, width: int, seed: int = 0, label_path: Path | None = None) -> None:
    """Writes the image, and its label as uint32: 0 background, else the number of the nucleus."""
    with tifffile.TiffWriter(path, bigtiff=True) as image:
        if label_path is None:
            _write(image, (height, width, 3), np.uint8, (row for row, _ in _rows(height, width, seed)))
            return
        kept = path.with_name(f"{path.name}.label.partial")
        truth = np.memmap(kept, np.uint32, "w+", shape=(height, width))
        try:
            _write(image, (height, width, 3), np.uint8, _keeping(_rows(height, width, seed), truth))
            with tifffile.TiffWriter(label_path, bigtiff=True) as label:
                _write(label, (height, width), np.uint32, (truth[y : y + BLOCK] for y in range(0, height, BLOCK)))
        finally:
            kept.unlink()


def _rows(height: int, width: int, seed: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint32]]]:
    for y in range(0, height, BLOCK):
        yield field(Region.of(y, min(height, y + BLOCK), 0, width), seed)


def _keeping(
    rows: Iterator[tuple[NDArray[np.uint8], NDArray[np.uint32]]], truth: NDArray[np.uint32]
) -> Iterator[NDArray[np.uint8]]:
    y = 0
    for rgb, label in rows:
        truth[y : y + len(label)] = label
        y += len(label)
        yield rgb


def _write(writer: tifffile.TiffWriter, shape: tuple[int, ...], dtype: type, rows: Iterator[NDArray]) -> None:
    tiles = (
        row[y : y + 256, x : x + 256] for row in rows for y in range(0, len(row), 256) for x in range(0, shape[1], 256)
    )
    writer.write(
        tiles,
        shape=shape,
        dtype=dtype,
        tile=(256, 256),
        photometric="rgb" if len(shape) == 3 else "minisblack",
        compression="adobe_deflate",
        compressionargs={"level": 1},
        resolution=(1e4 / MICROMETRES, 1e4 / MICROMETRES),
        resolutionunit="CENTIMETER",
        software="procedural tissue",
        metadata=None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--size", default="8192", help="side, or HEIGHT,WIDTH (default 8192)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label", type=Path, help="also write the label image")
    given = parser.parse_args()
    height, width = (int(n) for n in (given.size.split(",") * 2)[:2])
    draw(given.image, height, width, given.seed, given.label)


if __name__ == "__main__":
    main()
