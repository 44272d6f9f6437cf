"""Patchwise against fully convolutional training: outputs trained on per second, as the image grows.

    python benchmarks/training.py [--network unet-tiny] [--largest 8] [--seconds 4] [--out benchmarks/training]

Both have the same gradient where the patches are those of every output of the image. An image of k times the receptive
field is trained on as a whole, and in patches of one output each, so many in a pass as are fastest. In theory the ratio
is that of the pixels that go through the network for an output: those of a patch, against those of the image by its
outputs. Writes OUT.md and OUT.svg; one process, one thread.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from svg import alone
from torch import nn

from pipeline.network.builtin import build
from pipeline.network.names import UNTRAINED
from pipeline.network.receptive_field import receptive_field
from pipeline.network.sizes import least_size
from pipeline.reporting.charts import Line, line_chart
from pipeline.storage.reading import extend_to
from pipeline.tiling.geometry import ReceptiveField
from pipeline.training.gradient import Read, accumulate
from pipeline.training.loss import CrossEntropy
from pipeline.training.sampling import Sample, Sampler, cut

STACKS = (1, 8, 64)
"""Patches in one pass."""


@dataclass(frozen=True)
class Measured:
    """An image of `times` the receptive field, and outputs a second by either way."""

    times: float
    side: int
    whole: float
    patches: float
    stack: int
    theory: float

    @property
    def ratio(self) -> float:
        return self.whole / self.patches


def field_of(module: nn.Module) -> ReceptiveField:
    field = receptive_field(module, 3)
    return replace(field, least=least_size(module, 3, field))


def reads(pixels: np.ndarray, labels: np.ndarray, samples: list[Sample]) -> Iterator[Read]:
    for sample in samples:
        read = sample.tile.read
        part = pixels[:, *read.clip(*labels.shape).slices]
        yield sample, extend_to(part, read.shape), labels[sample.tile.core.slices]


def rate(step: Callable[[int], int], seconds: float) -> float:
    """Outputs a second of step(0), step(1), ..., each of which returns its own; the first does not count."""
    step(0)
    began, done, number = time.perf_counter(), 0, 1
    while time.perf_counter() - began < seconds or number < 3:
        done += step(number)
        number += 1
    return done / (time.perf_counter() - began)


def measure(module: nn.Module, field: ReceptiveField, side: int, times: float, seconds: float) -> Measured:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 255, (3, side, side), np.uint8)
    labels = random.integers(0, 2, field.output_shape(side, side))

    def trained(kind: str, stack: int) -> Callable[[int], int]:
        sampler = Sampler([cut((side, side), field, kind, None)], stack)

        def step(number: int) -> int:
            module.zero_grad()
            made = reads(pixels, labels, sampler.step(number))
            return accumulate(module, made, CrossEntropy(), together=stack).pixels

        return step

    whole = rate(trained("whole", 1), seconds)
    by_stack = {stack: rate(trained("patches", stack), seconds / len(STACKS)) for stack in STACKS}
    stack = max(by_stack, key=lambda n: by_stack[n])
    samples = [sample for n in range(200) for sample in Sampler([cut((side, side), field, "patches", None)], 1).step(n)]
    read = np.mean([np.prod(sample.tile.read.shape) for sample in samples])
    theory = float(read / (np.prod(field.extended(side, side)) / labels.size))
    return Measured(times, side, whole, by_stack[stack], stack, theory)


def table(rows: list[Measured], network: str, field: ReceptiveField) -> str:
    wide = max(field.before[0] + field.after[0] + 1, field.alignment[0])
    lines = [
        "# Patchwise against fully convolutional training",
        "",
        f"Network {network}, receptive field {wide} pixels, float32, one thread, {platform.machine()}, torch "
        f"{torch.__version__}; by `python benchmarks/training.py`. A step forwards and back, without the optimiser's.",
        "",
        "| image | side | whole, outputs/s | patches, outputs/s | patches a pass | ratio | in theory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.times:g}x | {row.side} | {row.whole:,.0f} | {row.patches:,.1f} | {row.stack} | "
            f"{row.ratio:,.0f} | {row.theory:,.0f} |"
        )
    return "\n".join([*lines, "", "![ratio of outputs a second](training.svg)", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="unet-tiny", choices=sorted(UNTRAINED))
    parser.add_argument("--largest", type=float, default=8, help="largest image, in receptive fields")
    parser.add_argument("--seconds", type=float, default=4, help="for each measurement")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""))
    given = parser.parse_args()
    torch.set_num_threads(1)
    architecture, arguments = UNTRAINED[given.network]
    plain = {**arguments, "norm": "none"} if architecture == "unet" else arguments
    torch.manual_seed(0)
    module = build(architecture, plain)
    field = field_of(module)
    wide, a = field.before[0] + field.after[0] + 1, field.alignment[0]
    rows = []
    for times in (t for t in (1, 1.5, 2, 3, 4, 6, 8) if t <= given.largest):
        rows.append(measure(module, field, -(-int(wide * times) // a) * a, times, given.seconds))
        print(rows[-1], flush=True)
    given.out.with_suffix(".md").write_text(table(rows, given.network, field))
    given.out.with_suffix(".svg").write_text(plot(rows))


def plot(rows: list[Measured]) -> str:
    """How many times more outputs a second, as a power of ten, as a picture of its own."""
    lines = [
        Line("measured", [(row.times, math.log10(row.ratio)) for row in rows]),
        Line("in theory", [(row.times, math.log10(row.theory)) for row in rows]),
    ]
    x, y = "side of the image, in receptive fields", "log10 of whole / patches, in outputs a second"
    return alone(line_chart(lines, x=x, y=y))


if __name__ == "__main__":
    main()
