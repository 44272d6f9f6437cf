"""Which sizes of image a network runs on."""

from __future__ import annotations

from bisect import bisect_left

import torch
from torch import nn

from pipeline.network.graph import blank
from pipeline.tiling.geometry import ReceptiveField


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
