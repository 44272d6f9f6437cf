"""Small networks of many makes, and a generator of random ones, for tests that must hold for any network."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import zoo_parts as parts
from tests.zoo_unets import Nested, Random, Unet


@dataclass(frozen=True)
class Architecture:
    """A network that is local."""

    name: str
    build: Callable[[], nn.Module]
    channels: int = 2
    exact: bool = True
    """With integer weights and float64 its arithmetic has no rounding."""
    unet: bool = False
    hidden: bool = False
    """Less than the derived reach shows in footprints: a layer meets a border, or zeros put between rows, beyond it."""


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def conv(a: int, b: int, kernel: int | tuple[int, int] = 3, **options: object) -> nn.Conv2d:
    """A convolution that keeps the size unless told otherwise."""
    if "padding" not in options:
        options["padding"] = kernel // 2 if isinstance(kernel, int) else tuple(k // 2 for k in kernel)
    return nn.Conv2d(a, b, kernel, **options)  # type: ignore[arg-type]


def chain(*layers: nn.Module | Callable[[Tensor], Tensor]) -> nn.Sequential:
    return nn.Sequential(*(m if isinstance(m, nn.Module) else Apply(m) for m in layers))


def relu() -> nn.Module:
    return nn.ReLU(inplace=True)


def up(factor: float, mode: str = "bilinear") -> nn.Module:
    return nn.Upsample(scale_factor=factor, mode=mode)


PLAIN = [
    Architecture("conv", lambda: conv(2, 2)),
    Architecture(
        "dilated", lambda: chain(conv(2, 3), conv(3, 3, padding=2, dilation=2), conv(3, 2, padding=4, dilation=4))
    ),
    Architecture("valid", lambda: chain(nn.Conv2d(2, 3, 5), relu(), nn.Conv2d(3, 2, (3, 2)))),
    Architecture(
        "asymmetric", lambda: chain(nn.ZeroPad2d((3, 0, 0, 2)), conv(2, 3, (3, 4), padding=0), relu(), conv(3, 2))
    ),
    Architecture("coarse", lambda: chain(conv(2, 3, stride=2), relu(), conv(3, 3, 5, stride=2), conv(3, 2))),
    Architecture("coarse-valid", lambda: chain(nn.Conv2d(2, 3, 4, stride=2), relu(), nn.Conv2d(3, 2, 3, stride=2))),
    Architecture(
        "four-times-finer",
        lambda: chain(conv(2, 3, stride=2), relu(), nn.ConvTranspose2d(3, 3, 4, 4), up(2, "nearest"), conv(3, 2)),
    ),
    Architecture("edsr", lambda: chain(conv(2, 4), parts.Residual(4), conv(4, 8), nn.PixelShuffle(2), conv(2, 2))),
    Architecture("fsrcnn", lambda: chain(conv(2, 3, 5), nn.PReLU(3), nn.ConvTranspose2d(3, 2, 9, 3, 4, 2))),
    Architecture(
        "espcn-unshuffle", lambda: chain(nn.PixelUnshuffle(4), conv(32, 16), relu(), nn.PixelShuffle(4), conv(1, 2))
    ),
    Architecture("fcn-8s", lambda: parts.Fcn()),
    Architecture("deeplab", lambda: parts.Deeplab()),
    Architecture(
        "anisotropic",
        lambda: chain(
            conv(2, 3, (3, 1)),
            conv(3, 3, (1, 5), stride=(1, 2)),
            nn.MaxPool2d((2, 1)),
            nn.ConvTranspose2d(3, 2, (4, 3), (2, 2), (1, 1), (0, 1)),
        ),
    ),
    Architecture("even-same", lambda: chain(conv(2, 3, 4, padding="same"), conv(3, 2, 2, padding="same", dilation=3))),
    Architecture(
        "convnext",
        lambda: chain(conv(2, 4, 2, stride=2, padding=0), parts.ConvNext(4), nn.ConvTranspose2d(4, 2, 2, 2)),
        exact=False,
    ),
    Architecture(
        "separable-softmax",
        lambda: chain(conv(2, 4), conv(4, 4, 5, groups=4), nn.Softmax(1), conv(4, 2, 1)),
        exact=False,
    ),
    Architecture("hrnet", lambda: parts.HighResolution(), exact=False),
    Architecture("fpn", lambda: parts.Pyramid()),
    Architecture("adaptive-pyramid", lambda: parts.AdaptivePyramid(), exact=False),
    Architecture("stride-3", lambda: chain(conv(2, 3, 5, stride=3), relu(), up(3, "nearest"), conv(3, 2))),
    Architecture(
        "dncnn", lambda: parts.Minus(chain(conv(2, 3), relu(), conv(3, 3), nn.BatchNorm2d(3), relu(), conv(3, 2)))
    ),
    Architecture("blur-pool", lambda: chain(conv(2, 2), parts.BlurPool(2), conv(2, 2), up(2, "nearest")), exact=False),
    Architecture(
        "reflect",
        lambda: chain(
            nn.ReflectionPad2d(3), nn.Conv2d(2, 3, 7), relu(), nn.ReflectionPad2d((1, 2, 0, 3)), nn.Conv2d(3, 2, 4)
        ),
    ),
    Architecture(
        "replicate",
        lambda: chain(conv(2, 3, 5, padding_mode="replicate"), nn.ReplicationPad2d((2, 0, 1, 1)), nn.Conv2d(3, 2, 3)),
    ),
    Architecture("ceil-pool", lambda: parts.CeilPool()),
    Architecture("segnet", lambda: parts.Unpooling()),
    Architecture("median", lambda: parts.Median()),
    Architecture("focus", lambda: chain(parts.focus, conv(8, 4), up(2, "nearest"))),
    Architecture(
        "bicubic-3/2",
        lambda: chain(conv(2, 2), up(1.5, "bicubic"), conv(2, 2), nn.Upsample(scale_factor=2 / 3, mode="bilinear")),
        exact=False,
    ),
    Architecture(
        "nearest-exact", lambda: chain(up(1.5, "nearest-exact"), conv(2, 2, stride=3), up(2, "nearest-exact"))
    ),
    Architecture("bilinear-3", lambda: chain(conv(2, 2, stride=3), up(3)), exact=False),
    Architecture("bilinear-down", lambda: chain(conv(2, 2), up(0.25), conv(2, 2), up(4)), exact=False),
    Architecture("antialias", lambda: chain(parts.antialiased, conv(2, 2), up(2)), exact=False),
    Architecture("window-attention", lambda: chain(conv(2, 4), parts.WindowAttention(4, 4), conv(4, 2)), exact=False),
    Architecture("channel-mlp", lambda: chain(conv(2, 4), parts.PixelMlp(4), conv(4, 2)), exact=False),
    Architecture(
        "transposed-4", lambda: chain(conv(2, 3, 4, stride=2, padding=1), nn.ConvTranspose2d(3, 2, 4, 2, 1), conv(2, 2))
    ),
    Architecture(
        "transposed-output-padding",
        lambda: chain(conv(2, 3, stride=2), nn.ConvTranspose2d(3, 2, 3, 2, 1, output_padding=1)),
    ),
    Architecture(
        "transposed-dilated",
        lambda: chain(conv(2, 3, stride=2), nn.ConvTranspose2d(3, 2, 3, 2, 2, output_padding=1, dilation=2)),
    ),
    Architecture("fold", lambda: parts.Fold()),
    Architecture(
        "crop", lambda: chain(conv(2, 2, 7, padding=0), lambda x: F.pad(x, (-1, 2, -2, 0)), conv(2, 2, padding=0))
    ),
    Architecture("haar", lambda: chain(conv(2, 2), parts.haar, conv(8, 4), nn.ConvTranspose2d(4, 2, 2, 2))),
    Architecture("partial-conv", lambda: parts.Partial(), exact=False),
    Architecture("bilateral", lambda: parts.Bilateral(), exact=False),
    Architecture("interleave", lambda: chain(conv(2, 4), parts.interleave, conv(2, 2))),
    Architecture(
        "zero-insertion", lambda: chain(parts.insert_zeros, conv(2, 2, 4, padding="same"), nn.AvgPool2d(2)), hidden=True
    ),
    Architecture("in-place", lambda: parts.InPlace()),
    Architecture("channel-slices", lambda: chain(conv(2, 9), lambda x: x[:, :4] - x[:, 3:7] + x[:, 1::2], conv(4, 2))),
    Architecture("indexed", lambda: chain(conv(2, 2), parts.repeated, conv(2, 2), lambda x: x[:, :, 1::2, ::2])),
    Architecture("lp-pool", lambda: chain(conv(2, 2), nn.LPPool2d(2, 3, 2), conv(2, 2)), exact=False),
    Architecture(
        "depth-to-space-view", lambda: chain(conv(2, 8), parts.depth_to_space, conv(2, 2), parts.space_to_depth)
    ),
    Architecture(
        "tensor-unfold",
        lambda: chain(conv(2, 2), lambda x: x.unfold(2, 3, 1).amax(-1), lambda x: x.unfold(3, 4, 2).sum(-1)),
    ),
    Architecture(
        "average-borders", lambda: chain(nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv(2, 2)), exact=False
    ),
    Architecture("shifted", lambda: chain(parts.shifts, conv(8, 2, 1))),
    Architecture("dropped-rows", lambda: chain(conv(2, 2), lambda x: x[:, :, 1:-1, :-1], conv(2, 2)), hidden=True),
    Architecture(
        "holes",
        lambda: chain(conv(2, 2, 2, stride=2, padding=0), nn.ConvTranspose2d(2, 2, 1, 2), conv(2, 2)),
        hidden=True,
    ),
    Architecture("frame", lambda: parts.Frame()),
    Architecture("dictionary", lambda: parts.Named()),
    Architecture("periodic-mask", lambda: parts.Mosaic()),
]

UNETS = [
    Architecture("unet", lambda: Unet(), unet=True),
    Architecture("unet-bilinear", lambda: Unet(upsample="bilinear"), unet=True),
    Architecture("unet-nearest-strided", lambda: Unet(upsample="nearest", down="conv"), unet=True),
    Architecture("unet-valid", lambda: Unet(padding=0), unet=True),
    Architecture("unet-pad-to-match", lambda: Unet(padding=0, match="pad"), unet=True),
    Architecture("unet-attention-gates", lambda: Unet(gates=True), exact=False, unet=True),
    Architecture("unet-reflect", lambda: Unet(padding_mode="reflect"), unet=True),
    Architecture("unet-shuffle", lambda: Unet(upsample="shuffle"), unet=True),
    Architecture("unet-transposed-4", lambda: Unet(upsample="transposed-4", down="average"), exact=True, unet=True),
    Architecture("unet-plus-plus", lambda: Nested(), unet=True),
]

ZOO = PLAIN + UNETS


def integer_weights_(module: nn.Module, seed: int = 0) -> nn.Module:
    """Makes all weights small integers, so that results in float64 are exact whatever the order of additions.

    About four weights of each output are not 0, so that numbers stay far below 2 ** 53. Returns the module in float64
    and eval mode.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            for tensor in part.parameters(recurse=False):
                inputs = max(1, tensor[0].numel()) if tensor.ndim > 1 else 1
                some = torch.rand(tensor.shape, generator=generator) < 4 / inputs
                tensor.copy_(torch.randint(-1, 3, tensor.shape, generator=generator) * some)
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.copy_(torch.randint(-1, 2, part.running_mean.shape, generator=generator))  # type: ignore
                part.running_var.fill_(1)  # type: ignore[union-attr]
                part.eps = 0.0
    return module.double().eval()


def random_network(seed: int) -> nn.Module:
    """A random small fully convolutional network of two channels whose arithmetic is exact with integer weights.

    Down and up again by random operations, with skips; the output may be coarser, finer or smaller than the input.
    """
    return Random(random.Random(seed)).eval()
