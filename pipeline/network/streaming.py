"""Runs a network depth first, in bands of rows: nothing is computed twice, and few rows are held at a time.

    image        ===== band =====>
    conv 3x3     holds 2 rows of the image, makes what can be made
    pool 2x2     holds at most 1 row
    ...
    cat          holds the rows of the one operand until those of the other arrive

A band of rows enters; going once through the steps, each makes all rows that can be made of what is there, and each
tensor then lets go of the rows that no step will need again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.network.folding import fold, simplify
from pipeline.network.graph import device_of, dtype_of, probe
from pipeline.network.prepare import copied_module
from pipeline.network.program import Program, build
from pipeline.network.receptive_field import Found
from pipeline.network.steps import Span, Step
from pipeline.tiling.geometry import Interval


@dataclass
class Part:
    """Rows of a tensor that were made at once and are still needed, of those that its memory holds."""

    rows: int
    stored: int
    tensor: Tensor | None
    """None where rows are counted only."""


class Held:
    """The rows [start, stop) of one tensor, which are there and still needed."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.start = self.stop = 0
        self.parts: list[Part] = []

    @property
    def stored(self) -> int:
        """Rows for which there is memory."""
        return sum(part.stored for part in self.parts)

    def append(self, rows: int, tensor: Tensor | None) -> None:
        self.parts.append(Part(rows, rows, tensor))
        self.stop += rows

    def rows(self, wanted: Interval) -> Tensor:
        """The rows of an interval that is held; joined where they were made at different times."""
        assert self.start <= wanted.start and wanted.stop <= self.stop
        pieces, at = [], self.start
        for part in self.parts:
            inside = wanted.clip(at, at + part.rows).shift(-at)
            at += part.rows
            if inside.size:
                assert part.tensor is not None
                pieces.append(part.tensor.narrow(self.dim, inside.start, inside.size))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, self.dim)

    def release(self, start: int) -> None:
        """Lets go of the rows below `start`; a small rest is copied, so that the memory of all can go."""
        while self.parts and self.start + self.parts[0].rows <= start:
            self.start += self.parts.pop(0).rows
        if not self.parts or self.start >= start:
            return
        first = self.parts[0]
        kept = first.rows - (start - self.start)
        if first.tensor is not None:
            first.tensor = first.tensor.narrow(self.dim, first.rows - kept, kept)
        if 2 * kept <= first.stored:
            first.stored = kept
            first.tensor = None if first.tensor is None else first.tensor.clone()
        first.rows, self.start = kept, start


class Progress:
    """How far one step has come, and what it needs for what is next; of a read of a given size."""

    def __init__(self, step: Step, sizes: list[int], size: int) -> None:
        self.step, self.sizes, self.size = step, sizes, size
        self.done = 0
        rows = np.arange(size, dtype=np.int64)
        demands = [step.demand(rows, rows + 1, n) for n in sizes]
        self.low = np.minimum.reduce([np.minimum.accumulate(low[::-1])[::-1] for low, _ in demands])
        self.high = [np.maximum.accumulate(high) for _, high in demands]

    def ready(self, available: list[int]) -> Interval:
        """The rows that can be made of what is there."""
        stops = [int(np.searchsorted(high, n, "right")) for high, n in zip(self.high, available, strict=True)]
        return Interval(self.done, max(self.done, min(stops)))

    def given(self, made: Interval) -> Interval:
        """The rows of the inputs that these rows are made of."""
        return Interval(int(self.low[made.start]), int(max(high[made.stop - 1] for high in self.high)))

    @property
    def needs(self) -> int:
        """The first row of its inputs that it still needs."""
        return int(self.low[self.done]) if self.done < self.size else self.sizes[0]


class Stream:
    """One pass of a program over a read of that many rows and columns."""

    def __init__(self, program: Program, height: int, width: int) -> None:
        self.program = program
        self.sizes = {number: flow.rows.at(height) for number, flow in program.flows.items()}
        self.columns = {number: flow.columns.at(width) for number, flow in program.flows.items()}
        self.progress = [
            Progress(step, [self.sizes[n] for n in step.inputs], self.sizes[step.output]) for step in program.steps
        ]
        self.readers: dict[int, list[Progress]] = {number: [] for number in program.flows}
        for progress in self.progress:
            for number in progress.step.inputs:
                self.readers[number].append(progress)
        self.held = {number: Held(flow.dim) for number, flow in program.flows.items()}

    def run(self, bands: Iterable[Tensor]) -> Iterator[Tensor]:
        """The output's rows (1, classes, y, x), a few at a time, for bands (1, c, y, x) that make up the read."""
        image, output = self.held[self.program.input], self.held[self.program.output]
        layout = torch.channels_last if self.program.channels_last else torch.contiguous_format
        for band in bands:
            with torch.inference_mode():
                image.append(band.shape[2], band.contiguous(memory_format=layout))
                del band
                self.advance()
                if output.stop > output.start:
                    rows = output.rows(Interval(output.start, output.stop))
                    output.release(output.stop)
                    yield rows
                    del rows

    def advance(self) -> None:
        """Makes all that can be made of what is there."""
        for progress in self.progress:
            inputs = progress.step.inputs
            made = progress.ready([self.held[n].stop for n in inputs])
            if not made.size:
                continue
            results = self.make(progress, made)
            progress.done = made.stop
            for number in inputs:
                self.held[number].release(min(p.needs for p in self.readers[number]))
            for output, result in zip(progress.step.outputs, results, strict=True):
                if output is not None:
                    self.held[output].append(made.size, result)
            del results, result  # else they would be held while the next step runs

    def make(self, progress: Progress, made: Interval) -> Sequence[Tensor | None]:
        """The results of a step, of these rows."""
        step, given = progress.step, progress.given(made)
        span = Span(made, given, progress.sizes[0], self.columns[step.output])
        return step.make([self.held[n].rows(given) for n in step.inputs], span)


class Count(Stream):
    """The same pass without tensors: what it holds, joins and makes, in bytes, for numbers of `item` bytes."""

    def __init__(self, program: Program, height: int, width: int, item: int) -> None:
        super().__init__(program, height, width)
        self.row = {n: flow.row_items * self.columns[n] * item for n, flow in program.flows.items()}
        self.peak = 0

    def make(self, progress: Progress, made: Interval) -> Sequence[Tensor | None]:
        step, given = progress.step, progress.given(made)
        held = sum(held.stored * self.row[n] for n, held in self.held.items() if held.parts)
        joined = sum(given.size * self.row[n] for n in step.inputs) * (2 if step.pads else 1)
        new = sum(made.size * self.row[n] for n in step.outputs if n is not None)
        self.peak = max(self.peak, held + joined + new)
        return [None] * len(step.outputs)


def program_of(module: nn.Module, channels: int, *, folded: bool, found: Found | None = None) -> Program:
    """The program of a network in eval mode, made cheap; `folded`, made cheaper and rounding otherwise.

    `found` is what `followed` returned for a copy of it, where somebody has that already.

    Raises:
        CannotStream: it has an operation that runs on whole maps only.
    """
    return (fold if folded else simplify)(build(module, channels, found))


@torch.inference_mode()
def deviation(program: Program, module: nn.Module, channels: int, size: tuple[int, int], band: int) -> float:
    """The greatest difference of bands to one forward pass, as a share of max(1, the largest logit).

    Of two images of seeded noise of that size (y, x): one in [0, 1), one in [0, 255), as pixels are stored.
    """
    module = copied_module(module, share=True)  # it may keep what it made for an image
    noise = probe((1, channels, *size), dtype_of(module), device_of(module))
    worst = 0.0
    for image in (noise, 255 * noise):
        whole = module(image)
        rows = torch.cat(list(Stream(program, *size).run(image.split(band, dim=2))), 2)
        off = (rows - whole).abs().max() / whole.abs().max().clamp(min=1)
        worst = max(worst, float(off.nan_to_num(torch.inf)))
    return worst


def peak_bytes(program: Program, height: int, width: int, band: int, item: int) -> int:
    """Bytes that a pass over a read of that size takes at most above the weights, in numbers of `item` bytes.

    What is held, what a step joins or pads of it, and what it makes; counted, not run.
    """
    count = Count(program, height, width, item)
    output = count.held[program.output]
    for top in range(0, height, band):
        count.held[program.input].append(min(band, height - top), None)
        count.advance()
        output.release(output.stop)
    return count.peak
