"""What is held out of the training data: some of the images, or a part of each.

By region, at one end of the longer side (the seed says which). What is read for the outputs that are trained on ends
before the first pixel that is held out:

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
from pipeline.training.pairs import Pair

Parts = tuple[tuple[Pair, ...], tuple[Pair, ...]]


def hold_out(
    pairs: Sequence[Pair], part: str, fraction: float, by: str | None, field: ReceptiveField, seed: int, of: int
) -> Parts:
    """What is left of the pairs, and the `part` of them, validation or test, that is held out: see by_image, by_region.

    `by`: image, region, or None for what suits their number; `of`: how many pairs there were at first.
    """
    if by == "image" or (by is None and len(pairs) > 1):
        return by_image(pairs, fraction, seed, of, part)
    return by_region(pairs, fraction, field, seed, part)


def by_image(pairs: Sequence[Pair], fraction: float, seed: int, of: int = 0, part: str = "validation") -> Parts:
    """The pairs without a fraction of them, or of `of`, and these, at least one. Raises ValueError if none is left."""
    if len(pairs) < 2:
        raise ValueError(f"one image cannot be split by image: give data.{part}.by: region, or a list of images")
    count = min(len(pairs) - 1, max(1, round(fraction * (of or len(pairs)))))
    held = set(random.Random(seed).sample(range(len(pairs)), count))
    return (
        tuple(pair for number, pair in enumerate(pairs) if number not in held),
        tuple(pair for number, pair in enumerate(pairs) if number in held),
    )


def by_region(
    pairs: Sequence[Pair], fraction: float, field: ReceptiveField, seed: int, part: str = "validation"
) -> Parts:
    """Each pair twice: without a strip of about that fraction at one of its ends, and with that strip alone.

    Between them is a gap: no read that is needed for an output that is left holds a pixel of the strip, wherever its
    tile lies. A test strip is at the other end than one for validation.
    Raises ValueError for an image that is too small.
    """
    rest: list[Pair] = []
    held: list[Pair] = []
    draw = random.Random(seed)
    for pair in pairs:
        at_end, grid = (draw.random() < 0.5) != (part == "test"), Grid.build(pair.size, field.alignment, field)
        longer = 0 if pair.size[0] >= pair.size[1] else 1
        axis = (grid.y, grid.x)[longer]
        whole = [Interval(0, grid.y.output), Interval(0, grid.x.output)]
        if pair.region is not None:
            whole = [pair.region.y, pair.region.x]
        now = whole[longer]
        cut = [rows.clip(now.start, now.stop) for rows in strip(axis, fraction, pair.shift[longer], at_end) or ()]
        if not all(rows.size for rows in cut) or not cut:
            raise ValueError(
                f"{pair.image} is {pair.size[0]} x {pair.size[1]} pixels, too small to hold out {fraction:g} of it and "
                f"a gap of the network's reach: split by image, or give data.{part} a list"
            )
        for pieces, rows in zip((rest, held), cut, strict=True):
            whole[longer] = rows
            pieces.append(replace(pair, region=Region(*whole)))
    return tuple(rest), tuple(held)


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
