"""Exact validation: whole held-out images through the worker of inference, tile by tile, and nothing written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import nn

from pipeline.network.program import Program
from pipeline.network.streaming import program_of
from pipeline.storage.image import open_image
from pipeline.storage.kept import Kept
from pipeline.tiling.geometry import Region
from pipeline.tiling.grid import Tile
from pipeline.tiling.plan import Plan
from pipeline.training.metrics import confusion
from pipeline.training.pairs import Labels, Pair, scored
from pipeline.worker import Model, image_region


@dataclass(frozen=True)
class Validation:
    """Held-out pairs with the plan of each, of kind mask. It pickles small: nothing is open between two calls."""

    pairs: Sequence[Pair]
    plans: Sequence[Plan]
    """As of inference: `pipeline.planning.plan_image`."""
    channels: int
    classes: int
    """Outputs of the network."""
    ignore: int | None = None
    binary: bool = False
    device: str = "cpu"

    @cached_property
    def tiles(self) -> list[tuple[int, Tile]]:
        """(pair, tile) for all that is to be predicted: the part of each tile's core that the pair's region has."""
        found = []
        for number, (pair, plan) in enumerate(zip(self.pairs, self.plans, strict=True)):
            for index in range(plan.tiles):
                core = plan.grid.tile(index).core
                if pair.region is not None:
                    y, x = pair.region.y, pair.region.x
                    core = Region(core.y.clip(y.start, y.stop), core.x.clip(x.start, x.stop))
                if 0 not in core.shape:
                    found.append((number, plan.grid.window(core)))
        return found

    def confusion(self, module: nn.Module, rank: int = 0, world: int = 1) -> np.ndarray:
        """(tiles, classes, classes) int64: outputs by true and predicted class, of worker `rank`'s share of the tiles.

        The other tiles' are 0, so that the sum over workers is what one worker alone would have found. The module is
        in the plans' precision; it is in eval mode meanwhile, and nothing of it is changed.
        """
        classes = scored(self.classes)
        result = np.zeros((len(self.tiles), classes, classes), np.int64)
        share = range(len(self.tiles) * rank // world, len(self.tiles) * (rank + 1) // world)
        with evaluating(module), closing(self._reader(module)) as reader:
            for index in share:
                number, tile = self.tiles[index]
                model, labels = reader[number]
                result[index] = confusion(labels.read(tile.core), model.tile(tile)[0], classes)
        return result

    def show(self, module: nn.Module, indices: Iterable[int]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each tile: the pixels (c, h, w) under its core, as stored, and the classes that are true and predicted."""
        with closing(self._reader(module)) as reader:
            for index in indices:
                number, tile = self.tiles[index]
                under = image_region(self.plans[number], tile.core)
                y, x = self.pairs[number].shift
                model, labels = reader[number]
                with evaluating(module):
                    predicted = model.tile(tile)[0]
                yield model.image.read(Region(under.y.shift(y), under.x.shift(x))), labels.read(tile.core), predicted

    def _reader(self, module: nn.Module) -> Kept[tuple[Model, Labels]]:
        """What gives model and labels of a pair; those of two pairs are open at a time."""

        @lru_cache(maxsize=1)
        def program() -> Program:
            # Folding keeps the tolerance for the weights that it was tried with, and these change.
            return program_of(module, self.channels, folded=False)

        def opened(number: int) -> tuple[Model, Labels]:
            pair, plan = self.pairs[number], self.plans[number]
            image = open_image(pair.image, channels=self.channels)
            model = Model(image, plan, module, self.device, program() if plan.band else None)
            return model, Labels(pair, classes=self.classes, ignore=self.ignore, binary=self.binary)

        def close(pair: tuple[Model, Labels]) -> None:
            pair[0].image.close()
            pair[1].close()

        return Kept(2, opened, close)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in eval mode, and each of its parts in its own mode again afterwards."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in training.items():
            part.training = mode
