"""The least image that a network runs on, per axis."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.network.memory import forward_bytes
from pipeline.network.receptive_field import receptive_field
from pipeline.network.sizes import fails_at, least_size
from tests.zoo import chain, conv


def least(*layers: nn.Module) -> tuple[int, int]:
    module = chain(*layers).eval()
    return least_size(module, 2, receptive_field(module, 2))


def test_each_axis_has_a_least_size_of_its_own():
    assert least(conv(2, 2)) == (1, 1)
    assert least(conv(2, 2, (5, 1), padding=0)) == (5, 1)
    assert least(conv(2, 2, (1, 4), padding=0), conv(2, 2, (3, 1), padding=0)) == (3, 4)
    assert least(nn.ReflectionPad2d((0, 0, 3, 1)), conv(2, 2, 3)) == (4, 1)  # reflects no more rows than there are - 1
    assert least(conv(2, 2, stride=4), conv(2, 2, (3, 1), padding=0)) == (12, 4)  # three rows at stride 4


def test_large_least_sizes_are_found():
    assert least(conv(2, 2, (40, 1), padding=0), conv(2, 2, (1, 3), padding=0)) == (40, 3)


def test_a_network_that_never_runs_says_why():
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("not today\nnor tomorrow")

    field = receptive_field(conv(2, 2), 2)
    with pytest.raises(ValueError, match="fails on every image up to 128 x 128: not today nor tomorrow"):
        least_size(Never(), 2, field)
    assert fails_at(nn.MaxPool2d(2), 2, (2, 2)) is None
    assert fails_at(chain(lambda x: x[:, :, 5:]), 2, (3, 3)) == "its output is empty"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_any_type_are_tried_with_inputs_of_that_type(dtype):
    module = conv(2, 2, padding=0).to(dtype)
    field = receptive_field(module, 2)
    assert least_size(module, 2, field) == (3, 3)
    small = conv(2, 2, padding=0)
    needs = [forward_bytes(m, 2, field, (300, 300), torch.float32) for m in (small, module)]
    assert needs[0] == pytest.approx(needs[1], rel=0.01)
