"""Memory of one run on an image that is made as it is asked for, and never stored; for benchmarks/execution.py.

python -m benchmarks.tall stream|predict ROWS WIDTH FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import torch
from torch import Tensor, nn

import pipeline
from benchmarks.subjects import CHANNELS, analysed, network
from pipeline.network.streaming import Stream, needs
from pipeline.network.unet import UNet

BLOCK = 512
"""Side of the blocks of the dask array."""
MEMORY = "500MB"


def status(name: str) -> int:
    """Bytes of one line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def noise(rows: int, columns: int, *seed: int) -> np.ndarray:
    """(c, y, x) of uint8."""
    return np.random.default_rng(seed).integers(0, 256, (CHANNELS, rows, columns), np.uint8)


class Streamed:
    """All columns at once, in bands of rows, without the rest of the package."""

    run = "stream, all columns"

    def __init__(self, net: nn.Module) -> None:
        self.analysis = analysed(net)

    def __call__(self, rows: int, width: int, folder: Path) -> int:
        program, band = self.analysis.program, self.analysis.band(width)
        assert program is not None

        def bands() -> Iterator[Tensor]:
            for top in range(0, rows, band):
                yield torch.from_numpy(noise(min(band, rows - top), width, top))[None].float() / 255

        made = sum(logits.shape[2] for logits in Stream(program, rows, width).run(bands()))
        assert made == rows
        return sum(needs(program, rows, width, band))


class Predicted:
    """`pipeline.predict` in this process, from a dask array to a mask on disk."""

    run = "predict"

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, rows: int, width: int, folder: Path) -> int:
        blocks = [tuple(min(BLOCK, n - at) for at in range(0, n, BLOCK)) for n in (rows, width)]
        image = da.map_blocks(block, chunks=((CHANNELS,), *blocks), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
        output = folder / f"{rows}.zarr"
        return int(pipeline.predict(image, self.net, output, workers=1, memory=MEMORY, overwrite=True).plan.memory)


def block(block_info: Any = None) -> np.ndarray:
    (_, *shape), (_, *place) = block_info[None]["chunk-shape"], block_info[None]["chunk-location"]
    return noise(*shape, *place)


def main(way: str, rows: int, width: int, folder: Path) -> None:
    torch.set_num_threads(1)
    kind: Any = {"stream": Streamed, "predict": Predicted}[way]
    kind(UNet(2, 4, channels=CHANNELS).eval())(256, 256, folder)  # loads what is imported late
    loaded = status("VmRSS")
    run, began = kind(network("unet")[0]), time.perf_counter()
    prepared = status("VmHWM") - loaded
    found = {"run": kind.run, "prepared": prepared, "counted": run(rows, width, folder)}
    print(json.dumps({**found, "peak": status("VmHWM") - loaded, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
