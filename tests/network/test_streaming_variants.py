"""Operations run in bands with other strides, paddings and dilations, and on rows that lie in other places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.bands import WEIGHT, Function, compared, line, planes, recorded

aten: Any = torch.ops.aten


def unpooling(kernel: Any, stride: Any, padding: Any = 0, dilation: int = 1, ceil: bool = False) -> Function:
    """The maxima, and what lies beside them in the pooled map, put back: later windows write over earlier ones."""

    def run(x: Tensor) -> Tensor:
        y, places = F.max_pool2d(x, kernel, stride, padding, dilation, ceil, return_indices=True)
        return aten.max_unpool2d(y + F.pad(y, (0, 0, 1, -1)), places, x.shape[2:])

    return run


def folding(**options: Any) -> Function:
    return lambda x: F.fold(F.unfold(x, **options).abs(), x.shape[2:], **options)


def windows(x: Tensor, side: int = 4) -> Tensor:
    """(windows, places, channels), as attention in windows takes them."""
    y = x.unflatten(2, (-1, side)).unflatten(4, (-1, side))
    return y.permute(0, 2, 4, 3, 5, 1).reshape(-1, side * side, x.shape[1])


def swin(x: Tensor, side: int = 4) -> Tensor:
    """Attention of two heads in windows, without what would round."""
    heads = windows(x, side).unflatten(2, (2, -1)).transpose(1, 2)
    y = ((heads @ heads.mT).clamp(-1, 1) @ heads).transpose(1, 2).flatten(2)
    size = x.shape[2] // side, x.shape[3] // side, side, side, x.shape[1]
    return x + y.view(1, *size).permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


def heads_first(x: Tensor) -> Tensor:
    """Heads and windows in one dimension, the heads slower."""
    y = windows(x).unflatten(2, (2, -1)).permute(2, 0, 1, 3).flatten(0, 1)
    y = (y @ y.mT @ y).unflatten(0, (2, -1)).permute(1, 2, 0, 3).flatten(2)
    size = x.shape[2] // 4, x.shape[3] // 4, 4, 4, x.shape[1]
    return y.view(1, *size).permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


def mosaic(x: Tensor) -> Tensor:
    mask = torch.zeros(1, 1, *x.shape[2:], dtype=x.dtype)
    mask[:, :, ::3, 1::2], mask[:, :, 1::3, ::2] = 1, 2
    return x * mask


def zeros_between(x: Tensor) -> Tensor:
    y = torch.zeros(1, 4, 2 * x.shape[2], 3 * x.shape[3], dtype=x.dtype)
    y[:, :, 1::2, ::3] = x
    return y


def shifted(rows: int) -> Function:
    """Zeros moved in, by a write."""

    def run(x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        if rows > 0:
            y[:, :, rows:] = x[:, :, :-rows]
        else:
            y[:, :, :rows] = x[:, :, -rows:]
        return y

    return run


def frame(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 2:-1, 1:-3] = F.conv2d(x, WEIGHT[:, :, :, :1].expand(4, 4, 3, 5)[:, :, [0, 1, 2, 2]])
    y[:, :, 1::3] += 7
    return y


def repeated(x: Tensor) -> Tensor:
    """Every row twice, by a view: rows in groups of two."""
    return x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).reshape(1, 4, 2 * x.shape[2], 2 * x.shape[3])


def mirrored(x: Tensor) -> Tensor:
    """Rows in groups of four, the last one of each first."""
    return x.unflatten(2, (-1, 4)).flip(3).flatten(2, 3)


def less_its_maximum(x: Tensor) -> Tensor:
    y = x.unflatten(2, (-1, 4))
    return (y - y.amax(3, True)).flatten(2, 3)


def upright(function: Function) -> Function:
    """Works on (1, channels, x, y)."""
    return lambda x: function(x.transpose(2, 3)).transpose(2, 3)


def pooled(x: Tensor, rows: float, columns: float) -> Tensor:
    return F.adaptive_max_pool2d(x, (int(x.shape[2] * rows), int(x.shape[3] * columns)))


VARIANTS: dict[str, Function] = {
    "unpool 2": unpooling(2, 2), "unpool 3, stride 2": unpooling(3, 2, 1), "unpool 3, stride 1": unpooling(3, 1, 1),
    "unpool (3, 2), stride (1, 2)": unpooling((3, 2), (1, 2), (1, 0)), "unpool dilated": unpooling(3, 2, 1, 2),
    "unpool dilated, stride 1": unpooling(3, 1, 1, 2), "unpool with ceil": unpooling(3, 2, 0, 1, True),
    "unpool stride 3": unpooling(2, 3), "unpool what is all the same": lambda x: unpooling(3, 1, 1)(0 * x),
    "unpool what is all -inf": lambda x: unpooling(3, 1, 1)(torch.where(x < 4, -torch.inf, x)).clamp(min=-9),
    "unpool twice": lambda x: unpooling(2, 2)(unpooling(2, 2)(x) + x),
    "pool to a half and a third": lambda x: pooled(x, 1 / 2, 1 / 3),
    "pool columns alone": lambda x: pooled(x, 1, 1 / 4),
    "pool to twice the size": lambda x: pooled(x, 2, 2), "pool to two thirds": lambda x: pooled(x, 2 / 3 + 1e-9, 1),
    "fold 3": folding(kernel_size=3, padding=1), "fold stride 2": folding(kernel_size=4, padding=1, stride=2),
    "fold dilated": folding(kernel_size=(3, 2), padding=(2, 1), dilation=2, stride=(2, 1)),
    "fold with holes": folding(kernel_size=2, stride=3), "fold 1": folding(kernel_size=1, stride=2),
    "windows in both directions": lambda x: x.unfold(2, 4, 2).unfold(3, 3, 3).sum((-1, -2)),
    "windows with holes": lambda x: x.unfold(-2, 2, 3).sum(-1),
    "mean of blocks": lambda x: x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).sum((3, 5)),
    "blocks of blocks": lambda x: x.unflatten(2, (-1, 2)).amax(3).unflatten(2, (-1, 3)).sum(3),
    "blocks less their maximum": less_its_maximum,
    "blocks of other sizes": lambda x: mirrored(x).unflatten(2, (-1, 12)).cumsum(3).flatten(2, 3),
    "windows around blocks": lambda x: F.max_pool2d(mirrored(x), 3, 2, 1) + F.conv2d(mirrored(x), WEIGHT, None, 2, 1),
    "finer by a view": repeated, "finer by a view, then windows": lambda x: F.conv2d(repeated(x), WEIGHT, padding=1),
    "finer in two ways": lambda x: torch.cat([repeated(x), F.interpolate(x, scale_factor=2)], 1) + 1,
    "part of what is finer": lambda x: repeated(x)[:, :, 1::3, 2:],
    "padded blocks": lambda x: F.pad(repeated(x), (1, 1, 2, 1)),
    "rows and channels in one": lambda x: x.flatten(1, 2).relu().unflatten(1, x.shape[1:3]),
    "column after column": lambda x: x.transpose(2, 3).flatten(2).relu().unflatten(2, (-1, x.shape[2])).transpose(2, 3),
    "attention in windows": swin, "and then a convolution": lambda x: F.conv2d(swin(x), WEIGHT, padding=1),
    "in two sizes of windows": lambda x: swin(swin(x).clamp(-3, 3), 2), "heads before windows": heads_first,
    "depth to space": lambda x: x.view(1, 2, 2, 1, *x.shape[2:]).permute(0, 3, 4, 1, 5, 2).flatten(4).flatten(2, 3),
    "upright windows": upright(lambda x: F.conv2d(x, WEIGHT, None, (1, 2), (1, 2))),
    "upright pooling": upright(lambda x: F.max_pool2d(x, (3, 2), (1, 2), (1, 1))),
    "upright resizing": upright(lambda x: F.interpolate(x, scale_factor=(2, 3))),
    "upright padding": upright(lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect")),
    "upright transposed": upright(lambda x: F.conv_transpose2d(x, WEIGHT.transpose(0, 1), None, 2, 1, 1)),
    "one dimension": line(lambda x: F.conv1d(x, WEIGHT[:, :, 0], padding=2)),
    "three dimensions": planes(lambda x: F.conv3d(x, WEIGHT[:, :3].unsqueeze(0), None, (1, 2, 1), 1)),
    "three, transposed": planes(lambda x: F.conv_transpose3d(x, WEIGHT[:, :3][None], None, (1, 2, 2), 1, (0, 1, 0))),
    "means in three": planes(lambda x: F.avg_pool3d(x, (1, 4, 4), (1, 2, 2), (0, 1, 1), True)),
    "far beyond the kernel": lambda x: F.conv2d(x, WEIGHT[:, :, :1, :1], torch.ones(1, dtype=x.dtype), padding=40),
    "padding beyond the kernel": lambda x: F.conv2d(x, WEIGHT, torch.ones(1, dtype=x.dtype), padding=5),
    "mosaic": mosaic, "zeros between": zeros_between,
    "written below": shifted(5), "written above": shifted(-5), "frame": frame,
    "joined with zeros": lambda x: torch.cat([x, torch.zeros(1, 2, *x.shape[2:], dtype=x.dtype)], 1),
}  # fmt: skip
"""The same, and shapes that views bring rows into, in other settings; all without rounding."""


@pytest.mark.parametrize("name", VARIANTS)
def test_no_bit_differs_where_nothing_rounds(name: str) -> None:
    for result, whole in compared(recorded(VARIANTS[name]), VARIANTS[name]):
        assert torch.equal(result, whole)
