"""A network run in bands of rows gives what one forward pass gives, whatever the bands."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from pipeline.network.flows import CannotStream
from pipeline.network.folding import fold
from pipeline.network.graph import Node
from pipeline.network.memory import Alive
from pipeline.network.program import Program, build
from pipeline.network.receptive_field import receptive_field
from pipeline.network.sizes import least_size
from pipeline.network.streaming import Stream, deviation, needs, program_of
from pipeline.network.unet import UNet
from pipeline.network.windows import Convolution
from tests import zoo, zoo_parts
from tests.zoo import Architecture

STREAMED = [a for a in zoo.ZOO if a.name != "dictionary"]


def streamed(program: Program, image: torch.Tensor, bands: list[int]) -> torch.Tensor:
    """The output, from bands of these heights, the last one as often as need be."""
    height, width = image.shape[2:]
    cuts = [0]
    while cuts[-1] < height:
        cuts.append(min(height, cuts[-1] + bands[min(len(cuts), len(bands)) - 1]))
    rows = (image[:, :, a:b] for a, b in pairwise(cuts))
    return torch.cat(list(Stream(program, height, width).run(rows)), 2)


def check(module: nn.Module, channels: int, exact: bool, seed: int) -> None:
    """Compares on two sizes, with random bands."""
    module.eval()
    field = receptive_field(module, channels)
    least = least_size(module, channels, field)
    if exact:
        module = zoo.integer_weights_(module).double()
    program = program_of(module, channels, folded=not exact)
    draw = random.Random(seed)
    for _ in range(2):
        height, width = (
            max(a * draw.randint(1, max(2, 90 // a)), n) for a, n in zip(field.alignment, least, strict=True)
        )
        image = torch.randint(-3, 4, (1, channels, height, width)).to(torch.float64 if exact else torch.float32)
        with torch.inference_mode():
            whole = module(image)
        result = streamed(program, image, [draw.choice((1, 2, 5, 16, 40)) for _ in range(200)])
        if exact:
            assert torch.equal(result, whole)
        else:
            assert (result - whole).abs().max() <= 1e-5 * max(1, whole.abs().max())


@pytest.mark.parametrize("architecture", STREAMED, ids=lambda a: a.name)
def test_bands_give_what_the_whole_gives(architecture: Architecture) -> None:
    check(architecture.build(), architecture.channels, architecture.exact, 0)


@pytest.mark.parametrize("seed", range(16))
def test_bands_give_what_the_whole_gives_for_random_networks(seed: int) -> None:
    check(zoo.random_network(seed), 2, True, seed)


@pytest.mark.parametrize("ceil", (False, True))
@pytest.mark.parametrize("counted", (False, True))
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), ((3, 2), 2, (1, 0)), (2, 2, 1), (4, 3, (1, 2))])
def test_means_over_windows_count_what_lies_in_the_image(
    kernel: Any, stride: int, padding: Any, counted: bool, ceil: bool
) -> None:
    module = nn.Sequential(
        nn.AvgPool2d(kernel, stride, padding, ceil, counted), nn.Upsample(scale_factor=stride)
    ).eval()
    program = program_of(module, 2, folded=False)
    for height, width in ((24, 36), (12, 24)):
        image = torch.rand(1, 2, height, width)
        for bands in ([5], [1], [12], [24]):
            assert torch.equal(streamed(program, image, bands), module(image))


def test_what_cannot_run_in_bands_says_why() -> None:
    with pytest.raises(CannotStream, match="network: _linalg_check_errors: a value is read by the network's Python"):
        build(zoo_parts.Inverses().eval(), 2)


def unet() -> nn.Module:
    torch.manual_seed(0)
    net = UNet(base=4, depth=3, norm="batch", channels=3, classes=2)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -1, 1)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.uniform_(part.bias, -1, 1)
    return net.eval()


def test_folding_leaves_fewer_steps_that_compute_the_same() -> None:
    net, image = unet(), torch.rand(1, 3, 64, 48)
    plain = build(net, 3)
    cheap = fold(plain)
    assert sum(step.node.name == "native_batch_norm" or "batch_norm" in step.node.name for step in plain.steps) > 10
    assert not any("batch_norm" in step.node.name or step.node.name == "relu" for step in cheap.steps)
    whole = net(image).detach()
    for program in (plain, cheap):
        assert (streamed(program, image, [16]) - whole).abs().max() <= 1e-5 * max(1, whole.abs().max())


def test_what_is_only_simplified_computes_the_same_bits() -> None:
    net, image = unet(), torch.rand(1, 3, 64, 48)
    program = program_of(net, 3, folded=False)
    plain = build(net, 3)
    assert torch.equal(streamed(program, image, [16]), streamed(plain, image, [16]))
    net.double()
    exact = program_of(net, 3, folded=False)
    assert torch.equal(streamed(exact, image.double(), [64]), streamed(build(net, 3), image.double(), [64]))


class Choosing(nn.Module):
    """Steps that return another dtype than they are given, which nothing may do in their operand's place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        doubled = x * 2
        chosen = (doubled > 1) * 0.5
        return torch.where((x * 3) > 1, chosen, -doubled)


def test_comparisons_keep_a_place_of_their_own() -> None:
    net, image = Choosing().eval(), torch.rand(1, 1, 24, 8)
    assert torch.equal(streamed(program_of(net, 1, folded=True), image, [8]), net(image))


def test_deviation_is_what_rounding_makes_of_it() -> None:
    net = unet()
    assert 0 < deviation(program_of(net, 3, folded=True), net, 3, (64, 64), 16) < 1e-5
    point = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)).eval()
    assert deviation(program_of(point, 3, folded=False), point, 3, (64, 64), 16) == 0


def test_folding_changes_nothing_of_the_network() -> None:
    net, image = unet(), torch.rand(1, 3, 64, 48)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    given = image.clone()
    streamed(program_of(net, 3, folded=True), image, [16])
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(image, given)


def test_nothing_is_computed_twice() -> None:
    """Rows made by every step add up to the rows of the whole map."""
    program = program_of(unet(), 3, folded=True)
    stream = Stream(program, 160, 32)
    made: dict[int, int] = {}
    for progress in stream.progress:
        kept = progress.step
        made[kept.output] = 0
    bands = (torch.rand(1, 3, 16, 32) for _ in range(10))
    for _ in stream.run(bands):
        pass
    assert all(p.done == p.size == stream.held[p.step.output].stop for p in stream.progress)


def test_held_rows_do_not_grow_with_the_height() -> None:
    program = program_of(unet(), 3, folded=True)
    peaks = [sum(needs(program, rows, 256, 32)) for rows in (512, 2048, 8192)]
    assert peaks[1] == peaks[2] and peaks[0] <= peaks[1]
    assert sum(needs(program, 2048, 512, 32)) == 2 * peaks[1]


@pytest.mark.parametrize("band", (16, 64))
def test_forecast_is_what_is_held(band: int) -> None:
    """Within a quarter of the tensors that are alive at the worst moment, and not below nine tenths of them."""
    net = unet()
    program = program_of(net, 3, folded=True)
    forecast = sum(needs(program, 512, 128, band))
    with Alive(reorders=False) as alive:
        bands = (torch.zeros(1, 3, min(band, 512 - y), 128) for y in range(0, 512, band))
        for _ in Stream(program, 512, 128).run(bands):
            pass
    assert 0.9 * alive.peak <= forecast <= 1.25 * alive.peak


@pytest.mark.parametrize("name", ("segnet", "window-attention", "fold", "depth-to-space-view", "frame", "median"))
def test_forecast_does_not_fall_short_where_rows_lie_otherwise(name: str) -> None:
    architecture = next(a for a in zoo.ZOO if a.name == name)
    program = program_of(architecture.build().eval(), 2, folded=True)
    with Alive(reorders=False) as alive:
        for _ in Stream(program, 192, 48).run(torch.zeros(1, 2, 32, 48) for _ in range(6)):
            pass
    assert 0.8 * alive.peak <= sum(needs(program, 192, 48, 32)) <= 3 * alive.peak


@pytest.mark.parametrize("activation", (nn.GELU(), nn.SiLU(), nn.Mish(), nn.ELU(), nn.Softplus(), nn.Hardswish()))
@pytest.mark.parametrize("folded", (False, True))
def test_activations_are_written_to_their_place_and_nowhere_else(activation: nn.Module, folded: bool) -> None:
    """Their results wait for a partner that comes late, so that they are written behind rows that are there."""
    first, last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, (9, 1), padding=(4, 0))

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = activation(first(x)[:, :4])
        return torch.cat([y, last(torch.cat([y, y], 1))], 1)

    net, image = zoo.Apply(forward).eval(), torch.rand(1, 2, 48, 20)
    whole = net(image).detach()
    assert (streamed(program_of(net, 2, folded=folded), image, [5]) - whole).abs().max() < 1e-5


@pytest.mark.parametrize("rows", (1, 2, 3, 4))
def test_a_small_image_may_have_no_rows_somewhere(rows: int) -> None:
    def shifted(x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x)
        y[:, :, 3:] = x[:, :, :-3]
        return y

    image = torch.rand(1, 2, rows, 5)
    assert torch.equal(streamed(program_of(zoo.Apply(shifted).eval(), 2, folded=False), image, [1]), shifted(image))


def test_convolutions_meet_padding_at_the_edges_only() -> None:
    """Bands of ones through a mean of three rows: only the first and the last row see a zero."""
    net = nn.Conv2d(1, 1, (3, 1), padding=(1, 0), bias=False)
    nn.init.constant_(net.weight, 1.0)
    program = build(net.eval(), 1)
    assert type(program.steps[0]) is Convolution
    rows = streamed(program, torch.ones(1, 1, 12, 2), [1])[0, 0, :, 0]
    assert rows.tolist() == [2.0, *[3.0] * 10, 2.0]


def test_a_pass_stays_on_the_device_of_its_bands() -> None:
    """On `meta`, which has shapes and devices and no numbers, as on any device that is not the CPU's memory."""
    module = unet().to("meta")
    program = program_of(unet(), 3, folded=True)
    steps = tuple(replace(step, node=moved(step.node)) for step in program.steps)
    stream = Stream(replace(program, steps=steps), 96, 64)
    rows = list(stream.run(torch.empty(1, 3, 96, 64, device="meta").split(32, dim=2)))
    assert all(part.is_meta for part in rows) and stream.arena.memory is not None and stream.arena.memory.is_meta
    assert torch.cat(rows, 2).shape == module(torch.empty(1, 3, 96, 64, device="meta")).shape


def moved(node: Node) -> Node:
    """The operation with its weights on `meta`."""
    return replace(node, args=tree_map(lambda a: a.to("meta") if isinstance(a, torch.Tensor) else a, node.args))
