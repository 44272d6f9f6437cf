"""The receptive field measured: which outputs change when a row of pixels does."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pipeline.network.graph import single_output
from pipeline.tiling.geometry import ReceptiveField


def run(module: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        return single_output(module(image))


def measured(module: nn.Module, channels: int, field: ReceptiveField) -> tuple[tuple[int, int], tuple[int, int]]:
    """Reach before and after, pairs (y, x), seen from rows and columns of every phase in the middle of an image and
    near its borders.

    A row counts as seen where a NaN in it or another finite value changes the output: a NaN is lost in a maximum or
    a comparison, and a finite value where the weight happens to be 0. Near borders only finite values count: linear
    interpolation reads a row there that has weight 0.
    """
    module = module.double().eval()
    # an image large enough for what the field says on both sides, and as much again where it says too little
    size = [
        a * (math.ceil((2.5 * (b + e) - s) / a) + 4)
        for a, b, e, s in zip(field.alignment, field.before, field.after, field.surplus, strict=True)
    ]
    image = torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = run(module, image)
    reach = [[0, 0], [0, 0]]

    def see(axis: int, i: int, values: tuple[float, ...]) -> None:
        """Changes row (axis 0) or column (axis 1) i."""
        for value in values:
            other = image.clone()
            other.select(2 + axis, i).fill_(value)
            rate = field.rate[axis]
            for o in (run(module, other) != whole).any(1)[0].any(1 - axis).nonzero().ravel().tolist():
                reach[0][axis] = max(reach[0][axis], math.floor(o / rate) - i)
                reach[1][axis] = max(reach[1][axis], i + 1 - math.ceil((o + 1) / rate))

    for axis, (n, a) in enumerate(zip(size, field.alignment, strict=True)):
        for phase in range(a):
            see(axis, n // a // 2 * a + phase, (math.nan, 9.0))
        for i in range(min(n, 24)):
            see(axis, i, (9.0, -9.0))
            see(axis, n - 1 - i, (9.0, -9.0))
    return (reach[0][0], reach[0][1]), (reach[1][0], reach[1][1])
