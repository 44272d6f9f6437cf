"""Which sizes of image a network runs on, and whether it does the same on all of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

import torch
from torch import nn

from pipeline.network.analysis import analyse, same_operations
from pipeline.network.graph import CaptureError, blank, capture, dtype_of
from pipeline.network.receptive_field import Found
from pipeline.tiling.geometry import ReceptiveField

RECORDED = 1 << 16
"""Pixels of the largest image that a network is recorded on in whole."""
LONG = 1088
"""Rows or columns, about, of those that stand for larger ones: more than a network's Python code may ask for."""


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


def differences(
    module: nn.Module, channels: int, found: Found, field: ReceptiveField, size: tuple[int, int]
) -> Iterator[tuple[tuple[int, int], str]]:
    """Sizes on which the network does something else than where it was recorded, and what, for an image of that size.

    A large image is stood for by one as long and one as wide as it, up to LONG. Of one that is smaller than those
    recorded nothing is said, and nothing where the network fails on it.
    """
    recorded = found.first.shapes[found.first.input][2:]
    for part in _standing_for(field, size, max(recorded) + 1):
        if any(a >= b for a, b in zip(recorded, part, strict=True)):
            continue  # PyTorch itself runs other operations where tensors are thin
        try:
            there = capture(module, (channels, *part), dtype_of(module))
        except CaptureError:
            continue
        if differs := same_operations(found.first, there):
            yield part, f"{differs}: on {part[0]} x {part[1]} pixels the network runs other operations than on others"
        elif names := analyse(found.first, there).not_local:
            yield part, f"{'; '.join(names)} (seen on {part[0]} x {part[1]} pixels)"


def _standing_for(field: ReceptiveField, size: tuple[int, int], least: int) -> Iterator[tuple[int, int]]:
    """Sizes that are recorded in the place of this one, of at least so many rows and columns if it has them."""
    rows, columns = field.extended(*size)
    if rows * columns <= RECORDED:
        yield rows, columns
        return
    long, thin = field.extended(LONG, LONG), field.extended(max(least, field.least[0]), max(least, field.least[1]))
    yield min(rows, long[0]), min(columns, thin[1])
    yield min(rows, thin[0]), min(columns, long[1])
