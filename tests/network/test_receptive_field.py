"""Receptive fields worked out by hand: reach, alignment, rate, surplus and offset, the working beside each.

In the working, o is an output row and m a whole number; an output row stands for the input rows of its cell,
[o / rate, (o + 1) / rate), and reach counts from the cell's ends. An output as large as its input has offset 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.network.receptive_field import receptive_field
from tests.zoo import Apply, chain, conv, up

Pair = tuple[int, int]


@dataclass
class Worked:
    """What is expected along rows and columns; one number stands for both."""

    name: str
    module: nn.Module
    before: int | Pair
    after: int | Pair
    alignment: int | Pair = 1
    rate: Fraction | int = 1
    surplus: int | Pair = 0
    offset: float | tuple[float, float] = 0.0
    channels: int = 2


def both(value):
    return value if isinstance(value, tuple) else (value, value)


class Branches(nn.Module):
    def __init__(self, *branches: nn.Module, add: bool = False) -> None:
        super().__init__()
        self.branches, self.add = nn.ModuleList(branches), add

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.branches]
        return sum(parts[1:], parts[0]) if self.add else torch.cat(parts, 1)


class ChannelNorm(nn.Module):
    """Layer norm over channels, which are moved to the end and back."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def transposed(kernel: int, stride: int, padding: int = 0, output_padding: int = 0, dilation: int = 1) -> nn.Module:
    return nn.ConvTranspose2d(2, 2, kernel, stride, padding, output_padding, dilation=dilation)


def antialiased(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", antialias=True)


half, third = Fraction(1, 2), Fraction(1, 3)
WORKED = [
    Worked("conv", conv(2, 2), 1, 1),  # [o-1, o+2)
    Worked("two convs", chain(conv(2, 2), conv(2, 2, 5)), 3, 3),  # 1 + 2
    Worked("kernel 5 x 3", conv(2, 2, (5, 3)), (2, 1), (2, 1)),
    Worked("dilation 4", conv(2, 2, padding=4, dilation=4), 4, 4),  # rows o-4, o, o+4
    Worked("valid", conv(2, 2, 5, padding=0), 0, 4, surplus=-4, offset=2.0),  # [o, o+5), centre o+2
    Worked("even kernel, padded", conv(2, 2, 2, padding=1), 1, 0, surplus=1, offset=-0.5),  # [o-1, o+1)
    Worked("even kernel, same", conv(2, 2, 4, padding="same"), 1, 2),  # 3 rows more: 1 before, 2 after
    Worked("dilated, same", conv(2, 2, 2, padding="same", dilation=3), 1, 2),  # o-1 and o+2
    # columns: 3 put in front, kernel 4: [o-3, o+1); rows: 2 put behind, kernel 3: [o, o+3)
    Worked("padded on one side", chain(nn.ZeroPad2d((3, 0, 0, 2)), conv(2, 2, (3, 4), padding=0)), (0, 3), (2, 0)),
    Worked("stride 2", conv(2, 2, stride=2), 1, 0, 2, half),  # [2o-1, 2o+2), cell [2o, 2o+2)
    Worked("strides 2, 2", chain(conv(2, 2, stride=2), conv(2, 2, stride=2)), 3, 0, 4, half**2),  # 2 * [2o-1, 2o+2)
    Worked("stride 3, valid", conv(2, 2, 5, stride=3, padding=0), 0, 2, 3, third, -1, 2.0),  # [3o, 3o+5); n/3 - 1 rows
    Worked("stride by 1 x 1", conv(2, 2, 1, stride=2), 0, 0, 2, half),  # 2o of [2o, 2o+2)
    Worked("max pool", nn.MaxPool2d(3, 2, 1), 1, 0, 2, half),  # [2o-1, 2o+2)
    Worked("max pool, dilated", nn.MaxPool2d(2, 1, dilation=3), 0, 3, surplus=-3, offset=1.5),  # o and o+3
    Worked("average pool", nn.AvgPool2d(4), 0, 0, 4, half**2, offset=1.5),  # [4o, 4o+4), centre 4o+1.5
    # [2o, 2o+3): from n = 2m rows ceil((2m-3)/2) + 1 = m, the last of which lacks a row; m - 1 without ceil_mode
    Worked("pool, ceil_mode", nn.MaxPool2d(3, 2, ceil_mode=True), 0, 1, 2, half, offset=1.0),
    Worked("pool, floor", nn.MaxPool2d(3, 2), 0, 1, 2, half, -1, 1.0),  # [2o, 2o+3)
    Worked("transposed 2", transposed(2, 2), 0, 0, rate=2, offset=-0.25),  # row m makes 2m, 2m+1; centres m, m
    # o = 2j - 1 + i, i < 4: 2m from m-1, m; 2m+1 from m, m+1; centres m-1/2, m+1/2 for m, m+1/2
    Worked("transposed 4", transposed(4, 2, 1), 1, 1, rate=2, offset=-0.25),
    # o = 2j - 1 + i, i < 3: 2m from m; 2m+1 from m, m+1
    Worked("transposed, output padding", transposed(3, 2, 1, 1), 0, 1, rate=2),
    # o = 3j + i, i < 5: 3m and 3m+1 from m-1, m; 3m+2 from m; centres -1/2, -1/2, 0 for 0, 1/3, 2/3
    Worked("transposed 5, stride 3", transposed(5, 3), 1, 0, rate=3, surplus=2, offset=-2 / 3),
    # o = 2j - 2 + 2i, i < 3: 2m from m-1, m, m+1; 2m+1 from nothing
    Worked("transposed, dilated", transposed(3, 2, 2, 1, 2), 1, 1, rate=2),
    Worked("nearest x 2", up(2, "nearest"), 0, 0, rate=2, offset=-0.25),  # 2m, 2m+1 from m
    # 3m, 3m+1 from 2m; 3m+2 from 2m+1, so that centres 0, 0, 1 stand for 0, 2/3, 4/3
    Worked("nearest x 3/2", up(1.5, "nearest"), 0, 0, 2, Fraction(3, 2), offset=-1 / 3),
    Worked("bilinear x 2", up(2), 1, 1, rate=2, offset=-0.25),  # 2m from m-1, m (at m-1/4); 2m+1 from m, m+1
    Worked("bilinear x 3", up(3), 1, 1, rate=3, offset=-1 / 6),  # from m-1, m; m, m+1 (weight 0); m, m+1
    Worked("bilinear / 2", up(0.5), 0, 0, 2, half, offset=0.5),  # at 2o+1/2: from 2o, 2o+1
    Worked("bicubic x 2", up(2, "bicubic"), 2, 2, rate=2, offset=-0.25),  # 2m from m-2..m+1; 2m+1 from m-1..m+2
    # centres m+1/4, m+3/4; rows whose own centres, j+1/2, are less than 1 away: m-1, m; m, m+1
    Worked("antialiased x 2", Apply(antialiased), 1, 1, rate=2, offset=-0.25),
    Worked("pixel shuffle", nn.PixelShuffle(2), 0, 0, rate=2, offset=-0.25, channels=4),
    Worked("pixel unshuffle", nn.PixelUnshuffle(2), 0, 0, 2, half, offset=0.5),
    # within: rows m-1..m+1 of 2 each, [2m-2, 2m+4), for 2m and 2m+1: 3 more on each side, and not rounded up to 4
    Worked("shuffles", chain(nn.PixelUnshuffle(2), conv(8, 8), nn.PixelShuffle(2)), 3, 3, 2),
    # the same and 1 more of the first conv: [2m-3, 2m+5)
    Worked("down and up", chain(conv(2, 2), nn.MaxPool2d(2), conv(2, 2), up(2, "nearest")), 4, 4, 2),
    # o needs o+1; but a read of n rows makes n-3 (columns n-4), so that much must be behind
    Worked("slice", Apply(lambda x: x[:, :, 1:-2, 2:-2]), 0, (3, 4), surplus=(-3, -4), offset=(1.0, 2.0)),
    Worked(
        "negative padding", Apply(lambda x: F.pad(x, (-1, 0, 0, -2))), 0, (2, 1), surplus=(-2, -1), offset=(0.0, 1.0)
    ),
    Worked("every second row", Apply(lambda x: x[:, :, ::2, 1::2]), 0, 0, 2, half, offset=(0.0, 1.0)),
    Worked("zeros before", chain(nn.ZeroPad2d((3, 0, 3, 0)), conv(2, 2, 4, padding=0)), 3, 0),
    Worked("replicated before", chain(nn.ReplicationPad2d((3, 0, 3, 0)), conv(2, 2, 4, padding=0)), 3, 0),
    # row 0 sees rows 3, 2, 1 mirrored at the border, and itself
    Worked("reflected before", chain(nn.ReflectionPad2d((3, 0, 3, 0)), conv(2, 2, 4, padding=0)), 3, 3),
    Worked("reflected after", chain(nn.ReflectionPad2d((0, 3, 0, 3)), conv(2, 2, 4, padding=0)), 3, 3),
    Worked("joined", Branches(conv(2, 2, (1, 5)), conv(2, 2, (7, 1))), (3, 2), (3, 2)),
    Worked("added", Branches(nn.Identity(), conv(2, 2, padding=2, dilation=2), conv(2, 2), add=True), 2, 2),
    Worked("channel softmax", nn.Softmax(1), 0, 0),
    Worked("channel layer norm", chain(conv(2, 2), ChannelNorm(), conv(2, 2)), 2, 2),
    Worked("dropout, batch norm", chain(nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Dropout2d(0.5), conv(2, 2)), 1, 1),
]


@pytest.mark.parametrize("worked", WORKED, ids=lambda w: w.name)
def test_as_worked_out_by_hand(worked: Worked):
    field = receptive_field(worked.module.eval(), worked.channels)
    assert (field.before, field.after) == (both(worked.before), both(worked.after))
    assert (field.alignment, field.rate) == (both(worked.alignment), both(worked.rate))
    assert field.surplus == both(worked.surplus)
    assert field.offset == pytest.approx(both(worked.offset))
    assert field.is_local and field.nonlocal_operations == ()


def test_axes_are_told_apart():
    """Rows: stride 2, [2o-1, 2o+2). Columns: kernel 5, padded by 1 where 2 would keep the size, [o-1, o+4)."""
    field = receptive_field(conv(2, 2, (3, 5), stride=(2, 1), padding=1), 2)
    assert (field.before, field.after, field.alignment) == ((1, 1), (0, 3), (2, 1))
    assert (field.rate, field.surplus, field.offset) == ((half, 1), (0, -2), (0.0, 1.0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return chain(conv(2, 4, stride=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True), transposed4(), nn.Dropout(0.3)).eval()


def transposed4() -> nn.Module:
    return nn.ConvTranspose2d(4, 2, 4, 2, 1)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_weights_do_not_matter(value: float):
    module = network()
    expected = receptive_field(module, 2)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(value if tensor.is_floating_point() else 0)
    assert receptive_field(module, 2) == expected


@pytest.mark.parametrize("training", [False, True])
def test_nothing_of_the_caller_changes(training: bool):
    module = network().train(training)
    module[2].eval()
    calls = []
    module[0].register_forward_hook(lambda *_: calls.append(1))
    modes = [m.training for m in module.modules()]
    state = {k: v.clone() for k, v in module.state_dict().items()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()]
    threads, random = torch.get_num_threads(), torch.random.get_rng_state()
    receptive_field(module, 2, reach=1)
    assert [m.training for m in module.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()] == hooks
    assert torch.get_num_threads() == threads and torch.equal(torch.random.get_rng_state(), random)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_grad_mode_of_the_caller_neither_matters_nor_changes(mode):
    module, expected = network(), receptive_field(network(), 2)
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        assert receptive_field(module, 2) == expected
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
