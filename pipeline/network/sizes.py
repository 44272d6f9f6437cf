"""The sizes on which a network runs at all."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.network.graph import device_of, dtype_of, single_output
from pipeline.tiling.geometry import ReceptiveField

LARGEST = 4096
"""Pixels a side after which the search for a size that works gives up."""


def fails_at(module: nn.Module, channels: int, size: tuple[int, int]) -> str | None:
    """Why the network fails on an image of that size (y, x), in one line; None where it works."""
    image = torch.zeros((1, channels, *size), dtype=dtype_of(module), device=device_of(module))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = single_output(module(image))
    except Exception as error:  # whatever the caller's code may raise
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None if output.numel() else f"its output is empty, of shape {tuple(output.shape)}"


def least_size(module: nn.Module, channels: int, field: ReceptiveField) -> tuple[int, int]:
    """The least height and width, multiples of the alignment, on which the network works.

    Raises:
        ValueError: it works on none of at most LARGEST pixels a side.
    """
    a = field.alignment
    enough = 1
    while fails_at(module, channels, (a[0] * enough, a[1] * enough)):
        enough *= 2
        if min(a) * enough > LARGEST:
            raise ValueError(f"the network works on no image of at most {LARGEST} x {LARGEST} pixels")
    found = []
    for axis in (0, 1):
        low, high = enough // 2, enough  # fails at low, works at high
        while high - low > 1:
            middle = (low + high) // 2
            times = [enough, enough]
            times[axis] = middle
            low, high = (
                (middle, high) if fails_at(module, channels, (a[0] * times[0], a[1] * times[1])) else (low, middle)
            )
        found.append(high * a[axis])
    return found[0], found[1]
