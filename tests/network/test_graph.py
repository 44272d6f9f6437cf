"""What the recording of a network sees of code that goes past its operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.network.receptive_field import receptive_field
from tests.zoo import Apply, chain, conv


def cropped_by_numbers(x: Tensor) -> Tensor:
    """As some U-Nets compute the margins of a skip connection: with tensors, read back into a list."""
    margins = (torch.tensor(x.shape)[2:] - torch.tensor(x.shape)[2:] + 2).int()
    return F.pad(x, (-torch.stack((margins, margins)).t().flatten()).tolist())


def test_a_list_of_numbers_made_from_sizes_is_followed():
    field = receptive_field(chain(conv(2, 2), cropped_by_numbers).eval(), 2)
    assert (field.before, field.after, field.surplus) == ((0, 0), (4, 4), (-4, -4))


@pytest.mark.parametrize("read", [Tensor.tolist, Tensor.numpy, lambda x: x.__array__(), torch.from_dlpack])
def test_values_of_the_image_read_in_python_are_not_local(read: object):
    def scaled(x: Tensor) -> Tensor:
        values = read(x.flatten()[0:1])  # type: ignore[operator]
        return x * float(values[0])

    named = receptive_field(chain(conv(2, 2), scaled).eval(), 2).nonlocal_operations
    assert any("1: _local_scalar_dense: the network's Python code reads" in line for line in named), named


def test_new_tensors_are_constants_of_no_reach():
    def masked(x: Tensor) -> Tensor:
        frame = x.new_zeros(x.shape)
        frame[:, :, :, :] = 2
        return x * frame + x.new_full((), 3.0)

    field = receptive_field(chain(conv(2, 2), masked).eval(), 2)
    assert (field.before, field.after) == ((1, 1), (1, 1))


def test_circular_padding_is_one_operation():
    module = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")).eval()
    assert [line.split(":")[1] for line in receptive_field(module, 2).nonlocal_operations] == [" pad"]
    assert receptive_field(Apply(lambda x: F.pad(x, (1, 1, 1, 1), "circular")), 2).nonlocal_operations
