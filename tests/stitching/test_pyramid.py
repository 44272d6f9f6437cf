"""Levels: exact means and majorities, in strips as in one piece."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.stitching.pyramid import build_shard, reduce
from pipeline.tiling.geometry import Interval
from pipeline.tiling.grid import build_layout

INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 5))


def quads(data: np.ndarray) -> list[list[list[object]]]:
    """The four pixels, row major, of each pixel of the next level; at an odd edge the last counts twice."""
    height, width = data.shape
    rows, columns = range(-(-height // 2)), range(-(-width // 2))
    return [
        [
            [data[min(2 * y + i, height - 1), min(2 * x + j, width - 1)].item() for i in (0, 1) for j in (0, 1)]
            for x in columns
        ]
        for y in rows
    ]


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_mean_of_integers_is_exact_with_halves_rounded_up(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(INTEGERS))
    pixels = data.draw(hnp.arrays(dtype, SHAPES))
    expected = [[(sum(q) + 2) // 4 for q in row] for row in quads(pixels)]  # type: ignore[arg-type]
    result = reduce(pixels, "mean")
    assert result.dtype == pixels.dtype
    assert result.tolist() == expected


@pytest.mark.parametrize("dtype", INTEGERS)
def test_mean_does_not_overflow(dtype: str) -> None:
    limits = np.iinfo(dtype)
    for value in (limits.min, limits.max):
        assert reduce(np.full((2, 2), value, dtype), "mean").item() == value


@settings(deadline=None, max_examples=60)
@given(hnp.arrays("float32", SHAPES, elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)))
def test_mean_of_floats_is_that_of_float64(pixels: np.ndarray) -> None:
    exact = [[float(sum(map(Fraction, q)) / 4) for q in row] for row in quads(pixels)]  # type: ignore[arg-type]
    np.testing.assert_allclose(reduce(pixels, "mean"), np.array(exact), rtol=1e-6, atol=1e-6 * np.abs(pixels).max())


def test_mean_of_large_floats_does_not_overflow_and_nan_stays() -> None:
    assert reduce(np.full((2, 2), 3e38, np.float32), "mean").item() == np.float32(3e38)
    pixels = np.ones((2, 4), np.float32)
    pixels[0, 0] = np.nan
    np.testing.assert_array_equal(reduce(pixels, "mean"), [[np.nan, 1]])


def test_mean_of_bools_is_their_majority() -> None:
    pixels = np.array([[1, 0, 1, 1], [0, 0, 0, 0]], bool)
    result = reduce(pixels, "mean")
    assert result.dtype == bool and result.tolist() == [[False, True]]


@settings(deadline=None, max_examples=150)
@given(hnp.arrays("uint8", SHAPES, elements=st.integers(0, 3)), st.sampled_from(["uint8", "uint16", "bool"]))
def test_mode_is_the_first_of_the_most_frequent(pixels: np.ndarray, dtype: str) -> None:
    """Counter counts in the order of first occurrence, and max takes the first of equals."""
    pixels = pixels.astype(dtype)
    expected = [[max(Counter(q).items(), key=lambda item: item[1])[0] for q in row] for row in quads(pixels)]
    result = reduce(pixels, "mode")
    assert result.dtype == pixels.dtype
    assert result.tolist() == expected


def test_leading_axes_are_kept() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (2, 3, 5, 7)).astype(np.uint8)
    result = reduce(pixels, "mean")
    assert result.shape == (2, 3, 3, 4)
    np.testing.assert_array_equal(result[1, 2], reduce(pixels[1, 2], "mean"))


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 12),
    st.sampled_from(["mean", "mode"]),
)
def test_shards_are_parts_of_the_reduced_whole(
    size: tuple[int, int], shard: tuple[int, int], rows: int, how: str
) -> None:
    below = np.random.default_rng(0).integers(0, 9, (2, *size)).astype(np.uint8)
    whole = reduce(below, how)  # type: ignore[arg-type]

    def read(region: tuple[Interval, ...]) -> np.ndarray:
        assert all(0 <= i.start < i.stop <= n for i, n in zip(region, below.shape, strict=True)), "within the level"
        return below[tuple(i.slice for i in region)]

    for y in range(0, whole.shape[1], shard[0]):
        for x in range(0, whole.shape[2], shard[1]):
            region = (
                Interval(1, 2),
                Interval(y, min(y + shard[0], whole.shape[1])),
                Interval(x, min(x + shard[1], whole.shape[2])),
            )
            part = build_shard(read, region, below.shape, how, rows=rows)  # type: ignore[arg-type]
            np.testing.assert_array_equal(part, whole[tuple(i.slice for i in region)])


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1025, 513)])
def test_every_level_of_a_thin_image_can_be_made(size: tuple[int, int]) -> None:
    layout = build_layout("yx", "uint8", size, (512, 512), whole=False)
    assert len(layout.shapes) > 1
    pixels = np.ones(size, np.uint8)
    for level in range(1, len(layout.shapes)):
        below, made = pixels, np.zeros(layout.shapes[level], np.uint8)
        for index in range(layout.pyramid_units(level)):
            region = layout.pyramid_shard(level, index)
            shard = build_shard(lambda r, below=below: below[tuple(i.slice for i in r)], region, below.shape, "mode")
            made[tuple(i.slice for i in region)] = shard
        assert made.all()
        pixels = made


def test_memory_is_the_shards_and_a_strips() -> None:
    """The 64 MB below a shard are never there at once."""

    def read(region: tuple[Interval, ...]) -> np.ndarray:
        return np.ones(tuple(i.size for i in region), np.float32)

    tracemalloc.start()
    try:
        shard = build_shard(read, (Interval(0, 2048), Interval(0, 2048)), (4096, 4096), "mean")
        assert shard.shape == (2048, 2048) and shard.all()
        assert tracemalloc.get_traced_memory()[1] < 16.8e6 + 30e6
    finally:
        tracemalloc.stop()
