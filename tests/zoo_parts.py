"""Modules of which the networks of the zoo are made."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Minus(nn.Module):
    """The input without the noise that the body finds."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x - self.body(x)


class Fcn(nn.Module):
    """Three strides of 2, predictions of two of them added, large transposed kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 3, 3, padding=1)
        )
        self.second = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 3, padding=1))
        self.up = nn.ConvTranspose2d(2, 3, 4, 2, 1)
        self.last = nn.ConvTranspose2d(3, 2, 8, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return self.last(first + self.up(self.second(first)))


class Deeplab(nn.Module):
    """Dilated branches beside each other, resized to the input's size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.branches = nn.ModuleList(nn.Conv2d(3, 2, 3, padding=d, dilation=d) for d in (1, 2, 3))
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = self.head(torch.cat([branch(y) for branch in self.branches], 1))
        return F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)


class ConvNext(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm, self.wide, self.narrow = (
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.narrow(F.gelu(self.wide(y)))
        return x + y.permute(0, 3, 1, 2)


class HighResolution(nn.Module):
    """Two resolutions side by side, exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 3, 3, 2, 1)
        self.across, self.down = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 3, 2, 1)
        self.last = nn.Conv2d(5, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = F.silu(self.fine(x)), F.silu(self.coarse(x))
        fine, coarse = fine + F.interpolate(self.across(coarse), scale_factor=2.0), coarse + self.down(fine)
        return self.last(torch.cat([fine, F.interpolate(coarse, scale_factor=2, mode="bilinear")], 1))


class Pyramid(nn.Module):
    """Features of four strides, summed from the coarsest on; the output has stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(2 if i == 0 else 3, 3, 3, 2, 1) for i in range(3))
        self.lateral = nn.ModuleList(nn.Conv2d(3, 2, 1) for _ in range(3))
        self.smooth = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = []
        for stage in self.stages:
            x = torch.relu(stage(x))
            features.append(x)
        y = self.lateral[-1](features[-1])
        for lateral, feature in zip(self.lateral[-2::-1], features[-2::-1], strict=True):  # type: ignore[arg-type]
            y = lateral(feature) + F.interpolate(y, size=feature.shape[-2:], mode="nearest")
        return self.smooth(y)


class AdaptivePyramid(nn.Module):
    """Pools to a part of the image's size, which is local, unlike pooling to a fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        y = F.adaptive_avg_pool2d(x, (size[0] // 4, size[1] // 6))
        return self.conv(torch.cat([x, F.interpolate(y, size=size, mode="nearest")], 1))


class BlurPool(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 3, 3, 1])
        self.register_buffer("kernel", (line[:, None] * line / 64).expand(width, 1, 4, 4).clone())
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 2, 1, 2), mode="reflect"), self.kernel, stride=2, groups=self.width)  # type: ignore


class CeilPool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.conv(x), 3, 2, ceil_mode=True)
        y = F.avg_pool2d(y, 3, 2, ceil_mode=True, divisor_override=1)
        return self.last(torch.cat([x, F.interpolate(y, size=x.shape[-2:], mode="nearest")], 1))


class Unpooling(nn.Module):
    """SegNet: the places of the maxima are handed to the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(2, 3, 3, padding=1),
            nn.Conv2d(3, 3, 3, padding=1),
            nn.Conv2d(3, 2, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y, places = F.max_pool2d(self.a(x), 2, return_indices=True)
        return self.c(F.max_unpool2d(self.b(y), places, 2))


class Median(nn.Module):
    """The median of 3 x 3 windows."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return F.unfold(x, 3, padding=1).view(n, c, 9, h, w).median(2).values


class WindowAttention(nn.Module):
    """Attention within windows that do not overlap, which is local."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.side, self.qkv = side, nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        s = self.side
        y = x.view(n, c, h // s, s, w // s, s).permute(0, 2, 4, 3, 5, 1).reshape(-1, s * s, c)
        q, k, v = self.qkv(y).chunk(3, -1)
        y = torch.softmax(q @ k.transpose(1, 2) / c, -1) @ v
        y = y.view(n, h // s, w // s, s, s, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)
        return x + y


class PixelMlp(nn.Module):
    """Pixels as a sequence, channels mixed by linear layers and attention between heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = self.linear(self.norm(x.flatten(2).transpose(1, 2)))
        heads = y.reshape(n * h * w, 2, c // 2)
        y = y + (torch.softmax(heads @ heads.mT, -1) @ heads).reshape(n, h * w, c)
        return x + y.transpose(1, 2).view(n, c, h, w)


class Fold(nn.Module):
    """Overlapping patches taken out, weighted and put back."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 4, padding=1, stride=2)
        return F.fold(self.mix(patches), x.shape[-2:], 4, padding=1, stride=2)


class Partial(nn.Module):
    """Partial convolution: divides by how much of the window lies within the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inside = F.conv2d(torch.ones_like(x[:, :1]), torch.ones(1, 1, 3, 3, dtype=x.dtype), padding=1)
        return self.conv(x) * 9 / inside


class Bilateral(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        windows = F.pad(x, (2, 2, 2, 2), mode="reflect").unfold(2, 5, 1).unfold(3, 5, 1)
        weights = torch.exp(-((windows - x[..., None, None]) ** 2))
        return (weights * windows).sum((-2, -1)) / weights.sum((-2, -1))


class InPlace(nn.Module):
    """Results written into slices of tensors made beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.empty(x.shape[0], 4, *x.shape[2:], dtype=x.dtype)
        y[:, :2] = self.conv(x)
        y[:, 2:, ::2] = x[:, :, 1::2]
        y[:, 2:, 1::2] = 0
        y[:, 1].mul_(2)
        return self.last(y).relu_()


class Frame(nn.Module):
    """The border of the image is left as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, :, 1:-1, 1:-1] = self.conv(x)
        return y


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.conv(x)}


class Mosaic(nn.Module):
    """A colour filter's pattern laid over the image: it repeats every two rows and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(1, 1, *x.shape[2:], dtype=x.dtype)
        mask[:, :, ::2, 1::2] = 1
        return self.conv(x * mask)


class Inverses(nn.Module):
    """A matrix of each pixel, inverted, which PyTorch then checks for all pixels at once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        matrix = 2 * torch.eye(2, dtype=x.dtype) + self.conv(x).permute(0, 2, 3, 1)[..., None].square()
        return torch.linalg.inv(matrix).sum(-1).permute(0, 3, 1, 2)


def focus(x: Tensor) -> Tensor:
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


def haar(x: Tensor) -> Tensor:
    a, b, c, d = x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]
    return torch.cat([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], 1)


def antialiased(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)


def interleave(x: Tensor) -> Tensor:
    """Two halves of the channels as even and odd columns."""
    n, c, h, w = x.shape
    return torch.stack([x[:, : c // 2], x[:, c // 2 :]], -1).reshape(n, c // 2, h, 2 * w)


def insert_zeros(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    y = F.pad(x.reshape(n, c, h, 1, w, 1), (0, 1, 0, 0, 0, 1))
    return y.reshape(n, c, 2 * h, 2 * w)


def repeated(x: Tensor) -> Tensor:
    rows = torch.arange(2 * x.shape[2]) // 2
    return x[:, :, rows].repeat_interleave(2, 3)


def depth_to_space(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // 4, 2 * h, 2 * w)


def space_to_depth(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


def shifts(x: Tensor) -> Tensor:
    """The image moved by a few pixels in four directions, zeros moved in."""
    down, left = F.pad(x, (0, 0, 3, -3)), F.pad(x, (-2, 2, 0, 0))
    right = torch.cat([torch.zeros(*x.shape[:3], 1, dtype=x.dtype), x[..., :-1]], 3)
    return torch.cat([x, down, left, right], 1)
