"""Functions of an image run in bands of rows, and as a whole."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.network.analysis import analyse
from pipeline.network.graph import capture
from pipeline.network.program import Program, build
from pipeline.network.receptive_field import Found
from pipeline.network.streaming import Stream
from tests.zoo import Apply

Function = Callable[[Tensor], Tensor]

WEIGHT = torch.arange(36.0, dtype=torch.float64).view(1, 4, 3, 3)
"""Of a convolution of four channels to one."""


def line(function: Function) -> Function:
    """Works on (x, channels, y): the rows are the last dimension."""
    return lambda x: function(x[0].permute(2, 0, 1)).permute(1, 2, 0)[None]


def planes(function: Function) -> Function:
    """Works on (1, 1, channels, y, x)."""
    return lambda x: function(x[:, None])[:, 0]


def recorded(function: Function) -> Program:
    """The program of a function of (1, 4, y, x), from captures that are as small as they can be."""
    net = Apply(function).eval()
    first, second = (capture(net, (4, *size), torch.float64) for size in ((12, 24), (24, 36)))
    return build(net, 4, Found(first, second, analyse(first, second), (12, 12)))


def compared(program: Program, function: Function) -> Iterator[tuple[Tensor, Tensor]]:
    """The result in random bands, and that of the whole, for images of two sizes."""
    for height, width in ((24, 36), (60, 12)):
        draw = random.Random(height)
        image = torch.randint(-5, 6, (1, 4, height, width), generator=torch.Generator().manual_seed(height)).double()
        cuts = [0]
        while cuts[-1] < height:
            cuts.append(min(height, cuts[-1] + draw.choice((1, 2, 3, 7, 20))))
        bands = (image[:, :, a:b] for a, b in pairwise(cuts))
        with torch.inference_mode():
            yield torch.cat(list(Stream(program, height, width).run(bands)), 2), function(image)
