"""Which sizes of image a network runs on, and whether it does the same on all of them."""

from __future__ import annotations

from bisect import bisect_left

import torch
from torch import nn

from pipeline.network.analysis import analyse, same_operations
from pipeline.network.graph import CaptureError, blank, capture, dtype_of
from pipeline.network.receptive_field import Found
from pipeline.tiling.geometry import ReceptiveField

RECORDED = 1 << 15
"""Pixels of the largest image that a network is recorded on in whole."""
LENGTHS = (272, 544, 1088)
"""Rows or columns, about, of those that stand for larger ones, the last for all: more than Python code may ask for."""


def fails_at(module: nn.Module, channels: int, size: tuple[int, int]) -> str | None:
    """None where the module runs on an image of this size, else one line that says why it does not."""
    try:
        with torch.inference_mode():
            result = module(blank(module, channels, size))
    except Exception as error:  # whatever a stranger's module raises
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None if result.numel() else "its output is empty"


def least_size(module: nn.Module, channels: int, field: ReceptiveField) -> tuple[int, int]:
    """The least multiples of the alignment at which the module runs.

    Raises: ValueError where it runs on none of those that are tried.
    """
    a, reason = field.alignment, None
    for times in (*range(1, 33), *range(36, 129, 4)):
        reason = fails_at(module, channels, (a[0] * times, a[1] * times))
        if reason is None:
            break
    else:
        raise ValueError(f"the network fails on every image up to {a[0] * times} x {a[1] * times}: {reason}")
    multiples = [range(n, n * times + 1, n) for n in a]

    def works(rows: int, columns: int) -> bool:
        return fails_at(module, channels, (rows, columns)) is None

    columns = multiples[1][-1]
    rows = multiples[0][bisect_left(multiples[0], True, hi=times - 1, key=lambda n: works(n, columns))]
    columns = multiples[1][bisect_left(multiples[1], True, hi=times - 1, key=lambda n: works(rows, n))]
    return rows, columns


def standing_for(field: ReceptiveField, found: Found, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Sizes on which to look at what the network does on an image of that size.

    A large image is stood for by one as long and one as wide as it, or longer, of few lengths. There is none for one
    that is smaller than what was recorded: PyTorch itself runs other operations where tensors are thin.
    """
    recorded = found.first.shapes[found.first.input][2:]
    rows, columns = field.extended(*size)
    parts = [(rows, columns)]
    if rows * columns > RECORDED:
        thin = field.extended(*(max(max(recorded) + 1, least) for least in field.least))
        long = field.extended(*(next((n for n in LENGTHS if n >= side), LENGTHS[-1]) for side in (rows, columns)))
        parts = [(long[0], min(columns, thin[1])), (min(rows, thin[0]), long[1])]
    return [part for part in parts if all(a < b for a, b in zip(recorded, part, strict=True))]


def difference(module: nn.Module, channels: int, found: Found, size: tuple[int, int]) -> str:
    """What the network does otherwise on an image of that size than where it was recorded; "" where it does the same.

    Where the network fails on it, that is not said here.
    """
    try:
        there = capture(module, (channels, *size), dtype_of(module))
    except CaptureError:
        return ""
    where = f"{size[0]} x {size[1]} pixels"
    if differs := same_operations(found.first, there):
        return f"{differs}: on {where} the network runs other operations than on others"
    names = analyse(found.first, there).not_local
    return f"{'; '.join(names)} (seen on {where})" if names else ""
