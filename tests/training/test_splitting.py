"""What is held out: by image whatever the order on disk, by region with nothing read that is validated."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.tiling.geometry import Interval, ReceptiveField, Region
from pipeline.tiling.grid import Grid
from pipeline.training.pairs import Pair
from pipeline.training.splitting import by_image, by_region, hold_out

SMALL = st.integers(0, 9)


def pairs(count: int, size: tuple[int, int] = (64, 64)) -> list[Pair]:
    return [Pair(f"{n:03}", f"{n:03}.png", f"{n:03}_label.png", size) for n in range(count)]


@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 5))
def test_by_image_every_pair_is_on_one_side(count: int, fraction: float, seed: int) -> None:
    rest, held = by_image(pairs(count), fraction, seed)
    assert (rest, held) == by_image(pairs(count), fraction, seed)
    assert sorted((*rest, *held), key=lambda pair: pair.name) == pairs(count)
    assert rest and held and abs(len(held) - fraction * count) <= 1


def test_the_seed_decides_which() -> None:
    drawn = {by_image(pairs(20), 0.2, seed)[1] for seed in range(5)}
    assert len(drawn) == 5
    with pytest.raises(ValueError, match="one image cannot be split by image"):
        by_image(pairs(1), 0.2, 0)


@st.composite
def fields(draw: st.DrawFn) -> ReceptiveField:
    a = draw(st.sampled_from([1, 2, 3, 8]))
    before, after = draw(SMALL), draw(SMALL)
    r = Fraction(1) if draw(st.booleans()) else Fraction(1, a)
    surplus = -draw(st.integers(0, min(after, before + after))) if r == 1 else 0
    least = a * draw(st.integers(1, 5))
    return ReceptiveField((before,) * 2, (after,) * 2, (a, a), (r, r), (surplus,) * 2, (least,) * 2)


@settings(max_examples=300)
@given(fields(), st.integers(12, 80), st.integers(12, 80), st.floats(0.05, 0.6), st.integers(0, 9), st.data())
def test_by_region_no_training_read_holds_a_validated_pixel(
    field: ReceptiveField, height: int, width: int, fraction: float, seed: int, data: st.DataObject
) -> None:
    shift = -field.surplus[0] // 2
    one = Pair("a", "a.png", "b.png", (height, width), shift=(shift, shift))
    try:
        rest, part = by_region([one], fraction, field, seed)
        if data.draw(st.booleans(), "a test as well"):
            rest, part = by_region(rest, 0.2, field, seed, "test")
    except ValueError:
        assume(False)
    trained, held = rest[0].region, part[0].region
    assert trained is not None and held is not None
    grid = Grid.build((height, width), field.alignment, field)
    core = Region(*(data.draw(within(part)) for part in (trained.y, trained.x)))
    read = grid.window(core).read
    validated = Region(
        *(
            Interval(int(part.start / rate) + shift, int(-(-part.stop // rate)) + shift)
            for part, rate in zip((held.y, held.x), field.rate, strict=True)
        )
    )
    assert not (meet(read.y, validated.y) and meet(read.x, validated.x))


@st.composite
def within(draw: st.DrawFn, rows: Interval) -> Interval:
    start = draw(st.integers(rows.start, rows.stop - 1))
    return Interval(start, draw(st.integers(start + 1, rows.stop)))


def meet(one: Interval, other: Interval) -> bool:
    return one.start < other.stop and other.start < one.stop


def test_by_region_takes_a_strip_at_either_end_of_the_longer_side() -> None:
    field = ReceptiveField((3, 3), (5, 5), (4, 4))
    strips = set()
    for seed in range(8):
        rest, part = by_region(pairs(1, (40, 100)), 0.2, field, seed)
        held, trained = part[0].region, rest[0].region
        assert held is not None and trained is not None
        assert held.y == trained.y == Interval(0, 40) and held.x.size == 20
        strips.add((trained.x, held.x))
    assert strips == {(Interval(0, 68), Interval(80, 100)), (Interval(28, 100), Interval(0, 20))}


def test_a_test_takes_the_other_end_and_its_share_of_all_images() -> None:
    field = ReceptiveField((3, 3), (5, 5), (4, 4))
    ends = set()
    for seed in range(8):
        rest, tested = hold_out(pairs(1, (40, 100)), "test", 0.2, None, field, seed, 1)
        trained, validated = (part[0].region for part in hold_out(rest, "validation", 0.1, None, field, seed, 1))
        assert trained is not None and validated is not None and tested[0].region is not None
        ends.add((trained.x, validated.x, tested[0].region.x))
    first, last = Interval(0, 20), Interval(80, 100)
    assert ends == {(Interval(28, 80), Interval(90, 100), first), (Interval(20, 68), Interval(0, 10), last)}
    rest, _ = hold_out(pairs(20), "test", 0.5, "image", field, 0, 20)
    assert [len(part) for part in hold_out(rest, "validation", 0.2, "image", field, 0, 20)] == [6, 4]
    with pytest.raises(ValueError, match=r"one image cannot be split by image: give data\.test\.by: region"):
        hold_out(pairs(1), "test", 0.5, "image", field, 0, 1)


def test_an_image_that_is_too_small_is_named() -> None:
    with pytest.raises(ValueError, match=r"000\.png is 64 x 64 pixels, too small to hold out 0\.5 of it"):
        by_region(pairs(1), 0.5, ReceptiveField((40, 40), (40, 40), (16, 16)), 0)
