"""Tiles that a network predicts best and worst: image, label, prediction and where they differ, side by side."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import nn

from pipeline.stitching.drawing import Pixels, contrast, faded, overlay, palette, resize, to_rgb
from pipeline.training.metrics import confusion, metrics
from pipeline.training.pairs import IGNORE, scored
from pipeline.training.validation import Validation

TRIED = 64
"""Most tiles among which the best and the worst are looked for, spread evenly over all that are held out."""
SIDE = 256
"""Largest side of a picture."""
GAP = 6
GREY, RIGHT, WRONG = (128, 128, 128), (225, 230, 225), (213, 60, 0)
PANELS = ("image", "label", "prediction", "wrong")


@dataclass(frozen=True)
class Example:
    """One tile: its place, its mean IoU, and the four panels as a PNG."""

    name: str
    score: float
    png: bytes


def find_examples(validation: Validation, module: nn.Module, count: int = 3) -> tuple[list[Example], list[Example]]:
    """The best and the worst tiles, best and worst first; each tile once, and none where nothing is labelled.

    Tiles of several classes go first: one that is all background is easy, and shows little.
    """
    classes, total = scored(validation.classes), len(validation.tiles)
    indices = sorted({at * total // min(total, TRIED) for at in range(min(total, TRIED))}) if total else []
    found: list[tuple[bool, float, int]] = []
    for index, (_, truth, predicted) in zip(indices, validation.show(module, indices), strict=True):
        matrix = confusion(truth, predicted, classes)
        if matrix.any():
            found.append((bool(np.count_nonzero(matrix.sum(axis=1)) > 1), metrics(matrix).mean_iou or 0.0, index))
    if any(several for several, _, _ in found):
        found = [tile for tile in found if tile[0]]
    ranked = sorted(found, key=lambda tile: (-tile[1], tile[2]))
    half = min(count, -(-len(ranked) // 2))
    best, worst = ranked[:half], ranked[half:][::-1][:count]
    return _drawn(validation, module, best), _drawn(validation, module, worst)


def _drawn(validation: Validation, module: nn.Module, tiles: list[tuple[bool, float, int]]) -> list[Example]:
    examples = []
    indices = [index for _, _, index in tiles]
    for (_, score, index), shown in zip(tiles, validation.show(module, indices), strict=True):
        number, tile = validation.tiles[index]
        place = f"{validation.pairs[number].name}, rows {tile.core.y.start} to {tile.core.y.stop}, "
        place += f"columns {tile.core.x.start} to {tile.core.x.stop}"
        examples.append(Example(place, score, draw(*shown, classes=scored(validation.classes))))
    return examples


def draw(pixels: np.ndarray, truth: np.ndarray, predicted: np.ndarray, *, classes: int) -> bytes:
    """A PNG of four panels: the pixels (c, h, w), and the classes (h', w') that are true and predicted, laid over them.

    Ignored labels are grey, and wrong predictions red.
    """
    shape = _shown(pixels.shape[-2:])
    plain = np.asarray(
        Image.fromarray(to_rgb(pixels, contrast(pixels, pixels.dtype == np.uint8))).resize(
            shape[::-1], Image.Resampling.BOX if shape[0] <= pixels.shape[-2] else Image.Resampling.NEAREST
        )
    )
    truth, predicted = resize(truth, shape), resize(predicted, shape).astype(np.int64)
    ignored = truth == IGNORE
    colours = palette(classes)
    label = overlay(faded(plain), np.where(ignored, 0, truth), colours).copy()
    label[ignored] = GREY
    differs = np.where((truth != predicted)[..., None], np.array(WRONG, np.uint8), np.array(RIGHT, np.uint8))
    differs[ignored] = GREY
    panels: list[Pixels] = [plain, label, overlay(faded(plain), predicted, colours), differs]
    page = np.full((shape[0], 4 * shape[1] + 3 * GAP, 3), 255, np.uint8)
    for at, panel in enumerate(panels):
        page[:, at * (shape[1] + GAP) : at * (shape[1] + GAP) + shape[1]] = panel
    content = io.BytesIO()
    Image.fromarray(page).save(content, "PNG", optimize=True)
    return content.getvalue()


def _shown(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a panel: at most SIDE, small tiles enlarged by a whole number."""
    height, width = shape
    if max(shape) <= SIDE:
        times = SIDE // max(shape)
        return height * times, width * times
    return max(1, height * SIDE // max(shape)), max(1, width * SIDE // max(shape))
