"""The one place where a tile flows from image to output: read, network, crop, write."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from pipeline import previewing
from pipeline.network.loading import Network
from pipeline.network.program import Program
from pipeline.network.streaming import Stream, program_of
from pipeline.stitching import blending, pyramid
from pipeline.storage.disk import OutputError
from pipeline.storage.image import Image
from pipeline.storage.kept import Kept
from pipeline.storage.output import Output, Record, open_output
from pipeline.storage.reading import Reading
from pipeline.storage.reference import Reference
from pipeline.tiling.geometry import Interval, Region
from pipeline.tiling.grid import Tile
from pipeline.tiling.plan import Plan

Item = tuple[int, int, int]
"""Image number, and the half-open range of its units that one call does; none of them: its preview."""

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

TOLERANCE = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 5e-2, "float16": 5e-3}
"""How far two passes over the same pixels may differ by rounding, as a share of max(1, the largest logit)."""

INTERPRETER = 300_000_000
"""Bytes that a worker's interpreter and libraries take before it does anything; those of one machine share most."""

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Job:
    """What a worker needs to begin: how to open images and network, and where the outputs are. Nothing is open."""

    images: Mapping[int, Reference]
    """By number, as the outputs are; without those that cannot be images."""
    outputs: Sequence[str]
    network: Network | None
    device: str = "cpu"
    program: Program | None = None
    """How the network runs in bands, where the caller knows; a worker in another process finds it by itself."""
    folded: bool = False
    """Whether `program` is folded."""

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"program": None}


def start(job: Job) -> Callable[[Item], list[list[Record]]]:
    """Called once in each worker: sets one torch thread and returns what does the units of an item."""
    torch.set_num_threads(1)
    device = own_device(job.device)

    @lru_cache(maxsize=1)
    def module(precision: str) -> torch.nn.Module | None:
        return None if job.network is None else job.network.to(device, DTYPES[precision])

    @lru_cache(maxsize=1)
    def program(precision: str, channels: int, folded: bool) -> Program:
        network = module(precision)
        assert network is not None and job.network is not None
        dtype, known = DTYPES[precision], job.program
        same = network is job.network.module and folded == job.folded
        if known is not None and same and known.dtype is dtype:
            return known
        return program_of(network, channels, folded=folded, dtype=dtype)

    def begin(number: int) -> Worker:
        output = open_output(job.outputs[number])
        plan = Plan.from_json(output.attributes["plan"])
        bands = None
        if job.network is not None and plan.band:
            channels = job.network.channels or len(plan.image["channels"])
            bands = program(plan.precision, channels, plan.folded)
        image = replace(job.images[number], identity=plan.image["identity"]).reopen()
        model = Model(image, plan, module(plan.precision), device, bands)
        return Worker(output, model)

    workers = Kept(2, begin, Worker.close)

    def run(item: Item) -> list[list[Record]]:
        number, first, last = item
        worker = workers[number]
        try:
            records = [worker.run(unit) for unit in range(first, last)]
        except RuntimeError as error:  # torch has no exception of its own for the CPU's memory
            if "can't allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise
        if first == last or (last == worker.plan.units and worker.plan.tiles == 1):
            worker.draw_preview()
        return records

    return run


def own_device(device: str) -> str:
    """The device of this worker: of several GPUs of the machine, one each; on Ray a worker sees its own alone."""
    number, count = os.environ.get("PIPELINE_WORKER"), torch.cuda.device_count()
    return f"cuda:{int(number) % count}" if device == "cuda" and number is not None and count > 1 else device


class Worker:
    """Does the units of one image, each of which writes whole shards of one output."""

    def __init__(self, output: Output, model: Model) -> None:
        self.output, self.model, self.plan = output, model, model.plan

    def run(self, unit: int) -> list[Record]:
        """Do one unit; the record of each shard that it wrote, in row-major order."""
        level, region = self.plan.region_of(unit)
        if level == 0:
            tile = self.plan.grid.tile(unit)
            data, pixels = self.model.tile(tile)
            if self.plan.network is not None and tile.plane == 0:
                core = image_region(self.plan, tile.core)
                within = Region(core.y.shift(-tile.read.y.start), core.x.shift(-tile.read.x.start))
                previewing.keep_thumbnail(self.output, self.plan, unit, core, pixels[:, *within.slices])
        else:
            data = pyramid.build_shard(
                lambda below: self.output.read(level - 1, below),
                region,
                self.plan.layout.shapes[level - 1],
                how=self.plan.reduction,
            )
        return self.output.write(level, region, data)

    def close(self) -> None:
        self.model.image.close()

    def draw_preview(self) -> None:
        """Draw the finished output's preview; a picture that cannot be written is said, and no reason to fail."""
        try:
            previewing.draw(self.output, self.plan)
        except (OSError, OutputError) as error:
            log.warning("%s is finished, but its preview cannot be written: %s", self.output.path, error)


class Model:
    """A plan's arithmetic: pixels of one read in, the values of one core out."""

    def __init__(
        self,
        image: Image,
        plan: Plan,
        module: torch.nn.Module | None,
        device: str = "cpu",
        program: Program | None = None,
    ) -> None:
        self.image, self.plan, self.module, self.device, self.program = image, plan, module, device, program
        self.dtype = DTYPES[plan.precision]

    def tile(self, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        """(values of the core with the output's axes, pixels that were read)."""
        if self.module is None:
            pixels = self.reading(tile.core, tile.plane).all()
            return self._with_axes(pixels), pixels
        if self.plan.mode == "blend":
            return self._with_axes(encode(self.blended(tile), self.plan)), self.reading(tile.read, tile.plane).all()
        reading = self.reading(tile.read, tile.plane)
        if self.program is None:
            pixels = reading.all()
            return self._with_axes(encode(self.logits(pixels)[:, *tile.crop.slices], self.plan)), pixels
        rows = [encode(logits, self.plan) for logits in self.bands(self.program, reading, tile.crop)]
        return self._with_axes(np.concatenate(rows, axis=-2)), reading.pixels

    def reading(self, read: Region, plane: int) -> Reading:
        """Begins to read the pixels (c, h, w) of a region of the extended image, as stored."""
        return Reading(self.image, read, self.plan.size, plane, self.plan.image["channels"])

    def bands(self, program: Program, reading: Reading, crop: Region) -> Iterator[torch.Tensor]:
        """The logits (k, rows, columns) of the crop of a read, a few rows at a time from the top down."""
        height, width = reading.pixels.shape[-2:]
        bands = (batch(rows, self.dtype, self.device) for rows in reading.bands(self.plan.band))
        made = 0
        for logits in Stream(program, height, width).run(bands):
            rows = crop.y.clip(made, made + logits.shape[2]).shift(-made)
            made += logits.shape[2]
            if rows.size:
                yield plain(logits[0, :, rows.slice, crop.x.slice])

    def logits(self, pixels: np.ndarray) -> torch.Tensor:
        """(k, h', w') logits of one forward pass of the network on (c, h, w) stored values."""
        assert self.module is not None
        return forward(self.module, pixels, self.dtype, self.device)

    def blended(self, tile: Tile) -> torch.Tensor:
        """(k, h, w) weighted average of the logits of all windows that touch the core."""
        assert self.plan.window is not None
        average = blending.blend(
            tile.core,
            self.plan.field.extended(*self.plan.size),
            self.plan.window,
            lambda window: self.logits(self.reading(window, tile.plane).all()).cpu().numpy(),
            alignment=self.plan.field.alignment,
        )
        return torch.from_numpy(average)

    def _with_axes(self, values: np.ndarray) -> np.ndarray:
        """(c, y, x) or (y, x) with the output's own axes."""
        return values[..., None, :, :] if "z" in self.plan.layout.axes else values


@torch.inference_mode()
def forward(module: torch.nn.Module, pixels: np.ndarray, dtype: torch.dtype, device: str) -> torch.Tensor:
    """(k, h', w') logits, float32 or float64, of a module of that dtype on (c, h, w) stored values."""
    return plain(module(batch(pixels, dtype, device))[0])


def batch(pixels: np.ndarray, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Stored values (c, h, w) as a network's input (1, c, h, w)."""
    values = np.ascontiguousarray(pixels, dtype=np.float64 if dtype is torch.float64 else np.float32)
    return torch.from_numpy(values)[None].to(device, dtype)


def plain(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32, or float64 where the network runs in that."""
    return logits if logits.dtype is torch.float64 else logits.float()


def image_region(plan: Plan, core: Region) -> Region:
    """The pixels of the image for which the core's outputs stand."""
    intervals = []
    for rows, rate, size in zip((core.y, core.x), plan.field.rate, plan.size, strict=True):
        intervals.append(Interval(int(rows.start / rate), int(-(-rows.stop // rate))).clip(0, size))
    return Region(*intervals)


def probability(logits: torch.Tensor, activation: str) -> torch.Tensor:
    """Probabilities (k, y, x) of logits; "none" where the network ends in an activation already."""
    if activation == "none":
        return logits
    return torch.softmax(logits, dim=0) if activation == "softmax" else torch.sigmoid(logits)


def mask(logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """(y, x) class of each pixel: the largest logit; of one channel, 1 where it is above the threshold."""
    return logits[0] > threshold if logits.shape[0] == 1 else logits.argmax(dim=0)


def encode(logits: torch.Tensor, plan: Plan) -> np.ndarray:
    """Logits (k, y, x) as the kind and dtype that the output stores."""
    dtype = np.dtype(plan.layout.dtype)
    if plan.kind == "logits":
        return logits.cpu().numpy().astype(dtype, copy=False)
    if plan.kind == "mask":
        return mask(logits, plan.threshold).cpu().numpy().astype(dtype)
    p = probability(logits, plan.activation)
    if dtype == np.uint8:
        p = (p * 255).round_().clamp_(0, 255).nan_to_num_(0)  # uint8 has no NaN, and what a cast makes of one varies
    return p.cpu().numpy().astype(dtype, copy=False)
