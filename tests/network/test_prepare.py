"""How many channels a network takes, where its first convolution does not say so."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.network.loading import load_network
from pipeline.network.prepare import infer_channels


def test_pixels_shuffled_into_channels_are_not_the_images_channels():
    module = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 2, 3, padding=1)).eval()
    assert infer_channels(module) == 3
    assert load_network(module).classes == 2


def test_features_computed_before_the_first_convolution():
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(5, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            red, _, blue = x.unbind(1)
            return self.conv(torch.stack([red, blue, red * red, red * blue, blue * blue], 1))

    assert infer_channels(Features()) == 3


def test_a_network_that_never_runs_keeps_what_its_convolution_says():
    assert infer_channels(nn.Sequential(nn.Conv2d(7, 2, 3), nn.Linear(3, 5))) == 7
