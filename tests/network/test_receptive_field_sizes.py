"""The alignment of networks that look at their input's size: what they do at some sizes, they do not do at others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.network.receptive_field import receptive_field
from pipeline.tiling.grid import Grid
from tests.zoo import chain, conv


class Filled(nn.Module):
    """Fills its input up to a multiple of `unit` and takes away what that made, as restoration networks do."""

    def __init__(self, unit: int) -> None:
        super().__init__()
        self.unit, self.body = unit, chain(conv(1, 3, 5), nn.ReLU(), conv(3, 2, 5))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        filled = F.pad(x, (0, -width % self.unit, 0, -height % self.unit), "reflect")
        return self.body(filled)[..., :height, :width]


class Insists(nn.Module):
    """Runs on multiples of 8 only, though its layers have stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.body = chain(conv(1, 2, stride=2), nn.Upsample(scale_factor=2))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 8 or x.shape[3] % 8:
            raise ValueError("wrong size")
        return self.body(x)


@pytest.mark.parametrize("unit", [16, 64])
def test_what_fills_up_its_input_is_aligned_to_that(unit: int):
    assert receptive_field(Filled(unit).eval(), 1).alignment == (unit, unit)


def test_what_fills_up_to_no_power_of_two_is_refused_by_name():
    named = receptive_field(Filled(6).eval(), 1).nonlocal_operations
    assert named[0] == "network: reflection_pad2d: pads by an amount that depends on the image's size"


def test_what_insists_on_a_multiple_is_aligned_to_it():
    assert receptive_field(Insists().eval(), 1).alignment == (8, 8)


def test_what_does_not_care_keeps_its_own_alignment():
    module = chain(conv(1, 2, 3, stride=(1, 2)), nn.Upsample(scale_factor=(1, 2))).eval()
    assert receptive_field(module, 1).alignment == (1, 2)


def test_tiles_of_a_network_that_fills_up_its_input_give_the_whole_image():
    torch.manual_seed(0)
    module, size = Filled(16).double().eval(), (96, 112)
    field = receptive_field(module, 1)
    image = torch.rand(1, 1, *size, dtype=torch.float64)
    with torch.no_grad():
        whole = module(image)
        grid = Grid.build(size, (32, 32), field)
        for tile in map(grid.tile, range(len(grid))):
            part = module(image[..., *tile.read.slices])[..., *tile.crop.slices]
            assert torch.equal(part, whole[..., *tile.core.slices])
