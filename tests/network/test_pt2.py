"""Networks from .pt2 files: any size, one output, eval mode."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.network.loading import load_network

AUTO = torch.export.Dim.AUTO


class Plain(nn.Module):
    """A pooling, a constant and an upsampling, none of which knows the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 1)
        self.shift = torch.linspace(0, 1, 4).view(1, 4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.first(x))), 2) + self.shift
        result: Tensor = self.last(F.interpolate(x, scale_factor=2.0))
        return result


def saved(path: Path, module: nn.Module, dynamic: bool = True, size: tuple[int, int] = (32, 48)) -> Path:
    spec = ({2: AUTO, 3: AUTO},) if dynamic else None
    torch.export.save(torch.export.export(module, (torch.rand(1, 3, *size),), dynamic_shapes=spec), path)
    return path


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    return Plain().eval()


@pytest.fixture(scope="module")
def harmless(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("pt2") / "harmless.pt2", module)


@pytest.mark.parametrize("dynamic", [True, False])
def test_runs_at_any_size(tmp_path: Path, module: nn.Module, dynamic: bool) -> None:
    network = load_network(saved(tmp_path / "net.pt2", module, dynamic))
    assert (network.name, network.channels, network.classes) == ("net", 3, 2)
    for size in ((32, 48), (64, 34), (2, 130)):
        image = torch.rand(1, 3, *size)
        with torch.no_grad():
            assert torch.equal(network.module(image), module(image))


def test_known_again_and_in_other_precision(harmless: Path) -> None:
    one, two = load_network(harmless), load_network(harmless)
    assert one.identity == two.identity
    assert one.to("cpu", torch.float64)(torch.rand(1, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64
    assert not any(part.training for part in one.module.modules())
    copy = pickle.loads(pickle.dumps(one))
    assert copy.identity == one.identity


def test_a_program_from_python(module: nn.Module) -> None:
    program = torch.export.export(module, (torch.rand(1, 3, 32, 32),))
    assert load_network(program).module(torch.rand(1, 3, 64, 40)).shape == (1, 2, 64, 40)


class OwnSize(nn.Module):
    """Resizes to the image's size, which a static export writes into the graph."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, stride=2, padding=1)
        self.end = end

    def forward(self, x: Tensor) -> Any:
        large = F.interpolate(self.conv(x), size=x.shape[-2:])
        return {"cat": torch.cat([large, x], dim=1), "resize": large, "dict": {"out": large, "aux": x}}[self.end]


@pytest.mark.parametrize("end", ["cat", "resize", "dict"])
def test_a_size_written_into_the_graph(tmp_path: Path, end: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "static.pt2", OwnSize(end).eval(), dynamic=False)
    with pytest.raises(ValueError, match=r"static\.pt2: .*32 x 48.* dynamic height and width \(torch\.export\.Dim\)"):
        load_network(path)
    assert capfd.readouterr().err == ""
    path = saved(tmp_path / "dynamic.pt2", OwnSize(end).eval())
    network = load_network(path, output="out" if end == "dict" else None)
    assert network.module(torch.rand(1, 3, 36, 50)).shape == (1, 5 if end == "cat" else 2, 36, 50)


def test_outputs_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "two.pt2", OwnSize("dict").eval())
    with pytest.raises(ValueError, match=r"'out' .*'aux' .*output='out'"):
        load_network(path)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm2d(2)], ids=["dropout", "batch norm"])
def test_exported_in_training_mode(tmp_path: Path, layer: nn.Module) -> None:
    path = saved(tmp_path / "training.pt2", nn.Sequential(nn.Conv2d(3, 2, 1), layer))
    with pytest.raises(ValueError, match=r"training mode: call \.eval\(\) before torch\.export"):
        load_network(path)


class TwoImages(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def test_one_image_is_given(tmp_path: Path) -> None:
    image = torch.rand(1, 3, 8, 8)
    torch.export.save(torch.export.export(TwoImages(), (image, image)), tmp_path / "two.pt2")
    with pytest.raises(ValueError, match="takes 2 inputs"):
        load_network(tmp_path / "two.pt2")
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.rand(4, 3),)), tmp_path / "flat.pt2")
    with pytest.raises(ValueError, match=r"takes \(4, 3\): an input of \(n, c, y, x\)"):
        load_network(tmp_path / "flat.pt2")
