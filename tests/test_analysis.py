"""What is derived from a network once: above all, how it runs, and that this keeps the tolerance."""

from __future__ import annotations

import gc
import weakref
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from pipeline.analysis import PROBE, SHARE, Analysis
from pipeline.config import options
from pipeline.network.loading import load_network
from pipeline.network.streaming import needs
from pipeline.network.unet import UNet
from pipeline.worker import TOLERANCE
from tests import zoo_parts
from tests.zoo import chain, conv


def analysed(module: nn.Module, **given: Any) -> Analysis:
    return Analysis(load_network(module.eval()), options(**given))


class Delicate(nn.Module):
    """Large terms that nearly cancel: whatever sums them in another order is far off, as a share of the result."""

    def __init__(self, large: float, between: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between = between or nn.Identity()
        self.mix = nn.Conv2d(3, 64, 3, padding=1)
        self.sum = nn.Conv2d(64, 2, 3, padding=1, bias=False)
        nn.init.constant_(self.mix.bias, large)
        with torch.no_grad():
            self.sum.weight -= self.sum.weight.mean((1, 2, 3), keepdim=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.sum(self.between(self.mix(x / 255)))
        return result[:, :, 1:-1, 1:-1]


def test_networks_run_folded_where_rounding_leaves_room() -> None:
    analysis = analysed(UNet(base=4, depth=2, norm="batch"))
    assert analysis.program is not None and analysis.folded and not analysis.whole


def test_bands_have_about_as_many_pixels_whatever_the_columns() -> None:
    analysis = analysed(UNet(base=4, depth=2, norm="none"))
    assert [analysis.band(columns) for columns in (256, 1024, 2048, 4096, 100_000)] == [128, 128, 64, 32, 4]


def test_the_fastest_height_of_bands_is_measured_among_those_that_fit() -> None:
    analysis = analysed(UNet(base=2, depth=2, norm="none"))
    assert analysis.band(256) == 128
    analysis.tune(256, lambda: analysis.band(256) <= 64)
    assert analysis.band(256) in (32, 64, 128) and analysis.band(257) == 128


def test_networks_that_folding_would_round_too_far_run_as_they_are() -> None:
    analysis = analysed(Delicate(1e5))
    assert analysis.program is not None and not analysis.folded and not analysis.program.channels_last


def test_networks_that_bands_would_round_too_far_run_whole() -> None:
    """As where coordinates between pixels are counted from a band's first row."""
    analysis = analysed(Delicate(1e5, nn.Upsample(scale_factor=3, mode="bilinear")))
    assert analysis.program is None and analysis.band(512) == 0 and not analysis.folded
    assert "bands round otherwise, by " in analysis.whole
    assert SHARE * TOLERANCE["float32"] < float(analysis.whole.split(" by ")[1].split()[0])


class Watched(nn.Conv2d):
    """Keeps how many threads torch had for images of which size."""

    seen: ClassVar[list[tuple[int, int]]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((x.shape[-1], torch.get_num_threads()))
        return super().forward(x)


def test_how_a_network_runs_is_decided_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is part of the plan, so a caller's threads may not change it; and the caller has as many afterwards."""
    monkeypatch.setattr("pipeline.analysis.PROBE", 211)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        analysed(Watched(3, 2, 3))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert {threads for width, threads in Watched.seen if width == 211} == {1}


def test_proofs_in_float64_are_not_folded() -> None:
    analysis = analysed(UNet(base=4, depth=2, norm="batch").double(), precision="float64")
    assert analysis.program is not None and not analysis.folded
    assert any("batch_norm" in step.node.name for step in analysis.program.steps)


def test_what_runs_on_whole_maps_only_says_why() -> None:
    analysis = analysed(zoo_parts.Inverses())
    assert analysis.program is None and "_linalg_check_errors" in analysis.whole


@pytest.mark.parametrize("large", [0.0, 1e5])
def test_an_analysis_goes_with_the_call_that_made_it(large: float) -> None:
    analysis = analysed(Delicate(large))
    if analysis.program is not None:
        assert sum(needs(analysis.program, 128, 128, analysis.band(128))) > 0
    kept = weakref.ref(analysis)
    del analysis
    gc.collect()
    assert kept() is None


def test_complex_numbers_are_no_logits() -> None:
    with pytest.raises(ValueError, match=r"^network Sequential returns complex numbers \(torch.complex64\): return"):
        analysed(chain(conv(2, 2), lambda x: torch.complex(x, x)))


def test_a_network_may_return_truths() -> None:
    analysis = analysed(chain(conv(2, 2), lambda x: x > 0))
    assert analysis.program is not None, analysis.whole


@pytest.mark.parametrize("precision", [None, "float64"])
def test_what_fails_in_bands_runs_whole_and_says_so(precision: str | None) -> None:
    def superstitious(x: torch.Tensor) -> torch.Tensor:
        if x.shape[2] == PROBE:
            raise RuntimeError("not that\nmany rows")
        return x * 2

    analysis = analysed(chain(conv(2, 2), superstitious), precision=precision)
    assert analysis.program is None and analysis.whole == "bands fail: not that many rows"
