"""Where the seconds of a run in bands go, operation by operation; for benchmarks/execution.py.

    python -m benchmarks.profiling SIDE

prints the lines of a section of the report as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.counting import operations_of
from benchmarks.subjects import CHANNELS, analysed, network
from benchmarks.ways import WARM, blank
from pipeline.network.pooling import MaxPool
from pipeline.network.program import Program
from pipeline.network.steps import Span, Step
from pipeline.network.streaming import Progress, Stream
from pipeline.network.windows import Convolution, TransposedConvolution
from pipeline.tiling.geometry import Interval

REPEATED = 0.1
"""Seconds for which a convolution is repeated at each width that is tried."""
WIDTHS = (128, 256, 512, 1024, 2048, 4096)
"""Columns of the band that a convolution is repeated on; where it is fastest is its ceiling."""


class Clock:
    """Seconds and calls by what they are for."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - began
        self.calls[what] += 1


@dataclass
class Share:
    """What one convolution took."""

    seconds: float = 0.0
    operations: int = 0
    spans: Counter[Span] = field(default_factory=Counter)


class Timed(Stream):
    """A pass that notes what each thing took."""

    def __init__(self, program: Program, height: int, width: int) -> None:
        self.clock = Clock()
        steps = tuple(self.noted(step) if is_convolution(step) else step for step in program.steps)
        super().__init__(replace(program, steps=steps), height, width)
        self.shares = {step.output: Share() for step in program.steps if is_convolution(step)}

    def noted(self, step: Step) -> Step:
        """The convolution, whose own part in what its step takes is noted."""
        step = copy(step)

        def run(tensors: Sequence[Tensor], span: Span) -> Any:
            began = time.perf_counter()
            with self.clock(kind(step)):
                result = type(step).run(step, tensors, span)
            share = self.shares[step.output]
            share.seconds += time.perf_counter() - began
            share.operations += operations_of(self, step, span.made, span.givens)
            share.spans[span] += 1
            return result

        vars(step)["run"] = run
        return step

    def make(self, progress: Progress, made: Interval) -> None:
        step, before = progress.step, sum(self.clock.seconds.values())
        began = time.perf_counter()
        super().make(progress, made)
        inside = sum(self.clock.seconds.values()) - before
        what = "activations, and rows put to where they are held" if is_convolution(step) else kind(step)
        self.clock.seconds[what] += time.perf_counter() - began - inside
        self.clock.calls[what] += 1

    def ceiling(self, step: Step) -> float:
        """Operations a second of a convolution on one band over and over, at the width at which it is fastest."""
        sizes = Counter((span.made.size, span.given.size) for span in self.shares[step.output].spans)
        usual = sizes.most_common(1)[0][0]
        span = next(s for s in self.shares[step.output].spans if (s.made.size, s.given.size) == usual)
        source, columns = step.inputs[0], dict(self.columns)
        rates = []
        for width in {min(w, columns[step.output]) for w in WIDTHS}:
            given = max(1, width * columns[source] // columns[step.output])
            self.columns |= {step.output: width, source: given}
            band = torch.rand(1, self.program.flows[source].items, span.given.size, given)
            band = band.contiguous(memory_format=torch.channels_last)
            rates.append(
                operations_of(self, step, span.made, span.givens) / repeated(step, band, replace(span, columns=width))
            )
            self.columns = dict(columns)
        return max(rates)


def repeated(step: Step, band: Tensor, span: Span) -> float:
    """Median seconds of a step that is run again and again."""
    taken: list[float] = []
    while len(taken) < 4 or sum(taken) < REPEATED:
        began = time.perf_counter()
        step.run([band], span)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def is_convolution(step: Step) -> bool:
    return isinstance(step, Convolution | TransposedConvolution)


TRIED = (
    "Tried on 2026-11-29, and left out as it gained nothing or next to it:",
    "",
    "- within a band, steps of the finest level in turns of 32, 16, 8, 4, 2 or 1 rows: as fast down to 8 rows, then "
    "slower (the same bits, and a quarter less memory)",
    "- columns in blocks of 512, 1024 or 2048, so that a level's rows stay in the second-level cache: slower than all "
    "4096 at once, though the columns that neighbours share were not even counted",
    "- results of a step in pieces of 2, 4, 8 MB or in one: equal (4 MB are kept, for their memory)",
    "- huge pages for arena and allocator, no memory given back to the system: 2 to 3 %",
    "- activations within convolutions whose kernels are packed beforehand (`mkldnn._convolution_pointwise_`), added "
    "to rows that were set to zero, as no form of it writes to a given place: 2 % less to 8 % more a second, by layer",
    "- NNPACK's convolutions by Winograd: 1.1 to 1.8 times as fast from 32 channels on, but off by 5e-6 to 1.2e-5 of "
    "the largest output in each single layer, where the whole network may be off by 1e-5",
)


def kind(step: Step) -> str:
    """What a step is, in the table's words."""
    if isinstance(step, Convolution):
        return "convolutions"
    if isinstance(step, TransposedConvolution):
        return "transposed convolutions"
    return "pooling" if isinstance(step, MaxPool) else f"`{step.node.name}`"


@torch.inference_mode()
def run(side: int, analysis_program: Program, band: int) -> tuple[Timed, float]:
    """A pass over a square of noise, and its seconds."""
    timed = Timed(analysis_program, side, side)
    image, made = torch.rand(1, CHANNELS, side, side), 0
    result = blank(image)

    began = time.perf_counter()
    for rows in timed.run(image.split(band, dim=2)):
        with timed.clock("rows of the result stored"):
            result[:, :, made : made + rows.shape[2]] = rows
        made += rows.shape[2]
    return timed, time.perf_counter() - began


def profile(side: int) -> list[str]:
    analysis = analysed(network("unet")[0])
    assert analysis.program is not None and analysis.folded
    torch.set_num_threads(1)
    run(min(side, WARM), analysis.program, analysis.band(side))
    timed, total = run(side, analysis.program, analysis.band(side))
    clock, rest = timed.clock, total - sum(timed.clock.seconds.values())
    by_kind = sorted(clock.seconds.items(), key=lambda item: -item[1])
    lines = [
        f"The U-Net on noise of {side} x {side} pixels, all columns at once, in bands of {analysis.band(side)} rows, "
        "one thread.",
        "",
        "| what | calls | seconds | share |",
        "|---|---|---|---|",
        *(f"| {what} | {clock.calls[what]} | {seconds:.2f} | {seconds / total:.1%} |" for what, seconds in by_kind),
        f"| rows that stay moved, rows joined, and the executor's own Python | | {rest:.2f} | {rest / total:.1%} |",
        f"| all | | {total:.2f} | |",
        "",
        "The ceiling of a convolution is its rate when it is repeated on one band of as many rows and of 128 to 4096 "
        "columns, at the width at which it is fastest: then its rows are in a cache. Rates are in 1e9 multiplications "
        "and additions a second.",
        "",
        "| convolution | usual rows a call | seconds | rate | ceiling | share of the ceiling |",
        "|---|---|---|---|---|---|",
    ]
    least = 0.0
    with torch.inference_mode():
        for step in filter(is_convolution, analysis.program.steps):
            share, best = timed.shares[step.output], timed.ceiling(step)
            least += share.operations / best
            usual = Counter(span.made.size for span in share.spans).most_common(1)[0][0]
            rate = share.operations / share.seconds
            lines.append(f"| {step.node.path} | {usual} | {share.seconds:.2f} | {2e-9 * rate:.0f} | {2e-9 * best:.0f} "
                         f"| {rate / best:.0%} |")  # fmt: skip
    spent = sum(share.seconds for share in timed.shares.values())
    return [
        *lines,
        "",
        f"All convolutions at their ceilings would take {least:.2f} s: {least / spent:.0%} of what they take, and "
        f"{least / total:.0%} of the run.",
        "",
        *TRIED,
    ]


if __name__ == "__main__":
    print(json.dumps(profile(int(sys.argv[1]))))
