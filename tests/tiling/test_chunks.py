"""Cores on an array's own chunks: together all of the output, on aligned bounds, none smaller than the halo."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipeline.tiling.chunks import bounds, cores, parts, split
from pipeline.tiling.geometry import Interval
from pipeline.tiling.grid import Axis

RATES = [Fraction(1), Fraction(1, 4), Fraction(3, 2), Fraction(2)]


@st.composite
def axes(draw: st.DrawFn) -> tuple[Axis, tuple[int, ...]]:
    chunks = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=12)))
    size, rate = sum(chunks), draw(st.sampled_from(RATES))
    alignment = rate.denominator * draw(st.integers(1, 8))
    output = -(-size * rate.numerator // rate.denominator) + draw(st.integers(-6, 3))
    before, after = draw(st.integers(0, 20)), draw(st.integers(0, 20))
    return Axis(size, alignment, before, after, alignment, rate, max(1, output)), chunks


@given(axes())
def test_bounds_are_aligned_and_no_core_is_smaller_than_the_halo(drawn: tuple[Axis, tuple[int, ...]]) -> None:
    axis, chunks = drawn
    cuts, merged = bounds(axis, chunks)
    assert cuts[0] == 0 and cuts[-1] == axis.extended
    sizes = [b - a for a, b in pairwise(cuts)]
    assert all(size > 0 and size % axis.alignment == 0 for size in sizes)
    assert len(sizes) == 1 or min(sizes) >= axis.before + axis.after
    if all(n >= axis.before + axis.after and n % axis.alignment == 0 for n in chunks):
        assert sizes == list(chunks) and not merged


@given(axes(), st.integers(1, 6))
def test_cores_partition_the_output(drawn: tuple[Axis, tuple[int, ...]], limit: int) -> None:
    axis, chunks = drawn
    cuts = split(bounds(axis, chunks)[0], limit * axis.alignment, axis.alignment)
    assert max(b - a for a, b in pairwise(cuts)) <= limit * axis.alignment
    found = cores(axis, cuts)
    assert found[0].start == 0 and found[-1].stop == axis.output
    assert all(core.size > 0 for core in found) and all(a.stop == b.start for a, b in pairwise(found))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.data())
def test_parts_are_the_rows(chunks: list[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, sum(chunks) - 1))
    stop = data.draw(st.integers(start, sum(chunks)))
    begins = [0, *accumulate(chunks)]
    rows = [begins[n] + row for n, part in parts(Interval(start, stop), chunks) for row in range(chunks[n])[part]]
    assert rows == list(range(start, stop))


def test_what_is_smaller_than_the_halo_is_taken_together() -> None:
    axis = Axis(26, 4, 3, 3, 4, Fraction(1), 26)
    assert bounds(axis, (10, 2, 1, 13)) == ([0, 12, 28], False)
    assert bounds(axis, (1,) * 26) == ([0, 28], True)
    assert bounds(Axis(100, 4, 3, 3, 4, Fraction(1), 100), (2,) * 50) == ([0, 24, 48, 72, 100], True)
    assert bounds(axis, (26,)) == ([0, 28], False)
