"""Rows of one tensor while it streams: those that are there and that some step still needs.

    memory   |. . . 5 6 7|      rows 5 and 6 are needed with those that come next
    room(4)  |5 6 7 _ _ _ _|    few rows move to the front, and what comes is written behind them

    memory   |. . 2 3|4 5 6 7|      many rows stay where they are: a skip connection waits for its partner
    room(4)  |. . 2 3|4 5 6 7|_ _ _ _|

So a window finds its rows together, no row is copied more often than it would be to join them, and memory that has
become free is used for the next rows.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.tiling.geometry import Interval

FEW = 4
"""Rows that may always move, also for fewer new ones."""
ALIGNED = 64
"""Blocks begin at multiples of this many bytes, as vector instructions like it."""


@dataclass(frozen=True, order=True)
class Block:
    """Bytes [start, stop) of an arena."""

    start: int
    stop: int


class Arena:
    """One stretch of memory of which blocks are taken and given back: the lowest that is large enough.

    What the system gives anew for every band it takes back as often, which for wide bands costs as much as half of
    the convolutions. A pass that is only counted has no memory, and tells how much it takes; blocks beyond the
    memory's end get memory of their own.
    """

    def __init__(self) -> None:
        self.memory: Tensor | None = None
        self.free: list[Block] = []
        """Sorted; no two of them touch."""
        self.size = 0
        """Bytes of which some were in use."""

    def take(self, size: int) -> Block:
        """A block of that many bytes."""
        size = -(-size // ALIGNED) * ALIGNED
        n = next((n for n, free in enumerate(self.free) if free.stop - free.start >= size), None)
        if n is not None:
            start, stop = self.free[n].start, self.free[n].stop
            self.free[n : n + 1] = [Block(start + size, stop)] if stop - start > size else []
            return Block(start, start + size)
        start = self.size  # at the end, with what is free there
        if self.free and self.free[-1].stop == self.size:
            start = self.free.pop().start
        self.size = start + size
        return Block(start, self.size)

    def give(self, block: Block) -> None:
        """Takes a block back."""
        n = bisect(self.free, block)
        start, stop = block.start, block.stop
        if n < len(self.free) and self.free[n].start == stop:
            stop = self.free.pop(n).stop
        if n and self.free[n - 1].stop == start:
            n -= 1
            start = self.free.pop(n).start
        self.free.insert(n, Block(start, stop))


@dataclass(frozen=True)
class Rows:
    """How rows of a tensor (1, channels, y, x) lie in a block."""

    channels: int
    columns: int
    dtype: torch.dtype
    channels_last: bool

    @property
    def size(self) -> int:
        """Bytes of one row."""
        return self.channels * self.columns * self.dtype.itemsize

    def of(self, block: Block, memory: Tensor | None) -> Memory:
        """The block as room for as many rows as it holds."""
        rows = (block.stop - block.start) // self.size
        if memory is None:
            return Memory(rows, None, block)
        held = memory[block.start : block.start + rows * self.size]
        if block.stop > len(memory):
            held = torch.empty(rows * self.size, dtype=torch.uint8, device=memory.device)
        numbers = held.view(self.dtype)
        if self.channels_last:
            return Memory(rows, numbers.view(1, rows, self.columns, self.channels).permute(0, 3, 1, 2), block)
        return Memory(rows, numbers.view(1, self.channels, rows, self.columns), block)


@dataclass(frozen=True)
class Memory:
    """Room for that many rows."""

    rows: int
    tensor: Tensor | None
    """None where rows are counted only."""
    block: Block | None = None
    """Where it comes from; None for memory that a tensor brought with it."""


@dataclass
class Part:
    """Rows that lie together in a memory, from its row `first` on."""

    memory: Memory
    first: int
    rows: int


class Held:
    """The rows [start, stop) of one tensor, which are there and still needed.

    They lie in dimension `dim`, where each takes `unit` places, and all lie `repeats` times, which are held apart.
    With an arena, `room` gives out memory for rows to come; without, rows come in memory of their own.
    """

    def __init__(
        self, dim: int, layout: Rows | None = None, arena: Arena | None = None, unit: int = 1, repeats: int = 1
    ) -> None:
        self.dim, self.unit, self.layout, self.arena = dim + (repeats > 1), unit, layout, arena
        self.repeats = repeats
        self.start = self.stop = 0
        self.parts: list[Part] = []

    @property
    def stored(self) -> int:
        """Rows for which there is memory that is not the arena's."""
        return sum(part.memory.rows for part in self.parts if part.memory.block is None)

    @property
    def ends(self) -> list[int]:
        """Where its parts end, in rows of the whole tensor."""
        at, ends = self.start, []
        for part in self.parts:
            at += part.rows
            ends.append(at)
        return ends

    def append(self, rows: int, tensor: Tensor | None) -> None:
        """Holds rows that have memory of their own."""
        if tensor is not None and self.repeats > 1:
            tensor = tensor.unflatten(self.dim - 1, (self.repeats, -1))
        self.parts.append(Part(Memory(rows, tensor), 0, rows))
        self.stop += rows

    def room(self, rows: int) -> Tensor | None:
        """Holds as many rows more, and returns where they are to be written."""
        kept = self.stop - self.start
        moved = self.parts if kept <= max(rows, FEW) else []
        part = Part(self._memory(kept * bool(moved) + rows), 0, 0)
        for old in moved:
            _copy(self._view(old), self._view(replace(part, first=part.rows, rows=old.rows)))
            part.rows += old.rows
            self._give(old.memory)
        self.parts = [*self.parts[len(moved) :], part]
        view = self._view(Part(part.memory, part.rows, rows))
        part.rows += rows
        self.stop += rows
        return view

    def _memory(self, rows: int) -> Memory:
        assert self.arena is not None and self.layout is not None
        return self.layout.of(self.arena.take(rows * self.layout.size), self.arena.memory)

    def _give(self, memory: Memory) -> None:
        if self.arena is not None and memory.block is not None:
            self.arena.give(memory.block)

    def _view(self, part: Part) -> Tensor | None:
        tensor = part.memory.tensor
        return None if tensor is None else self._narrow(tensor, part.first, part.rows)

    def _narrow(self, tensor: Tensor, first: int, rows: int) -> Tensor:
        return tensor.narrow(self.dim, first * self.unit, rows * self.unit)

    def rows(self, wanted: Interval) -> Tensor:
        """The rows of an interval that is held; joined where they do not lie together."""
        assert self.start <= wanted.start and wanted.stop <= self.stop
        pieces, at = [], self.start
        for part in self.parts:
            inside = wanted.clip(at, at + part.rows).shift(-at)
            at += part.rows
            if inside.size:
                assert part.memory.tensor is not None
                pieces.append(self._narrow(part.memory.tensor, part.first + inside.start, inside.size))
        joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces, self.dim)
        return joined if self.repeats == 1 else joined.flatten(self.dim - 1, self.dim)

    def take(self, rows: Interval) -> Tensor:
        """The first rows that are held, which are let go of."""
        taken = self.rows(rows)
        self.release(rows.stop)
        return taken

    def together(self, wanted: Interval) -> bool:
        """Whether the rows of an interval lie together."""
        return self.repeats == 1 and not any(wanted.start < end < wanted.stop for end in self.ends)

    def release(self, start: int) -> None:
        """Lets go of the rows below `start`."""
        while self.parts and self.start + self.parts[0].rows <= start:
            part = self.parts.pop(0)
            self.start += part.rows
            self._give(part.memory)
        if self.parts and self.start < start:
            part, gone = self.parts[0], start - self.start
            part.first, part.rows, self.start = part.first + gone, part.rows - gone, start
            if 2 * part.rows <= part.memory.rows:
                self._shrink(part)

    def _shrink(self, part: Part) -> None:
        """Moves a small rest, so that the memory of all can go."""
        old, rest = part.memory, self._view(part)
        if self.arena is None:
            part.memory = Memory(part.rows, None if rest is None else rest.clone())
        else:
            part.memory = self._memory(part.rows)
        part.first = 0
        if self.arena is not None:
            _copy(rest, self._view(part))
            self._give(old)


def _copy(source: Tensor | None, target: Tensor | None) -> None:
    if source is not None and target is not None:
        target.copy_(source)
