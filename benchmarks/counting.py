"""What runs in bands execute, counted and not timed; for benchmarks/execution.py.

    python -m benchmarks.counting

prints the lines of a section of the report as JSON. Operations are the multiplications with additions of convolutions,
and the elements that everything else makes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace

import numpy as np

from benchmarks.subjects import NETWORKS, analysed, network
from pipeline.analysis import Analysis
from pipeline.network.program import Program
from pipeline.network.steps import Step
from pipeline.network.streaming import Count, Progress, Stream
from pipeline.network.windows import Convolution, Resize, TransposedConvolution
from pipeline.tiling.geometry import Interval
from pipeline.tiling.grid import Grid
from pipeline.tiling.plan import choose_core

MEMORY = 2_000_000_000
"""The default of --memory."""
SIDES = (4096, 16384)


class Operations(Count):
    """A pass without tensors that adds up what its steps compute."""

    total = 0

    def make(self, progress: Progress, made: Interval) -> None:
        step = progress.step
        self.total += operations_of(self, step, made, progress.given(made)) + len(step.then) * elements(
            self, step, made
        )
        super().make(progress, made)


def elements(stream: Stream, step: Step, made: Interval) -> int:
    return stream.program.flows[step.output].items * stream.columns[step.output] * made.size


def operations_of(stream: Stream, step: Step, made: Interval, given: tuple[Interval, ...]) -> int:
    """Operations of one step that makes these rows of those, without what is done to its result in place."""
    if isinstance(step, Convolution):
        return products(step) * stream.columns[step.output] * made.size
    if isinstance(step, TransposedConvolution):
        return products(step) * stream.columns[step.inputs[0]] * given[0].size
    if isinstance(step, Resize):
        return elements(stream, step, Interval(0, math.ceil(given[0].size * step.relation.rate)))
    return elements(stream, step, made)


def products(step: Step) -> int:
    """Multiplications of one output element of each channel; of a transposed convolution, of one input element."""
    return int(step.arguments["weight"].numel())


def operations(program: Program, height: int, width: int, band: int) -> int:
    stream = Operations(program, height, width)
    for top in range(0, height, band):
        stream.enter(rows := min(band, height - top), None)
        for made in stream.advance(rows):
            stream.held[program.output].release(made.stop)
    return stream.total


def count() -> list[str]:
    """Table: full width, and the planner's tiles."""
    lines = [
        "Multiplications with additions of convolutions and elements of all other results; what is run in bands over "
        "what one forward pass over the whole image executes. Tiles are those that the planner chooses by default.",
        "",
        "| network | reach | image | run as | band | pixels read | operations |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, (label, _) in NETWORKS.items():
        analysis = analysed(network(name)[0])
        start = f"| {label} | {max(analysis.field.before)}"
        lines += [f"{start} | {side} x {side} | {row}" for side in SIDES for row in rows(analysis, side)]
    return lines


def rows(analysis: Analysis, side: int) -> Iterator[str]:
    """The end of a row for all columns at once, and of one for tiles."""
    program, image = analysis.program, SimpleNamespace(dtype=np.dtype(np.uint8))
    assert program is not None
    size = analysis.field.extended(side, side)
    once = operations(program, *size, size[0])
    core = choose_core(size, analysis.field, analysis.needs(image, analysis.options, 1), MEMORY)
    executed = cache(lambda rows, columns: operations(program, rows, columns, analysis.band(columns)))
    for words, grid in (
        ("all columns at once", Grid.build(size, size, analysis.field)),
        (f"tiles of {core[0]} x {core[1]}", Grid.build(size, core, analysis.field)),
    ):
        total = sum(executed(*grid.tile(n).read.shape) for n in range(len(grid)))
        band = f"{analysis.band(grid.largest_read[1])}{'' if analysis.folded else ', not folded'}"
        yield f"{words} | {band} | {grid.read_amplification:.3f} | {total / once:.4f} |"


if __name__ == "__main__":
    print(json.dumps(count()))
