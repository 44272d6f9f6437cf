"""Networks written as .pt2: they come back, at other sizes, and what cannot be written is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pipeline
from pipeline.network.builtin import build


@pytest.mark.parametrize("depth", [1, 3])
def test_an_exported_network_predicts_the_same_at_any_size(tmp_path: Path, depth: int) -> None:
    torch.manual_seed(0)
    net = build("unet", {"base": 2, "depth": depth, "channels": 3, "classes": 2}, {"scale": 1 / 255, "mean": (0.5,)})
    file = pipeline.export(net.eval(), tmp_path / "deep" / "net.pt2")
    written = pipeline.load_network(file)
    assert (written.channels, written.classes) == (3, 2) and pipeline.receptive_field(file).is_local
    program = torch.export.load(file).module()  # torch's own, which asks for at least twice the alignment
    for size in ((1, 8, 8), (2, 16, 88), (3, 200, 72)):
        image = 255 * torch.rand(size[0], 3, *size[1:])
        with torch.no_grad():
            assert torch.allclose(written.module(image), net(image), atol=1e-6)
            assert size[1] == 8 or torch.allclose(program(image), net(image), atol=1e-6)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["net.pt2"]


class Peeks(nn.Module):
    """Does what depends on the values, which no graph holds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x) if x.mean() > 1 else self.conv(x + 1)
        return result


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    net = nn.Conv2d(3, 2, 1)
    (tmp_path / "there.pt2").touch()
    for module, name, said in (
        (net, "net.onnx", r"net.onnx: the name of an exported network ends in .pt2$"),
        (net, "there.pt2", r"there.pt2: there is something already"),
        (Peeks(), "peeks.pt2", r"^network Peeks: "),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            pipeline.export(module, tmp_path / name)
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["there.pt2"]
