"""The halo around a tile's core is enough on every side, and one alignment step less on any side is too little.

Values alone would not show it: networks hardly use the outermost rows that they see. So everything outside a tile's
read is overwritten (with NaN, and with finite values where a maximum or a weight of 0 would lose a NaN): what reaches
the core has been missed by the read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipeline.network.receptive_field import receptive_field
from pipeline.tiling.geometry import ReceptiveField
from pipeline.tiling.grid import Grid, Tile
from tests.footprints import run
from tests.zoo import ZOO, Architecture, chain, conv

SEEN = [a for a in ZOO if not a.hidden]


def core_of(field: ReceptiveField, least: int = 8) -> tuple[int, int]:
    rows, columns = (a * -(-least // a) for a in field.alignment)
    return rows, columns


def size_of(field: ReceptiveField) -> tuple[int, int]:
    """Large enough for tiles that see no border; one alignment step more than a number of cores."""
    core = core_of(field)
    rows, columns = (
        core[i] * math.ceil((2 * sum(field.halo_of(i)) + abs(field.surplus[i])) / core[i] + 3) + field.alignment[i]
        for i in (0, 1)
    )
    return rows, columns


def tiles(field: ReceptiveField) -> Iterator[Tile]:
    grid = Grid.build(size_of(field), core_of(field), field)
    return (grid.tile(number) for number in range(len(grid)))


def escapes(module: nn.Module, image: Tensor, whole: Tensor, tile: Tile) -> bool:
    """Whether anything outside the tile's read changes its core."""
    for value in (math.nan, 9.0, -9.0):
        other = torch.full_like(image, value)
        other[:, :, *tile.read.slices] = image[:, :, *tile.read.slices]
        if not torch.equal(run(module, other)[:, :, *tile.core.slices], whole[:, :, *tile.core.slices]):
            return True
    return False


def narrower(field: ReceptiveField) -> Iterator[ReceptiveField]:
    """The field with one alignment step less of halo on each side in turn."""
    for axis in (0, 1):
        for side in (0, 1):
            halo = [list(field.halo_of(0)), list(field.halo_of(1))]
            if halo[axis][side]:
                halo[axis][side] = max(0, halo[axis][side] - field.alignment[axis])
                yield replace(field, halo=((halo[0][0], halo[0][1]), (halo[1][0], halo[1][1])))


@pytest.mark.no_cover  # the same code as in tests of one network each, on many
@pytest.mark.parametrize("architecture", SEEN, ids=[a.name for a in SEEN])
def test_halo_is_enough_and_a_step_less_on_any_side_is_not(architecture: Architecture):
    torch.manual_seed(0)
    module = architecture.build().double().eval()
    field = receptive_field(module, architecture.channels)
    image = torch.rand(1, architecture.channels, *size_of(field), dtype=torch.float64)
    whole = run(module, image)
    assert not any(escapes(module, image, whole, tile) for tile in tiles(field))
    less = list(narrower(field))
    assert less
    for one in less:
        # the tiles that a smaller read leaves wrong are at the end more often than at the beginning
        found = any(escapes(module, image, whole, tile) for tile in reversed(list(tiles(one))))
        assert found, f"{one.halo} would do, {field.halo} is read"


def test_halo_is_at_most_the_reach_and_less_where_only_some_phases_see_that_far():
    # rows 2m, 2m+1 see [2m-3, 2m+5): reach 4, but a core at even rows needs 3
    field = receptive_field(chain(conv(2, 2), nn.MaxPool2d(2), conv(2, 2), nn.Upsample(scale_factor=2)).eval(), 2)
    assert (field.before, field.after, field.halo) == ((4, 4), (4, 4), ((3, 3), (3, 3)))
    for architecture in ZOO:
        field = receptive_field(architecture.build().eval(), architecture.channels)
        for axis in (0, 1):
            before, after = field.halo_of(axis)
            assert 0 <= before <= field.before[axis] and 0 <= after <= field.after[axis]


HIDDEN = {
    "first rows dropped": chain(lambda x: x[:, :, 1:, 1:], nn.Conv2d(1, 1, 3, padding=1)),
    "last rows dropped": chain(lambda x: x[:, :, :-1, :-1], nn.Conv2d(1, 1, 3, padding=1)),
    "holes": chain(nn.Conv2d(1, 1, 2, 2), nn.ConvTranspose2d(1, 1, 1, 2), nn.Conv2d(1, 1, 3, padding=1)),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_rows_that_must_exist_count_though_nothing_is_computed_from_them(name: str):
    """A convolution that pads finds a border where rows were dropped: with less read, it finds one in every tile."""
    module = HIDDEN[name].double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(1)
    field = receptive_field(module, 1)
    image = torch.randint(0, 8, (1, 1, *size_of(field))).double()
    whole = run(module, image)

    def right(tile: Tile) -> bool:
        found = run(module, image[:, :, *tile.read.slices])[:, :, *tile.crop.slices]
        return torch.equal(found, whole[:, :, *tile.core.slices])

    assert all(right(tile) for tile in tiles(field))
    less = list(narrower(field))
    assert less and not any(all(right(tile) for tile in tiles(one)) for one in less)
