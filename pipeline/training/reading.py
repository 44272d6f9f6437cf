"""Samples as arrays: the pixels that a network needs for a core, and the class of each of its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pipeline.storage.image import Image, open_image
from pipeline.storage.kept import Kept
from pipeline.storage.reading import Reading
from pipeline.tiling.geometry import Region
from pipeline.training.gradient import Read
from pipeline.training.pairs import IGNORE, Labels, Pair
from pipeline.training.sampling import Sample

OPEN = 8
"""Pairs that are open at a time."""
CACHE_BYTES = 16_000_000
"""Decoded chunks that each remembers."""


class Reader:
    """Reads samples of pairs, which it opens when they are first needed.

    margin: outputs around each core whose classes are read too, for views that draw them in.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        channels: int,
        classes: int,
        ignore: int | None,
        binary: bool,
        margin: int = 0,
    ) -> None:
        def opened(number: int) -> tuple[Image, Labels]:
            pair = pairs[number]
            image = open_image(pair.image, channels=channels)
            image.cache_bytes = CACHE_BYTES
            labels = Labels(pair, classes=classes, ignore=ignore, binary=binary)
            labels.image.cache_bytes = CACHE_BYTES
            return image, labels

        self.opened, self.pairs, self.margin = Kept(OPEN, opened, _close), pairs, margin

    def reads(self, samples: Iterable[Sample]) -> Iterator[Read]:
        """Each sample with its pixels, extended where the read goes beyond the image, and its core's classes.

        Samples without a label are left out before their pixels are read: they have no part in loss or gradient.
        Raises ValueError, with the place, for pixels that are NaN or infinite.
        """
        for sample in samples:
            image, labels = self.opened[sample.image]
            tile = sample.tile
            classes = labels.read(_wider(tile.core, self.margin))
            if (classes == IGNORE).all():
                continue
            pair = self.pairs[sample.image]
            pixels = Reading(image, tile.read, pair.size).all()
            _check_finite(pixels, tile.read, pair)
            yield sample, pixels, classes


def _check_finite(pixels: np.ndarray, read: Region, pair: Pair) -> None:
    """Raises ValueError for NaN and infinity: the gradient has 0 times these even where no loss depends on them."""
    if pixels.dtype.kind != "f" or (finite := np.isfinite(pixels)).all():
        return
    channel, y, x = np.argwhere(~finite)[0]
    raise ValueError(
        f"{pair.image}: {pixels[channel, y, x]} at row {read.y.start + y}, column {read.x.start + x} cannot be trained "
        "on, also where labels are ignored: give pixels without data a number, such as 0"
    )


def _close(pair: tuple[Image, Labels]) -> None:
    for opened in pair:
        opened.close()


def _wider(region: Region, margin: int) -> Region:
    y, x = region.y, region.x
    return Region.of(y.start - margin, y.stop + margin, x.start - margin, x.stop + margin)
