"""A plan: its fingerprint, its JSON, its units, and the tile that is chosen for it."""

from __future__ import annotations

import json
import time
import tracemalloc
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.tiling.geometry import Interval, ReceptiveField
from pipeline.tiling.grid import Grid, build_layout
from pipeline.tiling.plan import HALO_COST, SIDES, SMALL_SIDES, Plan, check_core, choose_core

Pair = tuple[int, int]
FIELD = ReceptiveField((13, 5), (13, 6), (4, 2), (Fraction(1), Fraction(1)), halo=((11, 11), (5, 6)), least=(8, 2))


def plan_of(
    size: Pair = (1300, 900), core: Pair = (256, 128), planes: int = 1, field: ReceptiveField = FIELD, axes: str = "cyx"
) -> Plan:
    shape = tuple({"c": 2, "z": planes}[a] for a in axes[:-2]) + field.output_shape(*size)
    grid = Grid.build(size, core, field, planes)
    return Plan(
        image={"identity": "sha256:1", "shape": [3, *size], "dtype": "uint8", "level": 0, "channels": None},
        network={"identity": "sha256:2", "name": "net"},
        kind="logits",
        activation="softmax",
        precision="float32",
        device="cpu",
        mode="exact",
        field=field,
        size=size,
        planes=planes,
        core=core,
        layout=build_layout(axes, "float32", shape, (grid.y.step, grid.x.step), whole=True),
        window=None,
        memory=1000,
    )


PLAN = plan_of()
OTHER: dict[str, Any] = {
    "image": {**PLAN.image, "identity": "sha256:3"},
    "network": {"identity": "sha256:4", "name": "net"},
    "kind": "mask",
    "activation": "sigmoid",
    "precision": "float64",
    "device": "cuda",
    "mode": "blend",
    "field": replace(FIELD, before=(14, 5)),
    "size": (1301, 900),
    "planes": 2,
    "core": (252, 128),
    "layout": build_layout("cyx", "float32", (2, 1300, 900), (128, 128), whole=True),
    "window": (64, 64),
    "band": 64,
    "folded": True,
}


def test_every_field_but_forecasts_decides_the_fingerprint():
    assert set(OTHER) == {f.name for f in fields(Plan)} - {"memory", "whole"}
    prints = [replace(PLAN, **{name: value}).fingerprint for name, value in OTHER.items()]
    assert len({PLAN.fingerprint, *prints}) == len(OTHER) + 1
    forecast = replace(PLAN, memory=5, whole="why")
    assert forecast.fingerprint == PLAN.fingerprint and forecast == PLAN


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("after", (13, 7)), ("alignment", (2, 2)), ("rate", (Fraction(1), Fraction(1, 2))), ("surplus", (0, -2)),
        ("least", (12, 2)), ("offset", (0.5, 0.0)), ("halo", ((11, 12), (5, 6))), ("nonlocal_operations", ("0: a: b",)),
    ],
)  # fmt: skip
def test_every_part_of_the_field_decides_the_fingerprint(name: str, value: Any):
    assert replace(PLAN, field=replace(FIELD, **{name: value})).fingerprint != PLAN.fingerprint


def test_the_fingerprint_is_the_same_in_another_order_and_another_process():
    shuffled = replace(PLAN, image=dict(reversed(PLAN.image.items())))
    assert shuffled.fingerprint == PLAN.fingerprint and len(PLAN.fingerprint) == 64


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    pairs = st.tuples(st.integers(0, 9), st.integers(0, 9))
    rate = draw(st.sampled_from([Fraction(1), Fraction(1, 4), Fraction(3), Fraction(3, 2)]))
    alignment = (rate.denominator * draw(st.integers(1, 4)), rate.denominator)
    before, after = draw(pairs), draw(pairs)
    halo = draw(st.sampled_from([None, (before, after)]))
    field = ReceptiveField(before, after, alignment, (rate, rate), (0, 0), offset=(0.25, -1 / 3), halo=halo)
    core = (alignment[0] * draw(st.integers(1, 60)), alignment[1] * draw(st.integers(1, 60)))
    axes = draw(st.sampled_from(["yx", "cyx", "zyx", "czyx"]))
    planes = draw(st.integers(1, 3)) if "z" in axes else 1
    size = (draw(st.integers(1, 5 * core[0])), draw(st.integers(1, 5 * core[1])))
    plan = plan_of(size, core, planes, field, axes)
    return replace(plan, band=draw(st.integers(0, 64)), window=draw(st.sampled_from([None, (64, 32)])))


@given(plans())
def test_a_plan_comes_back_from_json_text(plan: Plan):
    back = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert replace(back, field=plan.field) == plan and back.memory == plan.memory
    assert back.fingerprint == plan.fingerprint
    assert [back.field.halo_of(i) for i in (0, 1)] == [plan.field.halo_of(i) for i in (0, 1)]
    assert back.grid == plan.grid and back.stages == plan.stages


def test_a_plan_of_another_format_is_refused():
    with pytest.raises(ValueError, match=r"another version.*--overwrite"):
        Plan.from_json({**PLAN.to_json(), "format": 0})


@settings(max_examples=30)
@given(plans())
def test_units_write_every_shard_of_every_level_once(plan: Plan):
    shards: dict[int, list[Any]] = {}
    for unit in range(plan.units):
        level, region = plan.region_of(unit)
        assert level == plan.level_of(unit) and unit in plan.stages[level]
        shards.setdefault(level, []).extend(plan.layout.shards_within(level, region))
        for axis, shard, size in zip(region, plan.layout.shards[level], plan.layout.shapes[level], strict=True):
            assert axis.start % shard == 0 and (axis.stop % shard == 0 or axis.stop == size)
    for level in range(len(plan.layout.shapes)):
        counts = plan.layout.shard_counts(level)
        within = plan.layout.shards_within(level, tuple(Interval(0, n) for n in plan.layout.shapes[level]))
        assert sorted(shards[level]) == sorted(within)
        count = 1
        for n in counts:
            count *= n
        assert len(shards[level]) == count


def test_a_million_tiles_are_planned_in_less_than_a_second():
    tracemalloc.start()
    began = time.process_time()
    plan = plan_of((256_000, 256_000), (256, 256))
    assert plan.tiles == 1_000_000 and plan.units > plan.tiles
    assert plan.region_of(plan.units - 1)[0] == len(plan.layout.shapes) - 1
    assert plan.read_amplification < 1.2 and len(plan.fingerprint) == 64
    assert time.process_time() - began < 1
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def needs(grid: Grid) -> int:
    return 100 * grid.largest_read[0] * grid.largest_read[1]


def grids_of(size: Pair, field: ReceptiveField, sides: tuple[int, ...]) -> dict[Pair, Grid]:
    """By their cores: square, smallest first, no larger than the image where that is at most one shard."""
    grids = {}
    for side in sorted(sides):
        core = [-(-side // a) * a for a in field.alignment]
        rows, columns = (c if n > 2048 else min(c, n) for c, n in zip(core, field.extended(*size), strict=True))
        grids[rows, columns] = Grid.build(size, (rows, columns), field)
    return grids


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)),
    st.integers(0, 200),
    st.sampled_from([1, 4, 32]),
    st.sampled_from([10**6, 10**7, 10**8, 10**9, 10**11]),
)
def test_the_core_is_the_smallest_within_the_halo_cost_or_the_largest_that_memory_allows(
    size: Pair, reach: int, alignment: int, memory: int
):
    field = ReceptiveField((reach, reach), (reach, reach), (alignment, alignment))
    large = grids_of(size, field, SIDES)
    fitting = [c for c, grid in (grids_of(size, field, SMALL_SIDES) | large).items() if needs(grid) <= memory]
    if not fitting:
        with pytest.raises(ValueError, match="give --memory"):
            choose_core(size, field, needs, memory)
        return
    cheap = [c for c in large if c in fitting and large[c].read_amplification <= HALO_COST]
    expected = cheap[0] if cheap else max(fitting, key=lambda c: c[0] * c[1])
    assert choose_core(size, field, needs, memory) == expected


def test_cores_of_a_coarse_network_are_large_enough_for_its_shards():
    """16 x 16 pixels make one; of 512 x 512 as many would be a file of a kilobyte."""
    field = ReceptiveField((0, 0), (0, 0), (16, 16), (Fraction(1, 16), Fraction(1, 16)))
    assert choose_core((100_000, 100_000), field, lambda grid: 0, 1) == (4096, 4096)
    assert choose_core((100_000, 100_000), field, lambda grid: grid.y.core, 2000) == (1792, 1792)
    assert choose_core((1000, 1000), field, lambda grid: 0, 1) == (1008, 1008)


def test_windows_on_junctions_cost_as_a_halo_does():
    """Those of 512 run 9 times for each pixel in tiles of 512, where their overlap alone makes 4."""
    field, window = ReceptiveField((0, 0), (0, 0), (1, 1)), (512, 512)
    core = choose_core((30_000, 30_000), field, lambda grid: 0, 1, window)
    chosen, small = (replace(plan_of((30_000,) * 2, c, field=field), window=window) for c in (core, (512, 512)))
    assert core == (6144, 6144) and chosen.read_amplification < 4.1 * HALO_COST and small.read_amplification > 8.9
    assert choose_core((30_000, 30_000), field, needs, 10**8, window) == (768, 768)


def test_the_least_memory_is_named_and_would_do():
    field = ReceptiveField((50, 50), (50, 50), (16, 16))
    with pytest.raises(ValueError, match=r"the smallest tile needs \d+ MB; give --memory \d+MB or more") as caught:
        choose_core((5000, 5000), field, needs, 100_000)
    named = int(str(caught.value).split("--memory ")[1].split("MB")[0]) * 10**6
    assert needs(Grid.build((5000, 5000), choose_core((5000, 5000), field, needs, named), field)) <= named


def test_a_core_is_a_positive_multiple_of_the_alignment():
    check_core((32, 30), (16, 15))
    for core, said in (
        ((30, 30), "30 rows.*16; 32 would do"),
        ((32, 1), "1 columns.*15; 15 would"),
        ((0, 15), "0 rows"),
    ):
        with pytest.raises(ValueError, match=said):
            check_core(core, (16, 15))


@pytest.mark.parametrize(
    ("dtype", "kind", "size", "reduction"),
    [("float32", "logits", 4, "mean"), ("uint8", "mask", 1, "mode"), ("float16", "pixels", 2, "mean"),
     ("bool", "pixels", 1, "mode")],
)  # fmt: skip
def test_bytes_of_all_levels_and_how_they_are_reduced(dtype: str, kind: str, size: int, reduction: str):
    layout = build_layout("yx", dtype, (1000, 600), (256, 256), whole=True)
    plan = replace(PLAN, kind=kind, layout=layout)
    assert plan.output_bytes == size * (1000 * 600 + 500 * 300) and plan.reduction == reduction


@example((2503, 2503), 300, 1, Fraction(1))
@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)),
    st.integers(0, 400),
    st.sampled_from([1, 3, 4, 14, 32]),
    st.sampled_from([Fraction(1, 4), Fraction(1), Fraction(2)]),
)
def test_shards_of_a_core_that_was_chosen_are_at_most_2048_a_side(
    size: Pair, reach: int, alignment: int, rate: Fraction
):
    """Also of sizes that have no divisors."""
    alignment *= rate.denominator
    field = ReceptiveField((reach, reach), (reach, reach), (alignment, alignment), (rate, rate))
    grid = Grid.build(size, choose_core(size, field, lambda grid: 0, 1), field)
    layout = build_layout("yx", "uint8", field.output_shape(*size), (grid.y.step, grid.x.step), whole=False)
    assert all(n <= 2048 for shard in layout.shards for n in shard)
