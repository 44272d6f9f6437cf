"""A network with everything that is derived from it once: field, classes, how it runs, what that takes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from pipeline.config import Options
from pipeline.network.flows import CannotStream
from pipeline.network.graph import blank
from pipeline.network.loading import Network, choose_device
from pipeline.network.memory import forward_bytes, give_back
from pipeline.network.prepare import copied_module
from pipeline.network.program import Program
from pipeline.network.receptive_field import Found, followed, receptive_field
from pipeline.network.sizes import difference, least_size, standing_for
from pipeline.network.streaming import Stream, deviation, program_of
from pipeline.network.streaming import needs as passing
from pipeline.storage.image import Image
from pipeline.tiling.geometry import ReceptiveField
from pipeline.tiling.grid import Grid
from pipeline.worker import DTYPES, TOLERANCE

WINDOW = 512
"""Side of the windows of --mode blend where none is asked for."""
PIECE = 512
"""Side of the piece of an image that tells how long a run will take."""
BAND = 128
"""Most rows that go through the network at a time."""
BAND_PIXELS = 1 << 17
"""And about as many pixels: with fewer the steps' own cost tells, with more their rows are no longer in a cache."""
TRIED = (0.25, 0.5, 1, 2, 4)
"""Heights of bands that are tried where the fastest is asked for, as shares of the usual one."""
TUNED = 512
"""Rows that they are tried on."""
PROBE = 128
"""Side of the images that tell whether bands keep the tolerance."""
PROBE_BAND = 64
"""Rows of their bands, about."""
SHARE = 0.25
"""Of the tolerance, what bands may use up on those images; the rest is for other images, of other sizes."""
HEAP = 2
"""Bytes that the allocator holds for each that a step makes beside what the arena has: of blocks of all sizes, those
that were freed lie between those that are in use. Measured, on passes of 1024 to 16384 columns."""
CACHE_SHARE = 8
"""A worker's cache of decoded source chunks gets one part in this many of its memory, at most CACHE_BYTES."""
CACHE_BYTES = 64_000_000


class Analysis:
    """A network with everything that is derived from it once, for any number of images."""

    def __init__(self, network: Network, options: Options, source: str | None = None) -> None:
        self.network, self.options, self.source = network, options, source
        # Where each worker is given a GPU, those count, and not what the driver's machine has.
        theirs = options.engine == "ray" and options.worker_gpus > 0 and options.device != "cpu"
        self.device = "cuda" if theirs else str(choose_device(options.device))
        channels = network.channels or len(options.channels or ())
        if not channels:
            raise ValueError(
                f"network {network.name}: the number of channels it takes cannot be told from it; "
                "say which of the image's it gets, for instance --channels 0,1,2"
            )
        self.channels = channels
        shared = copied_module(network.module, share=True)  # it may keep what it made for an image
        found = followed(shared, channels)
        self.field = self._with_least(self._field(shared, found))
        self._standing_for = partial(standing_for, self.field, found)
        self._difference = partial(difference, shared, channels, found)
        self._differs: dict[tuple[int, int], str] = {}
        """What it does otherwise on images of these sizes; "" where it does the same."""
        self.classes = self._classes()
        self._tuned: dict[int, int] = {}
        """Rows of a band by the read's columns, where they were measured."""
        self.program, self.folded, self.whole = self._program(found)
        """How the network runs in bands of rows, whether folded; or None, and why reads run whole."""
        give_back()

    def check_same(self, *sizes: tuple[int, int]) -> None:
        """Raises ValueError where the network does not do the same on images of these sizes as on all others.

        Other operations may do the same: where the recorded ones give what it gives there, they do.
        """
        if self.options.mode == "blend" or self.options.reach is not None:
            return
        for part in (part for size in sizes for part in self._standing_for(size)):
            if part not in self._differs:
                what = self._difference(part)
                same = what and self.program and self._deviation(self.program, part) <= TOLERANCE["float32"]
                self._differs[part] = "" if same else what
            if what := self._differs[part]:
                raise ValueError(
                    f"network {self.network.name} is not local, so no tiling can equal its whole-image pass: {what} "
                    "(--mode blend gives an approximation)"
                )

    def _field(self, module: nn.Module, found: Found) -> ReceptiveField:
        if self.options.reach is not None and not found.analysis.unknown:
            raise ValueError(
                f"--reach {self.options.reach}: is for a network with an operation that the analysis does not know; "
                f"it knows all of {self.network.name}'s: leave it out"
            )
        derived = receptive_field(module, self.channels, reach=self.options.reach, found=found)
        if self.options.mode != "blend" and not derived.is_local:
            raise ValueError(
                f"network {self.network.name} is not local, so no tiling can equal its whole-image pass: "
                + "; ".join(derived.nonlocal_operations)
                + " (--mode blend gives an approximation)"
            )
        return derived

    def _with_least(self, derived: ReceptiveField) -> ReceptiveField:
        return replace(derived, least=least_size(self.network.module, self.channels, derived))

    def _classes(self) -> int:
        """Channels of the network's output, from a run on its least input."""
        side = self.field.least
        with torch.inference_mode():
            output = self.network.module(blank(self.network.module, self.channels, side))
        if output.is_complex():
            raise ValueError(
                f"network {self.network.name} returns complex numbers ({output.dtype}): return their abs(), or "
                "torch.view_as_real's two parts as channels"
            )
        return int(output.shape[1])

    def band(self, columns: int) -> int:
        """Rows of that many columns that go through the network at a time; 0 where all of them do at once."""
        if self.program is None:
            return 0
        return self._tuned.get(columns) or self.field.extended(max(1, min(BAND, BAND_PIXELS // columns)), 1)[0]

    def tune(self, columns: int, fits: Callable[[], bool]) -> None:
        """Measures which height of bands is fastest for that many columns; from now on it is theirs.

        `fits` says whether the memory holds what the height takes that is set when it is asked.
        """
        if self.program is None or columns in self._tuned:
            return
        usual, seconds = self.band(columns), {}
        for band in sorted({self.field.extended(max(1, int(usual * share)), 1)[0] for share in TRIED}):
            self._tuned[columns] = band
            if band == usual or fits():
                seconds[band] = self._seconds((self.field.extended(TUNED, 1)[0], columns))
        self._tuned[columns] = min(seconds, key=lambda band: seconds[band])

    def _program(self, found: Found) -> tuple[Program | None, bool, str]:
        """(program, whether it is folded, why there is none): the fastest whose rounding the tolerance leaves room for.

        In float64 nothing is folded: proofs compare bits. Where half precision is asked for, that rounds far more.
        """
        if self.options.mode == "blend":
            return None, False, "--mode blend"
        module, precision = self.network.module, self.options.precision or "float32"
        for folded in (True, False) if precision == "float32" else (precision != "float64",):
            try:
                program = program_of(module, self.channels, folded=folded, found=found)
                off = self._deviation(program)
            except CannotStream as reason:
                return None, False, str(reason)
            except Exception as error:  # whatever torch says of a few rows; of all of them it may not
                return None, False, f"bands fail: {' '.join(str(error).split()) or type(error).__name__}"
            if precision != "float32" or off <= SHARE * TOLERANCE[precision]:
                return program, folded, ""
        return None, False, f"bands round otherwise, by {off:.1g} of the largest logit"

    def _deviation(self, program: Program, size: tuple[int, int] | None = None) -> float:
        rows, columns = size or [max(PROBE, least) for least in self.field.least]
        size = self.field.extended(rows, columns)
        band = self.field.extended(PROBE_BAND, 1)[0]
        with one_thread():  # as workers have: the caller's number of them is no part of the plan, which this decides
            return deviation(program, self.network.module, self.channels, size, band)

    @cached_property
    def seconds_per_pixel(self) -> float:
        """How long the network alone takes on one thread, from a piece that is run here and now."""
        rows, columns = (max(a, PIECE // a * a) for a in self.field.alignment)
        return self._seconds((rows, columns)) / (rows * columns)

    def _seconds(self, side: tuple[int, int]) -> float:
        """Seconds of one pass over a piece of that size, on one thread."""
        piece = blank(self.network.module, self.channels, side)
        with one_thread():
            for _ in range(2):  # the first time warms up
                began = time.monotonic()
                if self.program is None:
                    with torch.inference_mode():
                        self.network.module(piece)
                else:
                    deque(Stream(self.program, side[0], side[1]).run(piece.split(self.band(side[1]), dim=2)), maxlen=0)
                took = time.monotonic() - began
        return took

    def needs(self, image: Image, options: Options, kind_bytes: int, bands: bool = True) -> Any:
        """Function of a grid: bytes that a worker needs above the interpreter, with a cache of that size or least.

        `bands`: reads go through the network in bands where they can.
        """
        module = self.network.module
        weights = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
        precision = DTYPES[options.precision or "float32"]
        width = torch.finfo(precision).bits // 8
        fixed = weights * (1 if precision is torch.float32 else 1 + width // 4)
        window = options.window or WINDOW
        # tasks of dask are handed pixels that others decoded
        decoding = image.decoding if isinstance(image, Image) else 0

        def needs(grid: Grid, cache: int | None = None) -> int:
            core = grid.y.core * grid.x.core
            read = grid.largest_read
            if options.mode == "blend":
                forward = forward_bytes(module, self.channels, self.field, (window, window), precision)
                accumulated = (grid.y.core + 2 * window) * (grid.x.core + 2 * window) * (4 * self.classes + 4)
            elif bands and self.program is not None:
                item = self.program.dtype.itemsize
                taken = passing(self.program, *read, self.band(read[1]))
                forward = weights + (taken.arena + HEAP * taken.beside) * width // item
                accumulated = 0
            else:
                forward = forward_bytes(module, self.channels, self.field, read, precision)
                accumulated = read[0] * read[1] * self.channels * width
            pixels = read[0] * read[1] * self.channels * image.dtype.itemsize
            shards = int(core * float(grid.y.rate * grid.x.rate)) * (3 * kind_bytes + 4)
            need = fixed + forward + accumulated + pixels + shards + decoding
            return with_cache(need) if cache is None else need + cache

        return needs


_lock, _threads, _inside = threading.Lock(), 0, 0


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it, torch computes with one thread in this thread; afterwards with as many as before.

    torch.set_num_threads is of the calling thread, and also of each thread that uses torch for the first time later
    on. So the number found by whoever enters first is what everyone leaves behind: what a later one finds may be 1
    only because of the first.
    """
    global _threads, _inside
    with _lock:
        found = torch.get_num_threads()
        _threads = _threads if _inside else found
        _inside += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            torch.set_num_threads(_threads)


def cache_bytes(options: Options) -> int:
    """Bound of a worker's cache of decoded source chunks."""
    return min(CACHE_BYTES, options.memory // CACHE_SHARE)


def with_cache(need: int) -> int:
    """The least memory that holds `need` bytes beside the cache that it gives."""
    return need + min(CACHE_BYTES, need // (CACHE_SHARE - 1) + 1)
