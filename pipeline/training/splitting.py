"""What is held out of the training data: some of the images, or a part of each.

By region, at one end of the longer side (the seed says which). What is read for the outputs that are trained on ends
before the first pixel that is validated:

    outputs    |------ trained ------|               |-- held out --|
    reads      |=============================|
                                      halo     alignment
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from pipeline.tiling.geometry import Interval, ReceptiveField, Region
from pipeline.tiling.grid import Axis, Grid
from pipeline.training.pairs import Pair, Split


def by_image(pairs: Sequence[Pair], fraction: float, seed: int) -> Split:
    """The pairs with a fraction of them, at least one, held out. Raises ValueError where none would be left."""
    if len(pairs) < 2:
        raise ValueError("one image cannot be split by image: give data.validation.by: region, or a list of images")
    count = min(len(pairs) - 1, max(1, round(fraction * len(pairs))))
    held = set(random.Random(seed).sample(range(len(pairs)), count))
    return Split(
        tuple(pair for number, pair in enumerate(pairs) if number not in held),
        tuple(pair for number, pair in enumerate(pairs) if number in held),
    )


def by_region(pairs: Sequence[Pair], fraction: float, field: ReceptiveField, seed: int) -> Split:
    """Each pair twice: without a strip of about that fraction at one of its ends, and with that strip alone.

    Between them is a gap: no read that is needed for an output in training holds a validated pixel, wherever its tile
    lies. Raises ValueError for an image that is too small.
    """
    train: list[Pair] = []
    validation: list[Pair] = []
    draw = random.Random(seed)
    for pair in pairs:
        at_end, grid = draw.random() < 0.5, Grid.build(pair.size, field.alignment, field)
        longer = 0 if pair.size[0] >= pair.size[1] else 1
        axis = (grid.y, grid.x)[longer]
        parts = strip(axis, fraction, pair.shift[longer], at_end)
        if parts is None:
            raise ValueError(
                f"{pair.image} is {pair.size[0]} x {pair.size[1]} pixels, too small to hold out {fraction:g} of it and "
                "a gap of the network's reach: split by image, or give data.validation a list"
            )
        whole = [Interval(0, grid.y.output), Interval(0, grid.x.output)]
        for pieces, part in ((train, parts[0]), (validation, parts[1])):
            whole[longer] = part
            pieces.append(replace(pair, region=Region(*whole)))
    return Split(tuple(train), tuple(validation))


def strip(axis: Axis, fraction: float, shift: int, at_end: bool) -> tuple[Interval, Interval] | None:
    """Outputs to train on, and those held out at one end of the axis; None where nothing is left to train on.

    `shift`: the input row that output 0 is labelled by.
    """
    held = max(1, round(fraction * axis.output))
    a = axis.alignment

    def pixels(rows: Interval) -> Interval:
        return Interval(math.floor(rows.start / axis.rate) + shift, math.ceil(rows.stop / axis.rate) + shift)

    if at_end:
        validated = Interval(axis.output - held, axis.output)
        stop = (pixels(validated).start - a - max(axis.after, axis.least)) // a * a
        trained = Interval(0, int(stop * axis.rate))
    else:
        validated = Interval(0, held)
        start = -(-(pixels(validated).stop + a + max(axis.before, axis.least)) // a) * a
        trained = Interval(int(start * axis.rate), axis.output)
    return (trained, validated) if trained.size > 0 else None
