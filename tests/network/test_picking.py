"""Reading and writing at given positions, and views: what of it is local, as footprints show, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.network.receptive_field import UnknownOperation, receptive_field
from tests.footprints import measured
from tests.zoo import Apply, chain, conv

CHANNELS = torch.tensor([1, 0, 1])


def thresholded(x: Tensor) -> Tensor:
    y = x.clone()
    y[x > 0.5] = 0
    return y


def rows_times_columns(x: Tensor) -> Tensor:
    rows, columns = torch.arange(0, x.shape[2], 2), torch.arange(1, x.shape[3], 2)
    return x[:, :, rows[:, None], columns]


def looked_up(x: Tensor) -> Tensor:
    table = torch.linspace(-1, 1, 12, dtype=x.dtype).reshape(4, 3)
    return F.embedding(x[:, 0].mul(3).nan_to_num(0).clamp(0, 3).long(), table).permute(0, 3, 1, 2)


def largest_channel(x: Tensor) -> Tensor:
    return x.gather(1, x.argmax(1, keepdim=True)) + x.sum(1, keepdim=True)


LOCAL: dict[str, Callable[[Tensor], Tensor]] = {
    "masked write": thresholded,
    "channels by index": lambda x: x[:, CHANNELS],
    "channels by index_select": lambda x: x.index_select(1, CHANNELS),
    "rows by index_select": lambda x: x.index_select(2, torch.arange(1, x.shape[2])),
    "rows times columns": rows_times_columns,
    "look-up": looked_up,
    "gather along channels": largest_channel,
    "select and unsqueeze": lambda x: x[:, 1].unsqueeze(1) - x.select(1, 0)[:, None],
    "split channels": lambda x: x.split(1, 1)[1] * x.unbind(1)[0].unsqueeze(1),
    "squeeze": lambda x: x[:, :1].squeeze(1).unsqueeze(1),
    "expand": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "written channel": lambda x: x.select_scatter(x[:, 0] * 2, 1, 1),
    "transposed twice": lambda x: conv11(x.transpose(2, 3)).transpose(2, 3),
}
torch.manual_seed(0)
KERNEL = torch.rand(2, 2, 1, 5, dtype=torch.float64)


def conv11(x: Tensor) -> Tensor:
    return F.conv2d(x, KERNEL.to(x.dtype), padding=(0, 2))


@pytest.mark.parametrize("name", LOCAL)
def test_local_ones_have_the_footprint_that_is_derived(name: str):
    torch.manual_seed(0)
    module = chain(conv(2, 2), LOCAL[name]).eval()
    field = receptive_field(module, 2)
    assert measured(module, 2, field) == (field.before, field.after)


NOT_LOCAL: dict[str, Callable[[Tensor], Tensor]] = {
    "repeats the whole image": lambda x: x.repeat(1, 1, 2, 1),
    "single rows or columns": lambda x: torch.stack(x.unbind(2)[:4], 2),
    "takes a row or column at a fixed place": lambda x: x - x[:, :, 0].unsqueeze(2),
    "given places": lambda x: x - x[:, :, torch.tensor([3, 1, 4])].amax(2, keepdim=True),
    "far edge": lambda x: x[:, :, -5:],
    "writes to a fixed place": lambda x: x.select_scatter(x[:, :, 0] * 2, 2, 3),
}


@pytest.mark.parametrize("reason", NOT_LOCAL)
def test_what_depends_on_the_place_in_the_image_is_not_local(reason: str):
    named = receptive_field(chain(conv(2, 2), NOT_LOCAL[reason]).eval(), 2).nonlocal_operations
    assert any(line.startswith("1: ") and reason in line for line in named), named


UNKNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "reads computed positions": lambda x: x[:, :, torch.ones(x.shape[2], dtype=torch.bool)],
    "reads or writes computed rows or columns": lambda x: x.gather(2, x.mul(3).long().clamp(0, 3)),
    "several places at once": lambda x: x[:, :, torch.arange(x.shape[2]).reshape(-1, 2)].amax(3),
    "places cannot be followed": lambda x: x.tril(),
}


@pytest.mark.parametrize("reason", UNKNOWN)
def test_what_cannot_be_followed_is_unknown_rather_than_guessed(reason: str):
    with pytest.raises(UnknownOperation, match=rf"^1: \w+: .*{reason}.*--reach"):
        receptive_field(nn.Sequential(conv(2, 2), Apply(UNKNOWN[reason])).eval(), 2)
