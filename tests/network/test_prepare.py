"""How many channels a network takes, where its first convolution does not say so."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

from pipeline.network.loading import load_network
from pipeline.network.prepare import copied_module, infer_channels
from pipeline.network.receptive_field import receptive_field


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


class Changing(nn.Module):
    """Changes what it holds each time that it runs; `seen`: with a convolution that tells the channels."""

    def __init__(self, how: str, seen: bool) -> None:
        super().__init__()
        self.how = how
        self.weight = nn.Parameter(torch.ones(2, 2, 3, 3))
        self.register_buffer("n", torch.zeros(3))
        self.inner = nn.Conv2d(2, 2, 1) if seen else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "buffer":
            self.n += 1
        elif self.how == "part of a buffer":
            self.n[1:].add_(1)
        else:
            self.weight.data.mul_(0.5)
        return self.inner(nn.functional.conv2d(x, self.weight) * self.n[1])


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize(
    ("how", "named"), [("buffer", "buffer n"), ("part of a buffer", "buffer n"), ("weights", "parameter weight")]
)
def test_a_network_that_changes_itself_is_refused_and_is_as_it_was(how: str, named: str, seen: bool):
    module = nn.Sequential(Changing(how, seen)).eval()
    state = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=f"^the network changes its {named.replace(' ', ' 0.')} in forward"):
        receptive_field(load_network(module).module, 2)
    assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())


class MadeOne(nn.Module):
    """Two convolutions in a row, which are made one whenever it runs."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.one = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        second = self.second.weight[:, :, 0, 0]
        self.one.weight.data = torch.einsum("oi,ichw->ochw", second, self.first.weight)
        self.one.bias.data.copy_(second @ self.first.bias + self.second.bias)
        return self.one(x)


def test_a_network_that_writes_the_same_each_time_runs_as_a_copy():
    module = MadeOne().eval()
    state = copy.deepcopy(module.state_dict())
    network = load_network(module)
    receptive_field(network.module, 2)
    assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())
    image = torch.rand(1, 2, 20, 20)
    with torch.no_grad():
        torch.testing.assert_close(network.module(image), module.second(module.first(image)))


def test_a_network_in_training_mode_may_keep_count():
    module = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    receptive_field(module, 2)
    assert module[1].num_batches_tracked == 0


@pytest.mark.parametrize("share", [True, False])
def test_what_cannot_be_copied_is_named(share: bool):
    module = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU()).eval()
    module[1].lock = threading.Lock()
    with pytest.raises(ValueError, match=r"^the network's attribute 1\.lock \(lock\) cannot be copied"):
        copied_module(module, share=share)
