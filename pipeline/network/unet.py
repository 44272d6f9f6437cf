"""A U-Net that keeps the size of its input (after Ronneberger et al., doi:10.1007/978-3-319-24574-4_28)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from pipeline.network.normalise import Normalisation, normalise_step


class UNet(nn.Module):
    """(n, channels, y, x) to logits (n, classes, y, x); y and x multiples of 2 ** depth.

    Level i has base * 2**i channels. Down by max pooling, up by 2 x 2 transposed convolution:

        0  double ------------------------- cat double -> classify
        1    `- double ------------ cat double -'
        2         `- double --------'                    (depth 2)

    norm: "batch"; "group" (sees the whole image, so tiles cannot equal it); "none".
    """

    def __init__(
        self,
        base: int = 16,
        depth: int = 4,
        norm: str = "batch",
        channels: int = 3,
        classes: int = 2,
        normalise: Normalisation | None = None,
    ) -> None:
        super().__init__()
        if norm not in ("batch", "group", "none"):
            raise ValueError(f"norm {norm!r}: one of batch, group, none")
        widths = [base * 2**level for level in range(depth + 1)]
        self.normalise = normalise_step(normalise)
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(
            _double(source, width, norm) for source, width in zip([channels, *widths], widths, strict=False)
        )
        below = list(pairwise(widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(wide, width, 2, stride=2) for width, wide in below)
        self.merge = nn.ModuleList(_double(2 * width, width, norm) for width, _ in below)
        self.classify = nn.Conv2d(base, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down[0](self.normalise(x))
        skips = []
        for stage in self.down[1:]:
            skips.append(x)
            x = stage(self.pool(x))
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        logits: Tensor = self.classify(x)
        return logits


def _double(source: int, width: int, norm: str) -> nn.Sequential:
    """Two 3 x 3 convolutions, each followed by the norm and a ReLU."""
    layers: list[nn.Module] = []
    for inputs in (source, width):
        layers.append(nn.Conv2d(inputs, width, 3, padding=1, bias=norm == "none"))
        if norm == "batch":
            layers.append(nn.BatchNorm2d(width))
        elif norm == "group":
            layers.append(nn.GroupNorm(_groups(width), width))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _groups(width: int) -> int:
    """The most groups, up to 8, that divide the width."""
    return next(n for n in range(min(8, width), 0, -1) if width % n == 0)
