"""U-Nets of several makes, and networks made at random."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 3


class Unet(nn.Module):
    """A U-Net of two levels whose every part can be another."""

    def __init__(
        self,
        *,
        upsample: str = "transposed",
        down: str = "max",
        padding: int = 1,
        match: str = "crop",
        gates: bool = False,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()

        def conv(a: int, b: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(a, b, 3, padding=padding, padding_mode=padding_mode), nn.ReLU(inplace=True))

        self.match = match
        self.encoders = nn.ModuleList([conv(2, WIDTH), conv(WIDTH, WIDTH)])
        self.downs = nn.ModuleList(_down(down) for _ in range(2))
        self.middle = conv(WIDTH, WIDTH)
        self.ups = nn.ModuleList(_up(upsample) for _ in range(2))
        self.gates = nn.ModuleList(Gate() for _ in range(2)) if gates else None
        self.decoders = nn.ModuleList(conv(2 * WIDTH, WIDTH) for _ in range(2))
        self.head = nn.Conv2d(WIDTH, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle(x)
        for i, (up, decoder) in enumerate(zip(self.ups, self.decoders, strict=True)):
            skip, x = matched(skips.pop(), up(x), self.match)
            if self.gates is not None:
                skip = self.gates[i](skip, x)
            x = decoder(torch.cat([skip, x], 1))
        return self.head(x)


def _down(kind: str) -> nn.Module:
    if kind == "conv":
        return nn.Conv2d(WIDTH, WIDTH, 3, 2, 1)
    return nn.MaxPool2d(2) if kind == "max" else nn.AvgPool2d(2)


def _up(kind: str) -> nn.Module:
    if kind == "transposed":
        return nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2)
    if kind == "transposed-4":
        return nn.ConvTranspose2d(WIDTH, WIDTH, 4, 2, 1)
    if kind == "shuffle":
        return nn.Sequential(nn.Conv2d(WIDTH, 4 * WIDTH, 1), nn.PixelShuffle(2))
    return nn.Upsample(scale_factor=2, mode=kind)


def matched(skip: Tensor, x: Tensor, how: str) -> tuple[Tensor, Tensor]:
    """Both in one size: the centre of the skip, or the other one padded."""
    rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
    if how == "crop":
        top, left = rows // 2, columns // 2
        return skip[:, :, top : top + x.shape[2], left : left + x.shape[3]], x
    return skip, F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


class Gate(nn.Module):
    """An attention gate (Oktay et al. 2018): how much of the skip to let through, pixel by pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(WIDTH, 2, 1), nn.Conv2d(WIDTH, 2, 1), nn.Conv2d(2, 1, 1)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        return skip * torch.sigmoid(self.c(torch.relu(self.a(skip) + self.b(x))))


class Nested(nn.Module):
    """UNet++ of two levels (Zhou et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        c = WIDTH
        self.x00, self.x10, self.x20 = (nn.Conv2d(n, c, 3, padding=1) for n in (2, c, c))
        self.x01, self.x11, self.x02 = (nn.Conv2d(n * c, c, 3, padding=1) for n in (2, 2, 3))
        self.head = nn.Conv2d(c, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        def up(y: Tensor) -> Tensor:
            return F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)

        x00 = torch.relu(self.x00(x))
        x10 = torch.relu(self.x10(F.max_pool2d(x00, 2)))
        x01 = torch.relu(self.x01(torch.cat([x00, up(x10)], 1)))
        x20 = torch.relu(self.x20(F.max_pool2d(x10, 2)))
        x11 = torch.relu(self.x11(torch.cat([x10, up(x20)], 1)))
        return self.head(torch.relu(self.x02(torch.cat([x00, x01, up(x11)], 1))))


class Skip(nn.Module):
    """Down, something, up again, and the input beside it or added."""

    def __init__(self, inner: nn.Module, add: bool) -> None:
        super().__init__()
        self.inner, self.add, self.mix = inner, add, nn.Conv2d(2 * WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return x + y if self.add else self.mix(torch.cat([x, y], 1))


class Padded(nn.Module):
    """A convolution that keeps the size, with all padding by one call, unequal for even kernels."""

    def __init__(self, kernel: tuple[int, int], dilation: int, mode: str) -> None:
        super().__init__()
        self.conv, self.mode = nn.Conv2d(WIDTH, WIDTH, kernel, dilation=dilation), mode
        total = [(k - 1) * dilation for k in kernel]
        self.pads = (total[1] // 2, total[1] - total[1] // 2, total[0] - total[0] // 2, total[0] // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pads, mode=self.mode))


def random_layers(draw: random.Random, depth: int) -> nn.Module:
    """Layers that keep size and width, with up to `depth` levels of strides between them."""
    layers: list[nn.Module] = []
    for _ in range(draw.randint(1, 2)):
        if depth and draw.random() < 0.5:
            stride = draw.choice([(2, 2), (2, 2), (2, 1), (3, 3), (4, 2)])
            inner = nn.Sequential(random_down(draw, stride), random_layers(draw, depth - 1), random_up(draw, stride))
            layers.append(Skip(inner, draw.random() < 0.5) if draw.random() < 0.7 else inner)
        else:
            kernel = draw.choice([(1, 1), (3, 3), (2, 2), (3, 1), (1, 4), (5, 3)])
            mode = draw.choice(["constant", "constant", "reflect", "replicate"])
            layers.append(Padded(kernel, draw.choice([1, 1, 2]), mode))
        layers.append(
            draw.choice([nn.ReLU(), nn.ReLU(inplace=True), nn.Identity(), nn.MaxPool2d(3, 1, 1), nn.BatchNorm2d(WIDTH)])
        )
    return nn.Sequential(*layers)


def random_down(draw: random.Random, stride: tuple[int, int]) -> nn.Module:
    kind = draw.choice(["max", "max-wide", "conv", "conv-wide", "select", "unshuffle"])
    if kind == "max":
        return nn.MaxPool2d(stride)
    if kind == "max-wide":
        return nn.MaxPool2d([s + (s > 1) for s in stride], stride, [int(s > 1) for s in stride])
    if kind == "select":
        return nn.Conv2d(WIDTH, WIDTH, 1, stride)
    if kind == "unshuffle" and stride[0] == stride[1]:
        return nn.Sequential(nn.PixelUnshuffle(stride[0]), nn.Conv2d(WIDTH * stride[0] ** 2, WIDTH, 1))
    more = 2 if kind == "conv-wide" else 0
    return nn.Conv2d(WIDTH, WIDTH, (stride[0] + more, stride[1] + more), stride, more // 2)


def random_up(draw: random.Random, stride: tuple[int, int]) -> nn.Module:
    kind = draw.choice(["nearest", "bilinear", "transposed", "transposed-wide", "output-padding", "shuffle"])
    if kind == "shuffle" and stride[0] == stride[1]:
        return nn.Sequential(nn.Conv2d(WIDTH, WIDTH * stride[0] ** 2, 1), nn.PixelShuffle(stride[0]))
    if kind == "bilinear" and 3 not in stride:
        return nn.Upsample(scale_factor=tuple(map(float, stride)), mode="bilinear")
    if kind == "transposed":
        return nn.ConvTranspose2d(WIDTH, WIDTH, stride, stride)
    if kind == "transposed-wide":
        return nn.ConvTranspose2d(WIDTH, WIDTH, (stride[0] + 2, stride[1] + 2), stride, 1)
    if kind == "output-padding" and min(stride) > 1:
        return nn.ConvTranspose2d(WIDTH, WIDTH, (stride[0] + 1, stride[1] + 1), stride, 1, output_padding=1)
    return nn.Upsample(scale_factor=tuple(map(float, stride)), mode="nearest")


def random_ending(draw: random.Random) -> nn.Module:
    """The last layer: as large as the image, or coarser, finer or smaller."""
    kind = draw.choice(["same", "same", "coarse", "fine", "valid", "valid-coarse"])
    if kind == "coarse":
        return nn.Conv2d(WIDTH, 2, 3, draw.choice([2, 3]), 1)
    if kind == "fine":
        return nn.ConvTranspose2d(WIDTH, 2, 2, 2)
    if kind == "valid":
        return nn.Conv2d(WIDTH, 2, draw.choice([2, 3, 4]))
    if kind == "valid-coarse":
        return nn.Conv2d(WIDTH, 2, 3, 2)
    return nn.Conv2d(WIDTH, 2, 1)


class Random(nn.Sequential):
    """Random layers between a first convolution and an ending."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__(nn.Conv2d(2, WIDTH, 1), random_layers(draw, 2), random_ending(draw))
