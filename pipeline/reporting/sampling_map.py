"""Where a run's samples lay: how often each part of a training image was drawn, over a small picture of it."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.stitching.drawing import Pixels, contrast, faded, resize, to_rgb
from pipeline.storage.image import open_image
from pipeline.tiling.geometry import Interval, Region
from pipeline.training.pairs import Pair
from pipeline.training.task import Task

IMAGES = 12
"""Most images that are shown, the first ones."""
SIDE = 256
"""Largest side of a picture."""
SAMPLES = 20_000
"""Samples that are looked up, about; of a longer run, those of every so many steps."""
READ = 1 << 24
"""Pixels up to which an image, or its coarsest level that is large enough, is read for its picture."""
COLOUR = np.array((213, 94, 0), np.float32)


@dataclass(frozen=True)
class SamplingMap:
    """One image: its name with what the picture says, and the picture as a PNG."""

    said: str
    png: bytes


def sampling_maps(task: Task) -> list[SamplingMap]:
    """Maps of the first images of a finished run. What was drawn follows from the steps' numbers alone."""
    sampler = task.sampler()
    shapes = [task.field.output_shape(*pair.size) for pair in task.pairs[:IMAGES]]
    counts = [np.zeros(_shown(shape), np.float32) for shape in shapes]
    every = math.ceil(task.steps * max(1, len(sampler.step(0))) / SAMPLES)
    looked = range(0, task.steps, every)
    for step in looked:
        for sample in sampler.step(step):
            if sample.image < len(counts):
                _add(counts[sample.image], sample.tile.core, shapes[sample.image])
    scale = task.steps / len(looked)
    maps = []
    for pair, drawn in zip(task.pairs, counts, strict=False):
        times = scale * drawn
        said = f"{pair.name}: {times.min():.3g} to {times.max():.3g} times, {times.mean():.3g} on average"
        maps.append(SamplingMap(said, _drawn(_thumbnail(pair, drawn.shape, task.channels), drawn)))
    return maps


def _add(counts: np.ndarray, core: Region, shape: tuple[int, int]) -> None:
    """Counts the core where it lies in the picture: of each pixel, the share that it covers."""
    rows, columns = (_scaled(part, of, n) for part, of, n in zip((core.y, core.x), shape, counts.shape, strict=True))
    counts[rows[0], columns[0]] += np.outer(rows[1], columns[1])


def _scaled(part: Interval, of: int, pixels: int) -> tuple[slice, np.ndarray]:
    """The pixels that stand for a part of `of`, and how much of each it covers."""
    start, stop = part.start * pixels / of, part.stop * pixels / of
    first, end = int(start), min(math.ceil(stop), pixels)
    at = np.arange(first, end)
    return slice(first, end), np.minimum(at + 1, stop) - np.maximum(at, start)


def _shown(shape: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a picture: at most SIDE."""
    by = max(1.0, max(shape) / SIDE)
    return max(1, int(shape[0] / by)), max(1, int(shape[1] / by))


def _thumbnail(pair: Pair, shape: tuple[int, ...], channels: int) -> Pixels:
    """The image in that many rows and columns; white where all of a large one would have to be read."""
    rows, columns = shape
    image = open_image(pair.image, channels=channels)
    fitting = [level for level, of in enumerate(image.levels) if of[-2] >= rows and of[-1] >= columns]
    if fitting and fitting[-1]:
        image.close()
        image = open_image(pair.image, channels=channels, level=fitting[-1])
    try:
        if math.prod(image.shape[-2:]) > READ:
            return np.full((rows, columns, 3), 255, np.uint8)
        pixels = image.read(Region.of(0, image.shape[-2], 0, image.shape[-1]))
    finally:
        image.close()
    small = np.moveaxis(resize(np.moveaxis(pixels, 0, -1), (rows, columns)), -1, 0)
    return to_rgb(small, contrast(small, small.dtype == np.uint8))


def _drawn(picture: Pixels, counts: np.ndarray) -> bytes:
    """The picture, the more tinted the more often a part was drawn, and grey where it never was."""
    share = 0.75 * counts[..., None] / max(float(counts.max()), 1e-9)
    mixed = faded(picture) * (1 - share) + COLOUR * share
    content = io.BytesIO()
    Image.fromarray(np.asarray(np.round(mixed), np.uint8)).save(content, "PNG", optimize=True)
    return content.getvalue()
