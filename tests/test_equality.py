"""The promise through the public `predict`: any network, any size, any tile; tiled equals whole.

The whole is `net(pipeline.extend(image, net))`, cropped. Where arithmetic is exact (integer weights and pixels in
float64) both are equal bit for bit; else in float32, within 1e-5 of the largest value.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import pipeline
from pipeline.network.graph import single_output
from pipeline.network.sizes import fails_at
from tests.zoo import PLAIN, ZOO, Apply, Architecture, chain, conv, integer_weights_, random_network

pytestmark = pytest.mark.no_cover  # the same code as elsewhere, on many networks

Pair = tuple[int, int]


class Case:
    """A network and what is known of it once."""

    def __init__(self, module: nn.Module, precision: str) -> None:
        self.module, self.precision = module, precision
        self.network = pipeline.load_network(module)
        self.field = pipeline.receptive_field(self.network, (2, 64, 64))

    def core(self, least: Pair) -> Pair:
        """The smallest core of at least so many pixels."""
        y, x = (a * -(-n // a) for a, n in zip(self.field.alignment, least, strict=True))
        return y, x

    def fits(self, size: Pair) -> bool:
        """Whether the network gives anything on an image of that size."""
        runs = fails_at(self.network.module, 2, self.field.extended(*size)) is None
        return runs and 0 not in self.field.output_shape(*size)

    def check(self, size: Pair, core: Pair, folder: Path) -> None:
        image = np.random.default_rng(size).integers(0, 9, (2, *size), np.uint8)
        result = pipeline.predict(
            image, self.network, folder / "o.zarr", kind="logits", precision=self.precision, tile=core, workers=1,
            channels=[0, 1], overwrite=True,
        )  # fmt: skip
        extended = torch.from_numpy(pipeline.extend(image, self.network))[None]
        with torch.no_grad():
            output = single_output(self.module(extended.to(getattr(torch, self.precision))))[0]
        rows, columns = self.field.output_shape(*size)
        found, whole = result.array[:], output[:, :rows, :columns].numpy()
        assert found.shape == whole.shape
        if self.precision == "float64":
            np.testing.assert_array_equal(found, whole)
        else:
            assert np.abs(found - whole).max() <= 1e-5 * max(1, np.abs(whole).max())


@functools.cache
def case(architecture: Architecture) -> Case:
    torch.manual_seed(0)
    module = architecture.build()
    if architecture.exact:
        return Case(integer_weights_(module, seed=5), "float64")
    return Case(module.eval(), "float32")


# sizes in pixels; c is the core, s how many rows and columns a network that does not pad takes away
SIZES = {
    "smaller than a tile": (lambda c, s: (c[0] - 3 + s[0], c[1] - 5 + s[1]), 24),
    "primes": (lambda c, s: (73, 61), 28),
    "one more than a tile": (lambda c, s: (c[0] + 1 + s[0], 2 * c[1] + 1 + s[1]), 16),
    "one row": (lambda c, s: (1, 67), 24),
    "one column": (lambda c, s: (71, 1), 24),
}


# torch's antialiased resizing to one column gives the same value in every row
CASES = [(a, size) for a in ZOO for size in SIZES if (a.name, size) != ("antialias", "one column")]


@pytest.mark.parametrize(("architecture", "size"), CASES, ids=[f"{a.name}, {size}" for a, size in CASES])
def test_tiled_equals_whole(architecture: Architecture, size: str, tmp_path: Path) -> None:
    network = case(architecture)
    choose, least = SIZES[size]
    core = network.core((least, least))
    pixels = choose(core, [max(0, -n) for n in network.field.surplus])
    if network.fits(pixels):
        network.check(pixels, core, tmp_path)
    else:
        with pytest.raises(ValueError, match=rf"{pixels[0]} x {pixels[1]} pixels is too small.*least that works"):
            network.check(pixels, core, tmp_path)


def test_the_zoo_has_networks_of_every_kind() -> None:
    fields = [case(a).field for a in PLAIN]
    assert len(ZOO) >= 25 and len(PLAIN) >= 10 and all(f.is_local for f in fields)
    assert sum(f.surplus[0] < 0 for f in fields) >= 3, "smaller than the image"
    assert sum(f.rate[0] < 1 for f in fields) >= 3, "coarser"
    assert sum(f.rate[0] > 1 for f in fields) >= 3, "finer"
    assert sum(f.before != f.after for f in fields) >= 5, "not symmetric"


@pytest.mark.parametrize("size", [(1, 67), (71, 1)])
def test_most_networks_take_a_single_row_and_a_single_column(size: Pair) -> None:
    assert sum(case(a).fits(size) for a in ZOO) >= 25


@settings(
    max_examples=15, phases=[Phase.generate], derandomize=True, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    least=st.tuples(st.integers(4, 40), st.integers(4, 40)),
)
def test_random_networks(seed: int, size: Pair, least: Pair, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Case(integer_weights_(random_network(seed), seed), "float64")
    taken = [max(0, -n) for n in network.field.surplus]
    size = size[0] + taken[0], size[1] + taken[1]
    while not network.fits(size):
        size = size[0] + 3, size[1] + 3
    network.check(size, network.core(least), tmp_path)


@pytest.mark.parametrize("core", [(32, 32), (48, 100), (150, 16)])
def test_sums_that_round_differently_stay_within_the_tolerance(core: Pair, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 2, 5, padding=2)
    Case(nn.Sequential(*layers).eval(), "float32").check((150, 101), core, tmp_path)


class Blur(nn.Module):
    """Holds numbers that are no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)) / 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.kernel, padding=1, groups=2)


@pytest.mark.parametrize("module", [Apply(lambda x: F.avg_pool2d(x / 7, 3, 1, 1) / 3), Blur()], ids=["none", "buffer"])
def test_a_network_without_weights_runs_in_the_precision_that_is_asked_for(module: nn.Module, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 60, 50)).astype(np.float32)
    found = predicted(image, module.eval(), tmp_path, precision="float64")
    whole = module.double()(torch.from_numpy(image.astype(np.float64))[None])[0].numpy()
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-12 * np.abs(whole).max())


class Turned(nn.Module):
    """Has a complex weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.turn = nn.Conv2d(2, 2, 3, padding=1), nn.Parameter(torch.tensor([1 + 2j]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.conv(x) * self.turn).abs()


def truncated(x: torch.Tensor) -> torch.Tensor:
    """As in bfloat16."""
    return (x.contiguous().view(torch.int32) & -65536).view(torch.float32)


@pytest.mark.parametrize(
    ("module", "precision"),
    [
        (Turned(), "float32"),
        (Turned(), "float64"),
        (chain(conv(2, 2), lambda x: x > 0), "float32"),
        (chain(lambda x: F.max_pool2d(x.long() - 300, 3, 1, 1).to(x.dtype), conv(2, 2)), "float32"),
        (chain(lambda x: F.max_pool2d(x.long() - 300, 3, 1, 1).to(x.dtype), conv(2, 2)), "float64"),
        (chain(truncated, conv(2, 2)), "float32"),
    ],
    ids=["complex weight", "in double", "truths", "integers pooled", "integers pooled, in double", "bits"],
)
def test_numbers_of_any_type_within_a_network(module: nn.Module, precision: str, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 60, 50)).astype(np.float32)
    found = predicted(image, module.eval(), tmp_path, precision=precision)
    with torch.no_grad():
        whole = module(torch.from_numpy(image)[None])[0].float().numpy()
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def predicted(image: np.ndarray, module: nn.Module, folder: Path, **given: Any) -> np.ndarray:
    result = pipeline.predict(
        image, module, folder / "o.zarr", kind="logits", tile=(24, 24), workers=1, channels=[0, 1], **given
    )
    assert result.array is not None
    return result.array[:]


def test_a_module_in_float64_is_run_as_one_in_float32(tmp_path: Path) -> None:
    """What is tried on it beforehand has its own type."""
    torch.manual_seed(0)
    module = nn.Conv2d(2, 2, 3, padding=1).double().eval()
    image = np.random.default_rng(0).integers(0, 9, (2, 30, 20), np.uint8)
    result = pipeline.predict(image, module, tmp_path / "o.zarr", kind="logits", tile=(16, 16), workers=1)
    with torch.no_grad():
        expected = module(torch.from_numpy(image)[None].double())[0].numpy()
    assert module.weight.dtype == torch.float64
    np.testing.assert_allclose(result.array[:], expected, rtol=1e-5, atol=1e-4)
