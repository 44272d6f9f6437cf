"""Intervals, regions, and the sizes that follow from a receptive field."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tiling.geometry import Interval, ReceptiveField, Region

rows = st.tuples(st.integers(-50, 50), st.integers(0, 50)).map(lambda p: Interval(p[0], p[0] + p[1]))


@given(rows, rows)
def test_a_clipped_interval_is_what_both_have_in_common(a: Interval, b: Interval):
    common = a.clip(b.start, b.stop)
    assert set(range(common.start, common.stop)) == set(range(a.start, a.stop)) & set(range(b.start, b.stop))
    assert common.size >= 0 and b.start <= common.start and common.stop <= b.stop


@given(rows, st.integers(-50, 50))
def test_a_shift_keeps_the_size_and_is_undone(a: Interval, by: int):
    assert a.shift(by).size == a.size and a.shift(by).shift(-by) == a


def test_intervals_and_regions_cut_arrays():
    region = Region.of(1, 4, 2, 9)
    assert (region.shape, region.slices) == ((3, 7), (slice(1, 4), slice(2, 9)))
    assert region.clip(3, 5) == Region.of(1, 3, 2, 5)


@pytest.mark.parametrize(
    ("rate", "surplus", "size", "output"),
    [
        (Fraction(1), 0, 7, 7),
        (Fraction(1), -4, 7, 3),
        (Fraction(1), -4, 3, 0),  # never less than nothing
        (Fraction(1, 2), 0, 7, 4),  # ceil(7 / 2)
        (Fraction(1, 2), -1, 8, 3),
        (Fraction(3), 2, 5, 17),
        (Fraction(3, 2), 0, 5, 8),  # ceil(7.5)
    ],
)
def test_rows_of_the_output(rate: Fraction, surplus: int, size: int, output: int):
    field = ReceptiveField((0, 0), (0, 0), (4, 4), (rate, Fraction(1)), (surplus, 0))
    assert field.output_shape(size, 9) == (output, 9)


@given(st.integers(1, 500), st.integers(1, 64))
def test_an_image_is_extended_to_the_next_multiple_of_the_alignment(size: int, alignment: int):
    extended, _ = ReceptiveField((0, 0), (0, 0), (alignment, 1)).extended(size, 1)
    assert extended % alignment == 0 and 0 <= extended - size < alignment


def test_a_field_is_local_unless_operations_say_otherwise_and_has_its_reach_for_a_halo_unless_told():
    field = ReceptiveField((3, 1), (2, 0), (2, 2))
    assert field.is_local and (field.halo_of(0), field.halo_of(1)) == ((3, 2), (1, 0))
    less = ReceptiveField((3, 1), (2, 0), (2, 2), halo=((2, 2), (1, 0)), nonlocal_operations=("0: flip: mirrors",))
    assert not less.is_local and less.halo_of(0) == (2, 2)
