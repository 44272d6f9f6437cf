"""A network that reckons with its image's size is not local; one that only arranges its maps by sizes is."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.network.receptive_field import UnknownOperation, receptive_field
from tests.zoo import chain, conv

Function = Callable[[Tensor], Tensor]


def second_of_two(x: Tensor) -> Tensor:
    """The sum of two maps, the second of which depends on the image's width in which it is."""
    one, two = x.relu(), x.relu() - 1
    return one + two + (one if x.shape[3] > 100 else two)


def written(x: Tensor) -> Tensor:
    y = x.repeat(1, 9, 1, 1)
    y[:, x.shape[3] // 32 : x.shape[3] // 32 + 1] = x[:, :1]
    return y


NUMBER = "is told a number that depends on the image's size"
REFUSED: dict[str, tuple[Function, str]] = {
    "quotient": (lambda x: x / x.shape[3], f"div: {NUMBER}"),
    "quotient by the height": (lambda x: x / x.shape[2], f"div: {NUMBER}"),
    "a tensor of one number": (lambda x: x * torch.tensor(float(x.shape[3])), f"mul: {NUMBER}"),
    "numbers for channels": (lambda x: x + torch.tensor([x.shape[3], 1.0])[:, None, None], f"add: {NUMBER}"),
    "as large as the image": (lambda x: x * torch.full(x.shape, float(x.shape[3])), f"mul: {NUMBER}"),
    "as long as its rows": (lambda x: x * torch.full((x.shape[2], 1), float(x.shape[2])), f"mul: {NUMBER}"),
    "like the image": (lambda x: x * torch.full_like(x, x.shape[3]), f"full_like: {NUMBER}"),
    "filled": (lambda x: x * torch.zeros_like(x).fill_(x.shape[3]), f"fill: {NUMBER}"),
    "a channel": (lambda x: torch.cat([x, torch.full_like(x, x.shape[3])], 1), f"full_like: {NUMBER}"),
    "kernel": (lambda x: F.conv2d(x, torch.ones(2, 2, 3, 3) / x.shape[3], padding=1), f"convolution: {NUMBER}"),
    "bias": (lambda x: F.conv2d(x, torch.ones(2, 2, 1, 1), torch.ones(2) * x.shape[3]), f"convolution: {NUMBER}"),
    "matrix": (lambda x: F.linear(x.movedim(1, 3), torch.eye(2) / x.shape[3]).movedim(3, 1), rf"\w+: {NUMBER}"),
    "statistics": (lambda x: F.batch_norm(x, torch.zeros(2), torch.ones(2) * x.shape[3]), f".*batch_norm.*: {NUMBER}"),
    "epsilon": (lambda x: F.batch_norm(x, torch.zeros(2), torch.ones(2), eps=1 / x.shape[3]), f".*norm.*: {NUMBER}"),
    "bound": (lambda x: x.clamp(max=x.shape[3] / 64), f"clamp: {NUMBER}"),
    "exponent": (lambda x: x ** (1 + 1 / x.shape[3]), f"pow: {NUMBER}"),
    "slope": (lambda x: F.leaky_relu(x, 1 / x.shape[3]), f"leaky_relu: {NUMBER}"),
    "softness": (lambda x: F.softplus(x, beta=x.shape[3] / 64), f"softplus: {NUMBER}"),
    "factor of a sum": (lambda x: torch.add(x, x, alpha=1 / x.shape[3]), f"add: {NUMBER}"),
    "choice": (lambda x: torch.where(x > 0, x, 1 / x.shape[3]), f"where: {NUMBER}"),
    "condition": (lambda x: torch.where(torch.tensor(x.shape[3] > 100), x, 2 * x), f"where: {NUMBER}"),
    "masked": (lambda x: x.masked_fill(x < 0, 1 / x.shape[3]), f"masked_fill: {NUMBER}"),
    "padding's value": (lambda x: F.pad(x, (1, 1, 1, 1), value=x.shape[3]), f"constant_pad_nd: {NUMBER}"),
    "divisor": (lambda x: F.avg_pool2d(x, 2, divisor_override=x.shape[3]), f"avg_pool2d: {NUMBER}"),
    "a channel by its number": (lambda x: x.repeat(1, 9, 1, 1)[:, x.shape[3] // 32], f"select: {NUMBER}"),
    "channels from a number on": (lambda x: x.repeat(1, 9, 1, 1).narrow(1, x.shape[3] // 32, 2), f"slice: {NUMBER}"),
    "channels listed": (lambda x: x.repeat(1, 9, 1, 1)[:, torch.tensor([0, x.shape[3] // 32])], f"index: {NUMBER}"),
    "channels written": (written, f"slice_scatter: {NUMBER}"),
    "rolled channels": (lambda x: x.roll(x.shape[3] // 32, 1), f"roll: {NUMBER}|.*: FAR"),
    "number of channels": (lambda x: x.repeat(1, 9, 1, 1)[:, : x.shape[3] // 32].sum(1, True), "slice: .* channels"),
    "repeated channels": (lambda x: x.repeat(1, x.shape[3] // 32, 1, 1).sum(1, True), "repeat: .* channels"),
    "expanded": (lambda x: x[:, :1].expand(-1, x.shape[3], -1, -1).sum(1, True), "expand: .* channels"),
    "padded channels": (lambda x: F.pad(x, (0, 0, 0, 0, x.shape[3], 0)).sum(1, True), "constant_pad_nd: pads by"),
    "scale, odd": (lambda x: F.interpolate(x, scale_factor=2.001, mode="bilinear"), "upsample_bilinear2d: resizes by"),
    "scale, near 1": (lambda x: F.interpolate(x, scale_factor=1.001), "upsample_nearest2d: resizes by"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_reckons_with_its_size_is_named_with_its_module(kind: str) -> None:
    function, reason = REFUSED[kind]
    lines = receptive_field(chain(conv(2, 2), chain(function)).eval(), 2).nonlocal_operations
    assert lines and all(line.startswith("1.0: ") for line in lines), lines
    assert any(re.fullmatch(f"1.0: ({reason}).*", line) for line in lines), lines


def filled(x: Tensor) -> Tensor:
    """Fills its input up to a multiple of 16, and cuts that off again."""
    y, x_ = x.shape[2:]
    return F.pad(x, (0, -x_ % 16, 0, -y % 16))[..., :y, :x_] * 2


def windows(x: Tensor) -> Tensor:
    """Every 8 x 8 window's own values, softmaxed."""
    n, c, y, w = x.shape
    parts = x.view(n, c, y // 8, 8, w // 8, 8).permute(0, 2, 4, 3, 5, 1).reshape(-1, 64, c)
    parts = torch.softmax(parts, 1) * torch.linspace(0, 1, 64)[:, None]
    return parts.view(n, y // 8, w // 8, 8, 8, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, y, w)


def checkered(x: Tensor) -> Tensor:
    y, w = torch.arange(x.shape[2]), torch.arange(x.shape[3])
    return x + (y[:, None] % 2) * (w % 4)


def by_hand(x: Tensor) -> Tensor:
    """Enlarged to twice the size by writing into rows and columns of zeros."""
    y = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    y[:, :, ::2, ::2] = x
    return y


def blank(x: Tensor) -> Tensor:
    result = torch.empty(x.shape)
    result.copy_(x)
    return result + torch.zeros(x.shape) + torch.ones(1, 1, *x.shape[2:])


LOCAL: dict[str, Function] = {
    "a constant": lambda x: x / 255,
    "channels": lambda x: x / x.shape[1],
    "dimensions and batch": lambda x: x / x.ndim * x.shape[0],
    "the kernel's size": lambda x: F.conv2d(x, (k := torch.ones(2, 2, 3, 3)) / (k.shape[2] * k.shape[3])),
    "a ratio of sizes": lambda x: x * (F.max_pool2d(x, 2).shape[3] / x.shape[3]),
    "not a number": lambda x: torch.where(x > 0, x, float("nan")).nan_to_num(),
    "not a number, told": lambda x: x.nan_to_num(nan=float("nan")),
    "infinite": lambda x: x.clamp(max=float("inf")),
    "padding's value": lambda x: F.pad(x, (1, 1, 1, 1), value=7.0),
    "filled up": filled,
    "scale factor": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "scale factor, computed": lambda x: F.interpolate(x, scale_factor=3 * x.shape[2] / x.shape[2], mode="bilinear"),
    "scale factor of a third": lambda x: F.interpolate(F.max_pool2d(x, 3), scale_factor=3, mode="nearest"),
    "a hundredth": lambda x: F.interpolate(F.interpolate(x, scale_factor=100), scale_factor=0.01),
    "size, computed": lambda x: F.interpolate(F.avg_pool2d(x, 2), size=x.shape[2:], mode="bilinear"),
    "view": lambda x: x.flatten(2).view(x.shape),
    "group norm of every place": lambda x: F.group_norm(x.movedim(1, 3).reshape(-1, 2), 1).view(
        1, *x.shape[2:], 2).movedim(3, 1),
    "response norm": lambda x: F.local_response_norm(x, 2),
    "windows": windows,
    "checkered": checkered,
    "by hand": by_hand,
    "blank": blank,
    "expanded": lambda x: x * torch.tensor(3.0).expand(x.shape),
    "nothing": lambda x: torch.cat([x.new_zeros(1, 2, 0, x.shape[3]), x], 2),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOCAL)
def test_what_is_arranged_by_its_size_stays_local(kind: str) -> None:
    field = receptive_field(chain(conv(2, 2), chain(LOCAL[kind])).eval(), 2)
    assert field.is_local, field.nonlocal_operations


OTHERS: dict[str, Function] = {
    "add": second_of_two,
    "cat": lambda x: torch.cat([x] * (x.shape[3] // 32), 1)[:, :2],
    "relu": lambda x: (x if x.shape[3] > 100 else x.relu()) * 2,
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_runs_otherwise_at_another_size_is_refused(name: str) -> None:
    with pytest.raises(UnknownOperation, match=r"^1\.0: (\w+): the network runs other operations on images"):
        receptive_field(chain(conv(2, 2), chain(OTHERS[name])).eval(), 2)


@torch.library.custom_op("number_tests::strange", mutates_args=())
def strange(x: Tensor, size: int) -> Tensor:
    return x.clone()


@strange.register_fake
def _(x: Tensor, size: int) -> Tensor:
    return torch.empty_like(x)


def test_what_an_operation_that_is_not_known_is_told_is_left_to_who_declares_it() -> None:
    module = chain(conv(2, 2), lambda x: strange(x, x.shape[3])).eval()
    assert receptive_field(module, 2, reach=3).before == (3, 3)
    lines = receptive_field(chain(module, lambda x: x / x.shape[3]), 2, reach=3).nonlocal_operations
    assert lines[0] == f"1: div: {NUMBER}"
