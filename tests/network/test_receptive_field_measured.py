"""The derived receptive field is exactly what footprints show, and reads cut by it give the whole image's result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.network.receptive_field import receptive_field
from pipeline.tiling.geometry import ReceptiveField
from pipeline.tiling.grid import Grid
from tests.footprints import measured, run
from tests.zoo import PLAIN, ZOO, Architecture, random_network

names = [a.name for a in ZOO]


def test_the_zoo_is_large_enough():
    assert len(names) == len(set(names)) and len(ZOO) >= 25
    assert sum(not a.unet for a in PLAIN) >= 10


@pytest.mark.parametrize("architecture", ZOO, ids=names)
def test_footprints_show_exactly_the_derived_reach(architecture: Architecture):
    torch.manual_seed(0)
    module = architecture.build().eval()
    field = receptive_field(module, architecture.channels)
    assert field.is_local, field.nonlocal_operations
    before, after = measured(module, architecture.channels, field)
    if architecture.hidden:
        assert all(a <= b for a, b in zip(before + after, field.before + field.after, strict=True))
    else:
        assert (before, after) == (field.before, field.after)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_footprints_of_random_networks(seed: int):
    torch.manual_seed(0)
    module = random_network(seed)
    field = receptive_field(module, 2)
    assert measured(module, 2, field) == (field.before, field.after)


def image_of(size: tuple[int, int], channels: int) -> Tensor:
    values = torch.randint(0, 8, (1, channels, *size), generator=torch.Generator().manual_seed(3))
    return values.double()


def tiled(
    module: nn.Module, extended: Tensor, size: tuple[int, int], core: tuple[int, int], field: ReceptiveField
) -> Tensor:
    """The result put together from reads, each run by itself; NaN where no core wrote."""
    grid = Grid.build(size, core, field)
    result = None
    for number in range(len(grid)):
        tile = grid.tile(number)
        out = run(module, extended[:, :, tile.read.y.slice, tile.read.x.slice])
        if result is None:
            result = torch.full((*out.shape[:2], grid.y.output, grid.x.output), float("nan"), dtype=out.dtype)
        result[:, :, tile.core.y.slice, tile.core.x.slice] = out[:, :, tile.crop.y.slice, tile.crop.x.slice]
    assert result is not None
    return result


def whole(module: nn.Module, extended: Tensor, size: tuple[int, int], field: ReceptiveField) -> Tensor:
    rows, columns = field.output_shape(*size)
    return run(module, extended)[:, :, :rows, :columns]


def extend(image: Tensor, field: ReceptiveField) -> Tensor:
    rows, columns = (e - n for e, n in zip(field.extended(*image.shape[2:]), image.shape[2:], strict=True))
    return F.pad(image, (0, columns, 0, rows), mode="replicate")


def dropped_first(x: Tensor) -> Tensor:
    return x[:, :, 1:, 1:]


def dropped_last(x: Tensor) -> Tensor:
    return x[:, :, :-1, :-1]


HOLES = nn.Sequential(nn.Conv2d(1, 1, 2, 2), nn.ConvTranspose2d(1, 1, 1, 2), nn.Conv2d(1, 1, 3, padding=1))


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("drop", [dropped_first, dropped_last, None], ids=["first", "last", "holes"])
def test_rows_that_must_exist_count_though_nothing_is_computed_from_them(drop, side):
    """A convolution that pads finds a border where rows were dropped: with less read, it finds one in every tile."""

    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(drop(x))

    module = (HOLES if drop is None else Dropped()).double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(1)
    field = receptive_field(module, 1)
    size = (40, 40)
    extended = extend(image_of(size, 1), field)
    expected = whole(module, extended, size, field)
    assert torch.equal(tiled(module, extended, size, (8, 8), field), expected)
    less = tuple(max(0, n - a) for n, a in zip(getattr(field, side), field.alignment, strict=True))
    if less == getattr(field, side):
        pytest.skip("there is nothing less to read on that side")
    try:
        found = tiled(module, extended, size, (8, 8), replace(field, **{side: less}))
    except RuntimeError:  # a read that gives less than its core
        return
    assert not torch.equal(found, expected)
