"""Identities: the same for the same network in every process, another for any that differs."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from torch import Tensor, nn

from pipeline.network.builtin import build
from pipeline.network.folder import save_network
from pipeline.network.loading import load_network

ARGUMENTS = {"base": 4, "depth": 1, "channels": 3, "classes": 2}


def small(classes: int = 2) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, classes, 1)
    ).eval()


def test_identity_of_the_same_network_in_another_process(tmp_path: Path) -> None:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)
            self.names = {"b", "a", "c"}
            self.how: Callable[[Tensor], Tensor] = lambda x: x * 2

        def forward(self, x: Tensor) -> Tensor:
            return self.how(self.conv(x))

    torch.manual_seed(3)
    network = load_network(Local().eval(), scale=0.5)
    (tmp_path / "network").write_bytes(cloudpickle.dumps(network))
    code = (
        "import pickle, sys; from pipeline.network.loading import load_network;"
        "network = pickle.load(open(sys.argv[1], 'rb')); print(network.identity, load_network('unet-tiny').identity)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "network")], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [network.identity, load_network("unet-tiny").identity]


def _setting(module: nn.Module) -> None:
    module[4].stride = (2, 2)  # type: ignore[index, assignment]


def _weight(module: nn.Module) -> None:
    with torch.no_grad():
        module[0].weight[0, 0, 0, 0] += 1e-3  # type: ignore[index]


def _buffer(module: nn.Module) -> None:
    module[1].running_mean[0] += 1  # type: ignore[index]


def _hidden_buffer(module: nn.Module) -> None:
    module.register_buffer("hidden", torch.ones(1), persistent=False)


def _attribute(module: nn.Module) -> None:
    module.factor = 2.0  # type: ignore[assignment]


def _part(module: nn.Module) -> None:
    module[2] = nn.Tanh()  # type: ignore[operator]


@pytest.mark.parametrize("change", [_setting, _weight, _buffer, _hidden_buffer, _attribute, _part])
def test_identity_tells_networks_apart(change: Callable[[nn.Module], None]) -> None:
    before, module = load_network(small()).identity, small()
    assert load_network(module).identity == before
    change(module)
    assert load_network(module).identity != before


def test_identity_sees_the_code() -> None:
    def of(factor: float) -> str:
        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = small()[0]

        source = f"def forward(self, x):\n    return self.conv(x) * {factor}"
        space: dict[str, Any] = {}
        exec(source, space)
        Scaled.forward = space["forward"]  # type: ignore[method-assign]
        return load_network(Scaled().eval()).identity

    assert of(2.0) == of(2.0) != of(3.0)


def test_identity_does_not_depend_on_where_a_folder_lies(tmp_path: Path) -> None:
    module = build("unet", ARGUMENTS)
    save_network(tmp_path / "a", "unet", ARGUMENTS, module, name="one")
    save_network(tmp_path / "b", "unet", ARGUMENTS, module, name="two", data="elsewhere")
    save_network(tmp_path / "c", "unet", ARGUMENTS, module, normalise={"scale": 0.5})
    one, two, other = (load_network(tmp_path / name).identity for name in "abc")
    assert one == two != other


def test_a_network_travels() -> None:
    network = load_network(small(), scale=2)
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(pickle.loads(pickle.dumps(network)).module(image), network.module(image))


def test_another_precision_is_a_copy() -> None:
    network = load_network("unet-tiny")
    double = network.to("cpu", torch.float64)
    assert {p.dtype for p in double.parameters()} == {torch.float64}
    assert {p.dtype for p in network.module.parameters()} == {torch.float32}
    assert network.to("cpu", torch.float32) is network.module
