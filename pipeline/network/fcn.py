"""FCN-32s, 16s and 8s (after Long, Shelhamer & Darrell 2015, doi:10.1109/CVPR.2015.7298965)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pipeline.network.normalise import Normalisation, normalise_step


class FCN(nn.Module):
    """(n, channels, y, x) to logits (n, classes, y, x); y and x multiples of 32.

    A VGG-like backbone of five blocks, each ended by 2 x 2 pooling; two convolutions in place of VGG's fully
    connected layers; class scores at stride 32, upsampled to the input's size by transposed convolutions:

        variant 32   scores(pool5) --------------------------------------------- x 32
        variant 16   scores(pool5) x 2 + scores(pool4) ------------------------- x 16
        variant 8    scores(pool5) x 2 + scores(pool4) x 2 + scores(pool3) ----- x 8

    Convolutions pad by half their kernel, where the paper pads the image by 100 and crops; upsampling starts as
    bilinear interpolation and is learned. VGG-16's own widths are (64, 128, 256, 512, 512) with a head of 4096.
    """

    def __init__(
        self,
        variant: int = 8,
        widths: Sequence[int] = (16, 32, 64, 128, 128),
        convolutions: Sequence[int] = (2, 2, 3, 3, 3),
        head: int = 256,
        channels: int = 3,
        classes: int = 2,
        normalise: Normalisation | None = None,
    ) -> None:
        super().__init__()
        if variant not in (32, 16, 8):
            raise ValueError(f"variant {variant!r}: one of 32, 16, 8")
        if len(widths) != 5 or len(convolutions) != 5:
            raise ValueError(f"widths {list(widths)} and convolutions {list(convolutions)}: five numbers each")
        self.normalise = normalise_step(normalise)
        self.blocks = nn.ModuleList(
            _block(source, width, count)
            for (source, width), count in zip(pairwise([channels, *widths]), convolutions, strict=True)
        )
        self.head = nn.Sequential(
            nn.Conv2d(widths[4], head, 7, padding=3),
            nn.ReLU(inplace=True),
            nn.Conv2d(head, head, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(head, classes, 1),
        )
        skips = {32: [], 16: [widths[3]], 8: [widths[3], widths[2]]}[variant]
        self.scores = nn.ModuleList(nn.Conv2d(width, classes, 1) for width in skips)
        self.doubles = nn.ModuleList(_upsample(classes, 2) for _ in skips)
        self.upsample = _upsample(classes, variant)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalise(x)
        pools = []
        for block in self.blocks:
            x = block(x)
            pools.append(x)
        x = self.head(pools.pop())
        for score, double in zip(self.scores, self.doubles, strict=True):
            x = double(x) + score(pools.pop())
        logits: Tensor = self.upsample(x)
        return logits


def _block(source: int, width: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in [source] + [width] * (count - 1):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


def _upsample(classes: int, factor: int) -> nn.ConvTranspose2d:
    """Upsampling of each class by itself, which starts as bilinear interpolation."""
    layer = nn.ConvTranspose2d(
        classes, classes, 2 * factor, stride=factor, padding=factor // 2, groups=classes, bias=False
    )
    with torch.no_grad(), torch.device("cpu"):  # on meta, where outlines are made, PyTorch would import its compiler
        slope = 1 - (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
        layer.weight.copy_(slope[:, None] * slope)
    return layer
