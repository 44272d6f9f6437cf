"""The networks that benchmarks/execution.py runs: with random weights, the same in every process."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import nn

from benchmarks.peers import add_missing_operators
from pipeline import load_network
from pipeline.analysis import Analysis
from pipeline.config import options
from pipeline.network.fcn import FCN
from pipeline.network.folder import save_network
from pipeline.network.receptive_field import receptive_field
from pipeline.network.unet import UNet
from pipeline.tiling.geometry import ReceptiveField

CHANNELS, CLASSES = 3, 2

kept_operators = cache(add_missing_operators)


def smp_unet() -> nn.Module:
    """With the weights that torch begins with: the library's, with random statistics, let rounding errors grow."""
    kept_operators()
    smp = importlib.import_module("segmentation_models_pytorch")
    net: nn.Module = smp.Unet("resnet18", encoder_weights=None, in_channels=CHANNELS, classes=CLASSES)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return net


def fcn() -> nn.Module:
    """Without batch norm; with weights that keep values at one scale."""
    net = FCN(8, (32, 64, 128, 256, 256), head=512, channels=CHANNELS, classes=CLASSES)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return net


NETWORKS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "unet": ("U-Net, base 16, depth 4, batch norm", lambda: UNet(16, 4, "batch", CHANNELS, CLASSES)),
    "fcn": ("FCN-8s, VGG-like, widths 32 to 256", fcn),
    "resnet": ("U-Net on ResNet-18, of segmentation-models-pytorch", smp_unet),
}


def network(name: str) -> tuple[nn.Module, ReceptiveField]:
    """The network in eval mode with random weights and statistics, the same in every process."""
    torch.manual_seed(0)
    net = NETWORKS[name][1]().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for around_0 in (module.running_mean, module.bias.data):
                around_0.normal_(0, 0.1)
            for around_1 in (module.running_var, module.weight.data):
                around_1.uniform_(0.5, 1.5)
    return net, receptive_field(net, CHANNELS)


def save_subject(path: Path) -> Path:
    """The U-Net as a network folder, for commands."""
    arguments = {"base": 16, "depth": 4, "norm": "batch", "channels": CHANNELS, "classes": CLASSES}
    save_network(path, "unet", arguments, network("unet")[0])
    return path


def analysed(net: nn.Module) -> Analysis:
    """What a run of the package derives from the network: its program and the height of its bands."""
    found = Analysis(load_network(net), options(channels=tuple(range(CHANNELS)), device="cpu"))
    assert found.program is not None, found.whole
    return found
