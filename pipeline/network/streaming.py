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

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.network.program import Flow, Program
from pipeline.network.steps import Span, Step
from pipeline.tiling.geometry import Interval


class Held:
    """The rows of one tensor that are there and still needed: [start, stop) of all its rows."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.start = self.stop = 0
        self.parts: list[Tensor] = []

    def append(self, part: Tensor) -> None:
        self.parts.append(part)
        self.stop += part.shape[self.dim]

    def rows(self, wanted: Interval) -> Tensor:
        """The rows of an interval that is held."""
        assert self.start <= wanted.start and wanted.stop <= self.stop
        if len(self.parts) > 1:
            self.parts = [torch.cat(self.parts, self.dim)]
        return self.parts[0].narrow(self.dim, wanted.start - self.start, wanted.size)

    def release(self, start: int) -> None:
        """Lets go of the rows below `start`."""
        while self.parts and self.start + self.parts[0].shape[self.dim] <= start:
            self.start += self.parts.pop(0).shape[self.dim]
        if self.parts and self.start < start:
            first = self.parts[0]
            kept = first.narrow(self.dim, start - self.start, self.start + first.shape[self.dim] - start)
            self.parts[0] = kept if 2 * kept.shape[self.dim] > first.shape[self.dim] else kept.clone()
            self.start = start
        if not self.parts:
            self.start = self.stop


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
            Progress(step, [self.sizes[n] for n in step.inputs], self.sizes[_output(program, step)])
            for step in program.steps
        ]
        self.readers: dict[int, list[Progress]] = {number: [] for number in program.flows}
        for progress in self.progress:
            for number in progress.step.inputs:
                self.readers[number].append(progress)
        self.held = {number: Held(flow.dim) for number, flow in program.flows.items()}

    def run(self, bands: Iterable[Tensor]) -> Iterator[Tensor]:
        """The output's rows (1, classes, y, x), a few at a time, for bands (1, c, y, x) that make up the read."""
        output = self.held[self.program.output]
        for band in bands:
            self.held[self.program.input].append(band)
            del band
            for progress in self.progress:
                self.advance(progress)
            if output.stop > output.start:
                yield output.rows(Interval(output.start, output.stop))
                output.release(output.stop)

    def advance(self, progress: Progress) -> None:
        """Makes the rows that a step can make now."""
        step = progress.step
        made = progress.ready([self.held[n].stop for n in step.inputs])
        if not made.size:
            return
        given = progress.given(made)
        tensors = [self.held[n].rows(given) for n in step.inputs]
        span = Span(made, given, progress.sizes[0], self.columns[_output(self.program, step)])
        results = step.make(tensors, span)
        progress.done = made.stop
        del tensors
        for number in step.inputs:
            self.held[number].release(min(p.needs for p in self.readers[number]))
        for number, tensor in zip(step.outputs, results, strict=True):
            if number is not None:
                self.held[number].append(tensor)


def _output(program: Program, step: Step) -> int:
    """The first output of a step that flows on."""
    return next(number for number in step.outputs if number is not None)
