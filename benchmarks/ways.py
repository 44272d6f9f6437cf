"""Ways to run one network over one image, for benchmarks/execution.py; each run is a process of its own.

    python -m benchmarks.ways FOLDER NETWORK WAY SIDE

reads FOLDER/image.npy (1, c, y, x), writes FOLDER/NETWORK.npy where the way is the whole image's forward pass, and
prints the seconds it took and, where that is there, its greatest difference to it, as a share of the largest logit.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.subjects import CHANNELS, CLASSES, analysed, network
from pipeline.analysis import Analysis
from pipeline.network.streaming import Stream
from pipeline.tiling.geometry import ReceptiveField
from pipeline.tiling.grid import Grid, Tile

WARM = 512
"""Side of the image that each way runs on before it is timed: libraries start their threads and choose kernels."""
WINDOW = 512
TILE = 1024
"""Side of the tiles of those ways that are not tried with several."""
PATIENCE = 600
"""Seconds after which a process that is waited for is thought to have failed."""

Run = Callable[[Tensor], Tensor]


def whole(net: nn.Module, field: ReceptiveField) -> Run:
    return net


def folded(net: nn.Module, field: ReceptiveField) -> Run:
    """Batch norm folded into the convolutions before it, channels last."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: dict[nn.Module, nn.Conv2d] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            made[id(output)] = module, output
        elif isinstance(module, nn.BatchNorm2d):
            pairs[module] = made[id(inputs[0])][0]

    leaves = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    hooks = [module.register_forward_hook(note) for module in leaves]
    with torch.inference_mode():
        net(torch.zeros(1, CHANNELS, *(2 * a for a in field.alignment)))
    for hook in hooks:
        hook.remove()
    for norm, convolution in pairs.items():
        fused = fuse_conv_bn_eval(convolution, norm)
        convolution.weight, convolution.bias = fused.weight, fused.bias
    for module in list(net.modules()):
        for name, child in module.named_children():
            if child in pairs:
                setattr(module, name, nn.Identity())
    net.to(memory_format=torch.channels_last)
    return lambda image: net(image.contiguous(memory_format=torch.channels_last))


def blank(image: Tensor) -> Tensor:
    return torch.empty(1, CLASSES, *image.shape[2:])


def tiles(net: nn.Module, field: ReceptiveField, core: int) -> Run:
    """Cores of that side, each read with the halo that makes it exact."""

    def run(image: Tensor) -> Tensor:
        grid = Grid.build((image.shape[2], image.shape[3]), (core, core), field)
        result = blank(image)
        for tile in map(grid.tile, range(len(grid))):
            result[:, :, *tile.core.slices] = net(image[:, :, *tile.read.slices])[:, :, *tile.crop.slices]
        return result

    return run


def monai(net: nn.Module, field: ReceptiveField) -> Run:
    infer = importlib.import_module("monai.inferers").sliding_window_inference
    return lambda image: infer(image, WINDOW, 1, net, overlap=0.25, mode="gaussian")


def halo(field: ReceptiveField) -> int:
    """Rows and columns on each side that make a tile exact: a multiple of the alignment."""
    need = max(*field.halo_of(0), *field.halo_of(1))
    return -(-need // max(field.alignment)) * max(field.alignment)


def tiler(net: nn.Module, field: ReceptiveField) -> Run:
    """The library tiler: overlapping tiles, of which the inner parts are kept; the image reflected around itself."""
    package = importlib.import_module("tiler")
    around = halo(field)

    def run(image: Tensor) -> Tensor:
        pixels = np.pad(image[0].numpy(), ((0, 0), (around, around), (around, around)), mode="reflect")
        side = min(TILE, image.shape[-1]) + 2 * around
        cut = package.Tiler(pixels.shape, (CHANNELS, side, side), overlap=(0, 2 * around, 2 * around),
                            channel_dimension=0, mode="reflect")  # fmt: skip
        laid = package.Tiler((CLASSES, *pixels.shape[1:]), (CLASSES, side, side),
                             overlap=(0, 2 * around, 2 * around), channel_dimension=0)  # fmt: skip
        merger = package.Merger(laid, window="overlap-tile")
        for number, tile in cut(pixels):
            merger.add(number, net(torch.from_numpy(tile)[None])[0].numpy())
        merged = merger.merge(unpad=True, dtype=np.float32)
        return torch.from_numpy(merged[None, :, around:-around, around:-around])

    return run


def dask(net: nn.Module, field: ReceptiveField) -> Run:
    """dask's map_overlap with a halo that makes it exact, a thread for each core."""
    da = importlib.import_module("dask.array")
    around = halo(field)

    def block(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return net(torch.from_numpy(np.ascontiguousarray(pixels))[None])[0].numpy()

    def run(image: Tensor) -> Tensor:
        array = da.from_array(image[0].numpy(), chunks=(-1, TILE, TILE))
        result = array.map_overlap(
            block, depth={0: 0, 1: around, 2: around}, boundary="none", dtype=np.float32,
            chunks=((CLASSES,), *da.overlap.overlap(array, {1: around, 2: around}, "none").chunks[1:]),
            meta=np.empty((0, 0, 0), np.float32),
        )  # fmt: skip
        return torch.from_numpy(result.compute(scheduler="threads", num_workers=2)[None])

    return run


def streamed(analysis: Analysis, image: Tensor, tile: Tile, result: Tensor) -> None:
    """Writes the core of a tile, which is run in bands of rows."""
    assert analysis.program is not None
    read = image[:, :, *tile.read.slices]
    made = 0
    for rows in Stream(analysis.program, *tile.read.shape).run(read.split(analysis.band(read.shape[3]), dim=2)):
        kept = tile.crop.y.clip(made, made + rows.shape[2])
        top = tile.core.y.start + kept.start - tile.crop.y.start
        result[:, :, top : top + kept.size, tile.core.x.slice] = rows[:, :, kept.shift(-made).slice, tile.crop.x.slice]
        made += rows.shape[2]


def grid_of(image: Tensor, field: ReceptiveField, parts: int) -> Grid:
    """The image cut into parts of all its columns."""
    size = image.shape[2], image.shape[3]
    return Grid.build(size, field.extended(-(-size[0] // parts), size[1]), field)


def bands(net: nn.Module, field: ReceptiveField) -> Run:
    analysis = analysed(net)

    def run(image: Tensor) -> Tensor:
        result = blank(image)
        streamed(analysis, image, grid_of(image, field, 1).tile(0), result)
        return result

    return run


@dataclass(frozen=True)
class Way:
    """How to run a network: with so many torch threads, of which the table has these words."""

    label: str
    build: Callable[[nn.Module, ReceptiveField], Run]
    threads: int = 2
    every_round: bool = True
    """Whether a bar or a ratio depends on it; the others are run once."""
    exact: bool = True


WAYS = {
    "whole": Way("(1) whole image, eager", whole),
    "folded": Way("(2) the same, batch norm folded, channels_last", folded),
    "tiles512": Way("(3) exact halo tiles of 512", partial(tiles, core=512), every_round=False),
    "tiles1024": Way("(3) exact halo tiles of 1024", partial(tiles, core=1024), every_round=False),
    "monai": Way("(4) MONAI sliding window 512, overlap 0.25, gaussian", monai, exact=False),
    "tiler": Way("(5) tiler, tiles of 1024 with halo", tiler, every_round=False, exact=False),
    "dask": Way("(6) dask map_overlap, chunks of 1024, two threads", dask, 1, every_round=False),
    "bands": Way("(7) bands, one process of two threads", bands),
    "halves": Way("(7) bands, two processes of one thread, half of the rows each", bands, 1),
    "single": Way("(7) bands, one process of one thread", bands, 1),
}


def half(folder: Path, name: str, side: int, number: int, barrier: Any) -> None:
    """What one of the two processes of the way "halves" does between the first and the second barrier."""
    image, (net, field) = opened(folder, side), network(name)
    analysis = analysed(net)
    result = torch.from_numpy(np.load(folder / "halves.npy", mmap_mode="r+"))
    torch.set_num_threads(1)
    with torch.inference_mode():
        warm = image[..., :WARM, :WARM]
        streamed(analysis, warm, grid_of(warm, field, 1).tile(0), blank(warm))
        barrier.wait()
        streamed(analysis, image, grid_of(image, field, 2).tile(number), result)
        barrier.wait()


def two_processes(folder: Path, name: str, side: int) -> tuple[float, Tensor]:
    """(seconds, result) of both halves."""
    context = get_context("spawn")
    barrier = context.Barrier(3)
    result = np.lib.format.open_memmap(folder / "halves.npy", "w+", np.float32, (1, CLASSES, side, side))
    workers = [context.Process(target=half, args=(folder, name, side, n, barrier), daemon=True) for n in range(2)]
    for worker in workers:
        worker.start()
    barrier.wait(PATIENCE)
    began = time.perf_counter()
    barrier.wait(PATIENCE)
    seconds = time.perf_counter() - began
    for worker in workers:
        worker.join()
    return seconds, torch.from_numpy(result)


def opened(folder: Path, side: int) -> Tensor:
    """The image, or its upper left part of that side."""
    image = torch.from_numpy(np.load(folder / "image.npy", mmap_mode="c"))
    return image[..., :side, :side].contiguous()


def one_process(folder: Path, name: str, way: Way, side: int) -> tuple[float, Tensor]:
    """(seconds, result) of a way, after a warm-up."""
    image = opened(folder, side)
    run = way.build(*network(name))
    torch.set_num_threads(way.threads)
    with torch.inference_mode():
        run(image[..., :WARM, :WARM].contiguous())
        began = time.perf_counter()
        result = run(image)
        return time.perf_counter() - began, result


def main(folder: Path, name: str, way: str, side: int) -> None:
    run = two_processes if way == "halves" else partial(one_process, way=WAYS[way])
    seconds, result = run(folder, name, side=side)
    expected = folder / f"{name}.npy"
    if way == "whole":
        np.save(expected, result.numpy())
    error = None
    if expected.exists():
        truth = torch.from_numpy(np.load(expected, mmap_mode="c"))
        error = float((result - truth).abs().max()) / float(truth.abs().max())
    print(json.dumps({"seconds": seconds, "error": error}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
