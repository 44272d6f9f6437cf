"""Windows that overlap: where they lie, and what they cost."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tiling.geometry import ReceptiveField, Region
from pipeline.tiling.grid import Grid
from pipeline.tiling.windows import amplification, half_step, starts, windows

Pair = tuple[int, int]


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 8))
def test_windows_cover_the_axis_at_the_networks_phase(blocks: int, window: int, alignment: int) -> None:
    size, window = blocks * alignment, window * alignment
    step = half_step(window, alignment)
    first = starts(size, window, step)
    side = min(size, window)
    assert all(start % alignment == 0 for start in first)
    assert first[0] == 0 and first[-1] + side == size
    assert all(a < b <= a + step <= a + side for a, b in pairwise(first))


def test_only_windows_that_touch_the_core_run() -> None:
    places = windows(Region.of(32, 64, 0, 16), (128, 128), (32, 32), (16, 16))
    assert places == [Region.of(y, y + 32, 0, 32) for y in (16, 32, 48)]


def test_an_image_smaller_than_the_window_is_one_window() -> None:
    assert windows(Region.of(0, 8, 0, 8), (8, 8), (512, 512), (256, 256)) == [Region.of(0, 8, 0, 8)]


@settings(deadline=None, max_examples=80)
@given(
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(1, 8),
)
def test_amplification_is_what_the_windows_of_all_tiles_have_of_pixels(
    size: Pair, core: Pair, window: Pair, alignment: int
) -> None:
    field = ReceptiveField((0, 0), (0, 0), (alignment, alignment))
    grid = Grid.build(size, (core[0] * alignment, core[1] * alignment), field)
    sides, shape = (window[0] * alignment, window[1] * alignment), field.extended(*size)
    step = half_step(sides[0], alignment), half_step(sides[1], alignment)
    run = [place for i in range(len(grid)) for place in windows(grid.tile(i).core, shape, sides, step)]
    pixels = sum(place.y.size * place.x.size for place in run)
    assert abs(amplification(grid, sides) - pixels / (shape[0] * shape[1])) < 1e-9
