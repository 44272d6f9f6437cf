"""Rows that are held are those that were put there, wherever they were moved to meanwhile."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.network.held import Arena, Held, Rows
from pipeline.tiling.geometry import Interval

COLUMNS, CHANNELS = 5, 3

SIZES = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 20), st.booleans()), min_size=1, max_size=30)
"""For each step: rows that come, rows that are kept then, and whether they come in memory of their own."""


def held(arena: Arena, channels_last: bool) -> Held:
    return Held(2, Rows(CHANNELS, COLUMNS, torch.float32, channels_last), arena)


@given(SIZES, st.booleans(), st.integers(0, 4000))
def test_rows_are_what_was_put_there(sizes: list[tuple[int, int, bool]], channels_last: bool, memory: int) -> None:
    """Also where the arena's memory ends before its blocks do, and beside another tensor in the same arena."""
    arena = Arena()
    arena.memory = torch.empty(memory, dtype=torch.uint8)
    tensors = [held(arena, channels_last) for _ in range(2)]
    image = torch.arange(400.0 * COLUMNS * CHANNELS).view(1, CHANNELS, 400, COLUMNS)
    for rows, kept, own in sizes:
        for sign, tensor in zip((1, -1), tensors, strict=True):
            start, stop = tensor.stop, tensor.stop + rows
            if own:
                tensor.append(rows, sign * image[:, :, start:stop])
            else:
                room = tensor.room(rows)
                assert room is not None
                room.copy_(sign * image[:, :, start:stop])
        for sign, tensor in zip((1, -1), tensors, strict=True):
            tensor.release(max(tensor.start, tensor.stop - kept))
            there = Interval(tensor.start, tensor.stop)
            if there.size:
                assert torch.equal(tensor.rows(there), sign * image[:, :, tensor.start : tensor.stop])


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 5)), max_size=40))
def test_blocks_that_are_taken_do_not_overlap(sizes: list[tuple[int, int]]) -> None:
    arena, taken = Arena(), []
    for size, given_back in sizes:
        taken.append(block := arena.take(size))
        assert block.stop - block.start >= size and block.stop <= arena.size
        assert all(a.stop <= b.start for a, b in pairwise(sorted(taken)))
        if given_back < len(taken):
            arena.give(taken.pop(given_back))
    for block in taken:
        arena.give(block)
    assert len(arena.free) <= 1 and sum(b.stop - b.start for b in arena.free) == arena.size


@pytest.mark.parametrize("kept", (2, 40))
def test_memory_does_not_grow_with_the_rows_that_pass(kept: int) -> None:
    sizes = []
    for passes in (20, 200):
        arena = Arena()
        tensor = held(arena, True)
        for _ in range(passes):
            tensor.room(16)
            tensor.release(max(tensor.start, tensor.stop - kept))
        sizes.append(arena.size)
    assert sizes[0] == sizes[1] <= (kept + 3 * 16 + 2) * COLUMNS * CHANNELS * 4 + 200


def test_rows_that_lie_several_times_are_held_apart() -> None:
    """Two heads, each of all rows: the next rows come between them."""
    whole = torch.arange(2 * 9 * 3).view(2, 9, 3)
    tensor = Held(0, unit=3, repeats=2)
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        tensor.append(stop - start, whole[:, start:stop].flatten())
    tensor.release(2)
    assert torch.equal(tensor.rows(Interval(3, 7)), whole[:, 3:7].flatten())
    assert not tensor.together(Interval(5, 9)), "they are copied, to lie together"


def test_few_rows_that_stay_lie_together_with_those_that_come() -> None:
    tensor = held(Arena(), True)
    tensor.room(16)
    tensor.release(14)
    tensor.room(16)
    assert tensor.together(Interval(14, 32))
    tensor.room(1)  # more stay than come: they are not moved
    assert not tensor.together(Interval(14, 33)) and tensor.together(Interval(14, 32))
