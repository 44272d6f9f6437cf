"""A network on a dask array: a task for each chunk of the result, with the same arithmetic as a tile of `predict`.

source chunks --- slices ---.
                             >--- [ assemble the read, extend, network, crop the core ] ---> one chunk of logits
network (once, packed) -----'
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import pairwise, product
from typing import Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
import torch
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from pipeline.analysis import Analysis, one_thread
from pipeline.network.loading import Network
from pipeline.network.prepare import copied_module
from pipeline.planning import check_size, pick_channels
from pipeline.storage.reading import extend_to
from pipeline.tiling.chunks import bounds, cores, parts, split
from pipeline.tiling.geometry import Interval, Region
from pipeline.tiling.grid import Grid, Tile
from pipeline.tiling.plan import check_core
from pipeline.worker import DTYPES, forward

KEPT = 4
"""Unpacked networks that a process keeps, the last ones used."""


def predict_lazy(array: Any, analysis: Analysis) -> Any:
    """Logits (k, y', x') of a dask array (c, y, x), as a dask array; nothing is computed.

    Raises ValueError where the array cannot be tiled for this network.
    """
    options = analysis.options
    check_array(array)
    channels = pick_channels(array, analysis.channels, options, analysis.network.name)
    if channels is not None:
        array = array[channels]
    size = (int(array.shape[1]), int(array.shape[2]))
    check_size(analysis, size)
    field, precision = analysis.field, options.precision or "float32"
    grid = Grid.build(size, field.alignment, field)
    rows, columns = lay(grid, array, analysis)
    network = Packed(cloudpickle.dumps(analysis.network), precision, analysis.device)
    dtype = np.dtype("float64" if precision == "float64" else "float32")
    name = "predict-" + tokenize(
        array.name, analysis.network.identity, precision, analysis.device, repr((grid, rows, columns))
    )
    y, x = ({axis.read_for(c[i]).size for i in (0, len(c) // 2, -1)} for axis, c in ((grid.y, rows), (grid.x, columns)))
    analysis.check_same(size, *product(y, x))
    layer = dict(tasks(name, network, array, grid, rows, columns))
    chunks = ((analysis.classes,), *(tuple(core.size for core in axis) for axis in (rows, columns)))
    graph = HighLevelGraph.from_collections(name, layer, dependencies=[array])
    return da.Array(graph, name, chunks, dtype=dtype, meta=np.empty((0, 0, 0), dtype))


def lay(grid: Grid, array: Any, analysis: Analysis) -> tuple[list[Interval], list[Interval]]:
    """Output rows and columns of the cores: the caller's tile, else the array's own chunks as far as they will do."""
    options, axes = analysis.options, (grid.y, grid.x)
    if options.tile is not None:
        check_core(options.tile, analysis.field.alignment)
        y, x = (
            cores(axis, [*range(0, axis.extended, n), axis.extended])
            for axis, n in zip(axes, options.tile, strict=True)
        )
        return y, x
    found = [bounds(axis, chunks) for axis, chunks in zip(axes, array.chunks[1:], strict=True)]
    if any(merged for _, merged in found):
        halo = " x ".join(str(axis.before + axis.after) for axis in axes)
        least = " x ".join(str(min(chunks)) for chunks in array.chunks[1:])
        warnings.warn(
            f"chunks of {least} pixels are smaller than the network's halo of {halo}: they are taken together; "
            "rechunk the array, or give tile=(y, x), for chunks of your own choice",
            stacklevel=5,
        )
    cuts = [cuts for cuts, _ in found]
    limits = fitting(grid, cuts, array, analysis)
    y, x = (cores(axis, split(c, limit, axis.alignment)) for axis, c, limit in zip(axes, cuts, limits, strict=True))
    return y, x


def fitting(grid: Grid, cuts: Sequence[Sequence[int]], array: Any, analysis: Analysis) -> list[int]:
    """Largest rows and columns of a core: that of the largest chunk, halved until a task fits into memory."""
    options, alignment = analysis.options, analysis.field.alignment
    dtype = np.dtype("float64" if options.precision == "float64" else "float32")
    needs = analysis.needs(array, options, analysis.classes * dtype.itemsize, bands=False)
    core = [max(stop - start for start, stop in pairwise(c)) for c in cuts]
    while (need := needs(Grid.build((grid.y.size, grid.x.size), (core[0], core[1]), analysis.field))) > options.memory:
        halves = [max(a, n // 2 // a * a) for n, a in zip(core, alignment, strict=True)]
        if halves == core:
            raise ValueError(
                f"a memory of {options.memory / 1e6:g} MB is too little for this network: the smallest task needs "
                f"{need / 1e6 + 1:.0f} MB; give memory='{need / 1e6 + 1:.0f}MB' or more"
            )
        larger = 0 if halves[0] != core[0] and (core[0] >= core[1] or halves[1] == core[1]) else 1
        core[larger] = halves[larger]
    return core


def check_array(array: Any) -> None:
    """Raises ValueError for what is no dask array (c, y, x) of numbers with known chunks."""
    if not isinstance(array, da.Array):
        raise ValueError(f"{type(array).__name__} is no dask array; dask.array.from_array(...) makes one of it")
    if array.ndim != 3:
        raise ValueError(
            f"a dask array of {array.ndim} dimensions; (c, y, x) is needed: array[None], or plane by plane"
        )
    if dask.config.get("array.query-planning", False):
        raise ValueError("dask's option array.query-planning is experimental; predict_lazy needs it off")
    if any(np.isnan(n) for n in array.shape):
        raise ValueError(f"a dask array of unknown shape {array.shape}; array.compute_chunk_sizes() finds it out")
    if 0 in array.shape or array.dtype.kind not in "buif":
        raise ValueError(f"a dask array of shape {array.shape} and dtype {array.dtype} is no image")


def tasks(
    name: str, network: Packed, array: Any, grid: Grid, rows: Sequence[Interval], columns: Sequence[Interval]
) -> Iterator[tuple[Any, Any]]:
    """The graph: the network, for each tile what it takes of the source's chunks, and the tile itself."""
    source = "network-" + name
    yield source, network
    for (i, y), (j, x) in product(enumerate(rows), enumerate(columns)):
        tile = grid.window(Region(y, x))
        inside = tile.read.clip(grid.y.size, grid.x.size)
        blocks: list[Any] = []
        for channel in range(array.numblocks[0]):
            blocks.append([])
            for block_y, part_y in parts(inside.y, array.chunks[1]):
                blocks[-1].append([])
                for block_x, part_x in parts(inside.x, array.chunks[2]):
                    key = (f"read-{name}", i, j, channel, block_y, block_x)
                    yield key, (take, (array.name, channel, block_y, block_x), part_y, part_x)
                    blocks[-1][-1].append(key)
        yield (name, 0, i, j), (run_tile, source, tile, blocks)


def take(block: Any, y: slice, x: slice) -> np.ndarray:
    """That part of a chunk (c, y, x): a copy, since a view would keep the chunk in memory, unless it is all of it."""
    part = np.asarray(block)[:, y, x]
    return part if part.shape == np.shape(block) else part.copy()


def run_tile(network: Packed, tile: Tile, blocks: list[Any]) -> np.ndarray:
    """The tile's logits (k, y, x), from the parts of its read, lists of lists of lists (c, y, x)."""
    pixels = extend_to(np.block(blocks), tile.read.shape)
    with one_thread():
        logits = forward(network.module(), pixels, DTYPES[network.precision], network.device)
    return np.ascontiguousarray(logits[:, *tile.crop.slices].cpu().numpy())


_lock = threading.Lock()
_unpacked: OrderedDict[tuple[str, ...], torch.nn.Module] = OrderedDict()
_own = threading.local()


@dataclass(frozen=True)
class Packed:
    """A network as it was when the graph was made: what becomes of the caller's module later changes nothing."""

    pickled: bytes
    precision: str
    device: str

    @cached_property
    def key(self) -> tuple[str, ...]:
        return sha256(self.pickled).hexdigest(), self.precision, self.device

    def module(self) -> torch.nn.Module:
        """The module, unpacked once a process; each thread has one of its own, on the same weights.

        A network may keep what it made for the last image, and threads must not find each other's there.
        """
        kept, module = getattr(_own, "last", (None, None))
        if kept != self.key or module is None:
            with _lock:
                if self.key not in _unpacked:
                    network: Network = cloudpickle.loads(self.pickled)
                    _unpacked[self.key] = network.to(self.device, DTYPES[self.precision])
                _unpacked.move_to_end(self.key)
                while len(_unpacked) > KEPT:
                    _unpacked.popitem(last=False)
                module = copied_module(_unpacked[self.key], share=True)
            _own.last = self.key, module
        return module
