"""Tiles of any image for any field: cores partition the output, reads hold cores and halos and are aligned."""

from __future__ import annotations

import itertools
import math
import time
import tracemalloc
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tiling.geometry import Interval, ReceptiveField, Region
from pipeline.tiling.grid import CHUNK, COARSEST, SHARD, Axis, Grid, Layout, build_layout, largest_divisor

Pair = tuple[int, int]


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    """An axis as a network could have it: rate * alignment is a whole number, and so is every core's output."""
    alignment = draw(st.integers(1, 12))
    rate = Fraction(draw(st.integers(1, 3 * alignment)), alignment)
    size, core = draw(st.integers(1, 400)), alignment * draw(st.integers(1, 9))
    surplus = draw(st.integers(-5, 5))
    output = max(0, math.ceil(size * rate) + surplus)
    before, after = draw(st.integers(0, 40)), draw(st.integers(0, 40))
    # what a network adds behind the last row it computes from rows that it sees
    before += max(0, math.ceil(surplus / rate))
    return Axis(size, core, before, after, alignment, rate, output, alignment * draw(st.integers(1, 6)))


@given(axes())
def test_cores_partition_the_output(axis: Axis):
    cores = [axis.core_of(i) for i in range(len(axis))]
    assert [row for c in cores for row in range(c.start, c.stop)] == list(range(axis.output))
    assert all(0 < c.size <= axis.step and c.start % axis.step == 0 for c in cores)


@given(axes())
def test_reads_begin_and_end_at_multiples_of_the_alignment_within_the_extended_image(axis: Axis):
    assert 0 <= axis.extended - axis.size < axis.alignment
    for i in range(len(axis)):
        read = axis.read_of(i)
        assert 0 <= read.start < read.stop <= axis.extended
        assert read.start % axis.alignment == 0 and read.stop % axis.alignment == 0


@given(axes())
def test_reads_hold_their_cores_with_the_halo_but_for_what_lies_beyond_the_edge(axis: Axis):
    for i in range(len(axis)):
        core, read = axis.core_of(i), axis.read_of(i)
        wanted = Interval(i * axis.core - axis.before, min((i + 1) * axis.core, axis.extended) + axis.after)
        if core.stop < axis.output:
            wanted = wanted.clip(0, axis.extended)
            assert read.start <= wanted.start and wanted.stop <= read.stop
        assert read.stop >= min(axis.extended, math.ceil(core.stop / axis.rate) + axis.after)
        assert read.start <= max(0, math.floor(core.start / axis.rate) - axis.before)
        crop = axis.crop(core, read)
        assert crop.size == core.size and crop.start == core.start - read.start * axis.rate >= 0


@given(axes())
def test_reads_are_no_larger_than_halo_alignment_and_the_least_that_runs_ask_for(axis: Axis):
    for i in range(len(axis)):
        read = axis.read_of(i)
        assert read.size >= min(axis.least, axis.extended)
        needed = axis.core + axis.before + axis.after + 2 * (axis.alignment - 1)
        assert read.size <= max(needed, axis.least, axis.alignment)


@given(axes())
def test_the_largest_read_is_found_without_looking_at_all(axis: Axis):
    assert axis.largest_read == max((axis.read_of(i).size for i in range(len(axis))), default=0)


@given(axes(), st.data())
def test_any_rows_of_the_output_are_read_as_their_tiles_are_or_less(axis: Axis, data: st.DataObject):
    if not axis.output:
        return
    start = data.draw(st.integers(0, axis.output - 1))
    rows = Interval(start, data.draw(st.integers(start + 1, axis.output)))
    read = axis.read_for(rows)
    tiles = [axis.read_of(i) for i in range(start // axis.step, (rows.stop - 1) // axis.step + 1)]
    within = min(t.start for t in tiles) <= read.start and read.stop <= max(t.stop for t in tiles)
    assert within or axis.least > axis.core


def field_of(alignment: Pair = (4, 2), rate: Fraction = Fraction(1)) -> ReceptiveField:
    return ReceptiveField((5, 3), (2, 7), alignment, (rate, rate))


@pytest.mark.parametrize(("size", "planes"), [((41, 23), 1), ((7, 38), 3), ((1, 1), 2), ((16, 8), 1)])
def test_tiles_of_all_planes_write_every_output_pixel_once(size: Pair, planes: int):
    grid = Grid.build(size, (8, 6), field_of(), planes)
    written = [
        (t.plane, y, x)
        for t in map(grid.tile, range(len(grid)))
        for y, x in itertools.product(*(range(i.start, i.stop) for i in (t.core.y, t.core.x)))
    ]
    assert len(written) == planes * size[0] * size[1]
    assert set(written) == set(itertools.product(range(planes), range(size[0]), range(size[1])))


def test_the_drawing_of_the_module_is_true():
    axis = Axis(22, 8, 3, 3, 4, Fraction(1), 22)
    assert axis.extended == 24 and len(axis) == 3
    assert [axis.core_of(i) for i in range(3)] == [Interval(0, 8), Interval(8, 16), Interval(16, 22)]
    assert [axis.read_of(i) for i in range(3)] == [Interval(0, 12), Interval(4, 20), Interval(12, 24)]


def test_amplification_is_pixels_read_over_pixels_of_the_image_and_the_largest_read_is_among_them():
    grid = Grid.build((97, 61), (16, 8), field_of())
    reads = [grid.tile(i).read.shape for i in range(len(grid))]
    assert grid.read_amplification == pytest.approx(sum(h * w for h, w in reads) / (100 * 62))
    assert grid.largest_read == (max(h for h, _ in reads), max(w for _, w in reads))


def test_a_window_is_a_tile_of_its_own():
    grid = Grid.build((97, 61), (16, 8), field_of())
    tile = grid.tile(9)
    assert grid.window(tile.core, tile.plane) == tile
    read = grid.window(Region.of(13, 19, 5, 6)).read
    assert read.y.start <= 13 - 5 and read.y.stop >= 19 + 2 and read.x.start <= 5 - 3 and read.x.stop >= 6 + 7


def test_a_million_tiles_are_planned_in_less_than_a_second_without_a_list_of_them():
    tracemalloc.start()
    began = time.process_time()
    grid = Grid.build((1000 * 256, 1000 * 256), (256, 256), field_of())
    assert len(grid) == 1_000_000
    assert 1 < grid.read_amplification < 1.2 and grid.largest_read == (268, 268)
    assert grid.tile(999_999).core == Region.of(255_744, 256_000, 255_744, 256_000)
    assert time.process_time() - began < 1
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, Pair]:
    axes = draw(st.sampled_from(["yx", "cyx", "zyx", "czyx"]))
    step = draw(st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
    leading = tuple(draw(st.integers(1, 3)) for _ in axes[:-2])
    shape = (*leading, *(draw(st.integers(1, 4 * n)) for n in step))
    return build_layout(axes, "uint8", shape, step, whole=draw(st.booleans())), step


@given(layouts())
def test_a_tile_is_a_whole_number_of_shards_and_a_shard_of_chunks(made: tuple[Layout, Pair]):
    layout, step = made
    for n, shard, chunk in zip(step, layout.shards[0][-2:], layout.chunk[-2:], strict=True):
        assert n % shard == 0
        assert chunk <= CHUNK or chunk == largest_divisor(shard, CHUNK) == shard, "no divisor is small enough"
    for shards in layout.shards:
        assert all(s % c == 0 for s, c in zip(shards, layout.chunk, strict=True))
        assert shards[:-2] == layout.chunk[:-2] == (1,) * (len(layout.axes) - 2)


@given(layouts())
def test_levels_halve_until_the_coarsest_is_small(made: tuple[Layout, Pair]):
    layout, _ = made
    for fine, coarse in itertools.pairwise(layout.shapes):
        assert coarse == (*fine[:-2], *(math.ceil(n / 2) for n in fine[-2:])) and max(fine[-2:]) > COARSEST
    assert max(layout.shapes[-1][-2:]) <= COARSEST


@settings(max_examples=40)
@given(layouts())
def test_shards_partition_each_level_of_the_pyramid(made: tuple[Layout, Pair]):
    layout, _ = made
    for level in range(1, len(layout.shapes)):
        count = layout.pyramid_units(level)
        regions = [layout.pyramid_shard(level, i) for i in range(count)]
        assert sum(math.prod(i.size for i in r) for r in regions) == math.prod(layout.shapes[level])
        assert len({tuple(i.start for i in r) for r in regions}) == count
        positions = [p for r in regions for p in layout.shards_within(level, r)]
        assert positions == list(itertools.product(*map(range, layout.shard_counts(level))))


def test_shards_the_planner_chooses_are_at_most_so_large():
    layout = build_layout("yx", "uint8", (50_000, 50_000), (8192, 6144), whole=False)
    assert layout.shards[0] == (SHARD, SHARD) and layout.chunk == (CHUNK, CHUNK)
    assert build_layout("yx", "uint8", (50_000, 50_000), (8192, 6144), whole=True).shards[0] == (8192, 6144)
    assert Layout.from_json(layout.to_json()) == layout


@settings(max_examples=30)
@given(st.integers(1, 9000), st.integers(64, 2048))
def test_the_largest_divisor_within_limits_or_the_number_itself(n: int, limit: int):
    found = largest_divisor(n, limit)
    within = [d for d in range(64, min(n, limit) + 1) if n % d == 0]
    assert found == (max(within) if within else n)
