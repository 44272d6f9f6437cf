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
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.network.folding import fold, simplify
from pipeline.network.graph import device_of, dtype_of, probe
from pipeline.network.held import Arena, Held, Rows
from pipeline.network.prepare import copied_module
from pipeline.network.program import Needs, Program, build
from pipeline.network.receptive_field import Found
from pipeline.network.steps import Span, Step
from pipeline.tiling.geometry import Interval

PIECE = 1 << 22
"""Bytes that a step makes at a time before they are put where they are held."""


class Progress:
    """How far one step has come, and what it needs for what is next; of a read of a given size."""

    def __init__(self, step: Step, sizes: list[int], size: int) -> None:
        self.step, self.sizes, self.size = step, sizes, size
        self.done = 0
        rows = np.arange(size, dtype=np.int64)
        demands = step.demands(rows, rows + 1, sizes)
        self.low = [np.minimum.accumulate(low[::-1])[::-1] for low, _ in demands]
        self.high = [np.maximum.accumulate(high) for _, high in demands]

    def ready(self, available: list[int]) -> Interval:
        """The rows that can be made of what is there."""
        stops = [int(np.searchsorted(high, n, "right")) for high, n in zip(self.high, available, strict=True)]
        return Interval(self.done, max(self.done, min(stops)))

    def given(self, made: Interval) -> tuple[Interval, ...]:
        """The rows of each of the inputs that these rows are made of."""
        ends = zip(self.low, self.high, strict=True)
        rows = [(int(low[made.start]), int(high[made.stop - 1])) for low, high in ends]
        return tuple(Interval(start, stop) if start < stop else Interval(0, 0) for start, stop in rows)

    def needs(self, number: int) -> int:
        """The first row of an input that it still needs."""
        n = self.step.inputs.index(number)
        return int(self.low[n][self.done]) if self.done < self.size else self.sizes[n]


class Stream:
    """One pass of a program over a read of that many rows and columns."""

    def __init__(self, program: Program, height: int, width: int) -> None:
        self.program, self.height, self.width = program, height, width
        self.sizes = {number: max(0, flow.rows.at(height)) for number, flow in program.flows.items()}
        self.columns = {number: max(0, flow.columns.at(width)) for number, flow in program.flows.items()}
        self.progress = [
            Progress(step, [self.sizes[n] for n in step.inputs], self.sizes[step.output]) for step in program.steps
        ]
        self.readers: dict[int, list[Progress]] = {number: [] for number in program.flows}
        for progress in self.progress:
            for number in progress.step.inputs:
                self.readers[number].append(progress)
        self.row = {n: flow.items * self.columns[n] * flow.dtype.itemsize for n, flow in program.flows.items()}
        """Bytes of a row of each flow."""
        self.arena = Arena()
        self.held = {number: self.holder(number) for number in program.flows}

    def holder(self, number: int) -> Held:
        """What holds the rows of a flow: in the arena where nobody looks at them later."""
        flow, readers = self.program.flows[number], self.readers[number]
        if number == self.program.output or not flow.planar or not all(p.step.makes_anew for p in readers):
            place, columns = flow.place, self.columns[number]
            return Held(place.dim, unit=place.unit(columns), repeats=place.repeats(columns))
        rows = Rows(flow.items, self.columns[number], flow.dtype, self.program.channels_last)
        return Held(flow.place.dim, rows, self.arena)

    def run(self, bands: Iterable[Tensor]) -> Iterator[Tensor]:
        """The output's rows (1, classes, y, x), a few at a time, for bands (1, c, y, x) that make up the read."""
        for band in bands:
            with torch.inference_mode():
                height = band.shape[2]
                if self.arena.memory is None:
                    size = needs(self.program, self.height, self.width, height).arena
                    self.arena.memory = torch.empty(size, dtype=torch.uint8, device=band.device)
                self.enter(height, band)
                del band
                for rows in self.advance(height):
                    yield self.held[self.program.output].take(rows)

    def enter(self, height: int, band: Tensor | None) -> None:
        """Takes in rows of the image."""
        image = self.held[self.program.input]
        if image.arena is not None:
            room = image.room(height)
            if room is not None and band is not None:
                room.copy_(band)
        elif band is not None:
            layout = torch.channels_last if self.program.channels_last else torch.contiguous_format
            image.append(height, band.contiguous(memory_format=layout))
        else:
            image.append(height, None)

    def advance(self, band: int) -> Iterator[Interval]:
        """Makes all that can be made of what is there; the output's rows that are there then, to be taken.

        No step makes many more rows at a time than a band stands for, though at the image's lower edge it could; nor
        very few, which cost as much, and round otherwise.
        """
        output = self.held[self.program.output]
        more = True
        while more:
            more = False
            for progress in self.progress:
                inputs = progress.step.inputs
                ready = progress.ready([self.held[n].stop for n in inputs])
                most = -(-progress.size * band // self.height)
                made = ready.clip(ready.start, ready.start + most) if 2 * ready.size > 3 * most else ready
                more = more or made != ready
                if made.size:
                    self.make(progress, made)
                    progress.done = made.stop
                    for number in inputs:
                        self.held[number].release(min(p.needs(number) for p in self.readers[number]))
            if output.stop > output.start:
                yield Interval(output.start, output.stop)

    def roomed(self, step: Step) -> bool:
        """Whether what a step makes is to be written where there is room, and not held as it comes."""
        held = self.held[step.output]
        one = sum(number is not None for number in step.outputs) == 1
        return one and held.arena is not None and (step.writes or held.stop > held.start)

    def make(self, progress: Progress, made: Interval) -> None:
        """Makes these rows of what a step makes, and holds them."""
        step = progress.step
        if not self.roomed(step):
            results = step.make(*self.given(progress, made))
            for output, result in zip(step.outputs, results, strict=True):
                if output is not None:
                    self.held[output].append(made.size, result)
            return
        room = self.held[step.output].room(made.size)
        assert room is not None
        for rows in self.pieces(step, made):
            step.fill(*self.given(progress, rows), room.narrow(2, rows.start - made.start, rows.size))

    def given(self, progress: Progress, made: Interval) -> tuple[list[Tensor], Span]:
        """What a step needs to make these rows."""
        step, givens = progress.step, progress.given(made)
        span = Span(made, givens, progress.sizes[0], self.columns[step.output])
        return [self.rows(n, given) for n, given in zip(step.inputs, givens, strict=True)], span

    def rows(self, number: int, wanted: Interval) -> Tensor:
        """Rows of a flow; of a small image it may have none."""
        if wanted.size:
            return self.held[number].rows(wanted)
        flow, memory = self.program.flows[number], self.arena.memory
        assert memory is not None
        return torch.empty(flow.shape.sizes(0, self.columns[number]), dtype=flow.dtype, device=memory.device)

    def pieces(self, step: Step, made: Interval) -> Iterator[Interval]:
        """The rows in pieces for which those of the inputs lie together, where the step does not care; else in equal
        ones of not too many bytes, as what it makes is put to its place from memory of its own."""
        if step.writing is None:
            count = -(-made.size * self.row[step.output] // PIECE)
            most = -(-made.size // count)
            yield from (made.clip(start, start + most) for start in range(made.start, made.stop, most))
            return
        ends = sorted({end for n in step.inputs for end in self.held[n].ends if made.start < end < made.stop})
        for start, stop in pairwise([made.start, *ends, made.stop]):
            yield Interval(start, stop)


class Count(Stream):
    """The same pass without tensors: what it holds, joins and makes, in bytes."""

    def __init__(self, program: Program, height: int, width: int) -> None:
        super().__init__(program, height, width)
        self.beside = 0

    def make(self, progress: Progress, made: Interval) -> None:
        step = progress.step
        if self.roomed(step):
            self.held[step.output].room(made.size)
            for rows in self.pieces(step, made):
                self.count(progress, rows, result=rows.size * self.row[step.output] * (step.writing is None))
            return
        for output in step.outputs:
            if output is not None:
                self.held[output].append(made.size, None)
        self.count(progress, made)

    def count(self, progress: Progress, made: Interval, result: int = 0) -> None:
        """What is there beside the arena while these rows are made; `result`: bytes that are not held as they come."""
        step = progress.step
        givens = list(zip(step.inputs, progress.given(made), strict=True))
        together = step.writing is not None or all(self.held[n].together(given) for n, given in givens)
        operands = sum(given.size * self.row[n] for n, given in givens)
        # what lies otherwise than in planes is copied by most operations, to lie together
        apart = sum(given.size * self.row[n] for n, given in givens if not self.program.flows[n].planar)
        beside = operands * (not together) + operands * step.pads + apart + result
        held = sum(held.stored * self.row[n] for n, held in self.held.items())
        self.beside = max(self.beside, held + beside)


def program_of(
    module: nn.Module, channels: int, *, folded: bool, found: Found | None = None, dtype: torch.dtype | None = None
) -> Program:
    """The program of a network in eval mode, made cheap; `folded`, made cheaper and rounding otherwise.

    `found` is what `followed` returned for a copy of it, where somebody has that already. `dtype` is the images' type,
    where it is not the network's own: one without weights has none.

    Raises:
        CannotStream: it has an operation that runs on whole maps only.
    """
    return (fold if folded else simplify)(build(module, channels, found, dtype=dtype))


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
        rows, whole = (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (rows, whole))
        off = (rows - whole).abs().max() / whole.abs().max().clamp(min=1)
        worst = max(worst, float(off.nan_to_num(torch.inf)))
    return worst


def needs(program: Program, height: int, width: int, band: int) -> Needs:
    """What a pass in bands over a read of that size takes in memory; counted, not run, and once for each size."""
    key = height, width, band
    if key not in program.counted:
        count = Count(program, height, width)
        for top in range(0, height, band):
            count.enter(rows := min(band, height - top), None)
            for made in count.advance(rows):
                count.held[program.output].release(made.stop)
        program.counted[key] = Needs(count.arena.size, count.beside)
    return program.counted[key]
