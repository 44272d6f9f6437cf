"""Samples of a step: every core once an epoch, the same whoever asks and wherever a run begins; what is refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tiling.geometry import ReceptiveField, Region
from pipeline.training.sampling import Cores, Sampler, cut, shuffled

FIELD = ReceptiveField((5, 5), (5, 5), (4, 8))


@given(st.integers(1, 700), st.integers(0, 5), st.integers(0, 5))
def test_an_order_holds_every_number_once(count: int, seed: int, epoch: int) -> None:
    assert sorted(shuffled(i, count, seed, epoch) for i in range(count)) == list(range(count))


def test_orders_are_of_their_own_and_any_number_is_about_as_likely_anywhere() -> None:
    orders = [[shuffled(i, 10, seed, 0) for i in range(10)] for seed in range(4000)]
    assert len({tuple(order) for order in orders}) > 3900
    for at in range(10):
        counts = Counter(order[at] for order in orders)
        assert all(300 < counts[n] < 500 for n in range(10)), counts
    assert 0 <= shuffled(10**14 - 1, 10**14, 3) < 10**14


@given(st.tuples(st.integers(1, 60), st.integers(1, 60)), st.sampled_from(["tiles", "whole", "patches"]), st.data())
def test_cores_partition_the_outputs_with_labels(size: tuple[int, int], kind: Any, data: st.DataObject) -> None:
    region = None
    if data.draw(st.booleans()):
        y, x = (sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in size)
        region = Region.of(y[0], y[1], x[0], x[1])
    cores = cut(size, FIELD, kind, (8, 16), region)
    seen = np.zeros(size, int)
    for number in range(len(cores)):
        tile = cores.tile(number)
        assert min(tile.core.shape) > 0
        seen[tile.core.slices] += 1
    expected = np.zeros(size, int)
    expected[(region or Region.of(0, size[0], 0, size[1])).slices] = 1
    assert (seen == expected).all()


def images(*sizes: tuple[int, int]) -> list[Cores]:
    return [cut(size, FIELD, "tiles", (8, 8)) for size in sizes]


def where(sampler: Sampler, steps: range) -> list[tuple[int, int, Region]]:
    return [(s.number, s.image, s.tile.core) for n in steps for s in sampler.step(n)]


def test_an_epoch_holds_every_core_of_every_image_once_whatever_the_batch() -> None:
    cores = images((30, 20), (8, 8), (50, 9))
    total = sum(len(c) for c in cores)
    one = where(Sampler(cores, 1, seed=5), range(2 * total))
    for epoch in (one[:total], one[total:]):
        assert len({(image, core) for _, image, core in epoch}) == total
    assert [s[1:] for s in one[:total]] != [s[1:] for s in one[total:]]
    for batch in (3, 2 * total + 1):
        assert where(Sampler(cores, batch, seed=5), range(4))[: 2 * total] == one[: 4 * batch]
    assert where(Sampler(cores, 1, seed=6), range(total)) != one[:total]


def test_a_step_of_one_image_holds_all_its_cores() -> None:
    cores = images((30, 20), (8, 8), (50, 9))
    sampler = Sampler(cores, "image", seed=2)
    numbers = set()
    for first in (0, 3):
        seen = []
        for n in range(first, first + 3):
            samples = sampler.step(n)
            assert len({s.image for s in samples}) == 1 and len(samples) == len(cores[samples[0].image])
            seen.append(samples[0].image)
            numbers |= {s.number for s in samples}
        assert sorted(seen) == [0, 1, 2]
    assert len(numbers) == 2 * sum(len(c) for c in cores)


def test_batches_are_enlarged_where_outputs_keep_their_loss_by_chance() -> None:
    cores = images((30, 20), (50, 9))
    assert len(Sampler(cores, 8, keep=0.25).step(3)) == 32
    assert len({s.image for s in Sampler(cores, "image", keep=0.5).step(3)}) == 2
    sampler = Sampler([cut((400, 400), FIELD, "whole", None)], 1, keep=0.25, seed=7)
    sample, other = sampler.step(0)[:2]
    kept = sampler.kept(sample)
    assert kept.shape == (400, 400) and abs(kept.mean() - 0.25) < 0.01
    assert (sampler.kept(sample) == kept).all() and (sampler.kept(other) != kept).any()


def test_a_core_that_is_no_multiple_of_the_alignment_is_refused_with_the_nearest_that_are() -> None:
    with pytest.raises(ValueError, match=r"^sampling.core=10,16 .* 4,8: the nearest are 8,16 and 12,24$"):
        cut((90, 90), FIELD, "tiles", (10, 16))
    with pytest.raises(ValueError, match=r"^sampling.core=3 is no multiple .* 4,8: the nearest are 4,8 and 8,16$"):
        cut((90, 90), FIELD, "tiles", (3, 3))


def test_a_network_that_is_not_local_trains_on_whole_images_only() -> None:
    field = replace(FIELD, before=(0, 0), after=(0, 0), nonlocal_operations=("norm: group_norm: sees all",))
    for kind in ("tiles", "patches"):
        with pytest.raises(ValueError, match=rf"^sampling.kind={kind}: .* not local, .*: norm: group_norm: sees all$"):
            cut((30, 30), field, kind, (8, 8))  # type: ignore[arg-type]
    tile = cut((30, 30), field, "whole", None).tile(0)
    assert tile.core == Region.of(0, 30, 0, 30) and tile.read == Region.of(0, 32, 0, 32)


def test_a_whole_image_is_read_without_what_is_held_out_of_it() -> None:
    cores = cut((64, 96), FIELD, "whole", None, Region.of(0, 64, 0, 60))
    assert len(cores) == 1 and cores.tile(0).core == Region.of(0, 64, 0, 60)
    assert cores.tile(0).read.y.size == 64 and 60 <= cores.tile(0).read.x.stop < 80
    field = replace(FIELD, nonlocal_operations=("norm: group norm: sees all",))
    with pytest.raises(ValueError, match=r"by=region: the network is not local"):
        cut((64, 96), field, "whole", None, Region.of(0, 64, 0, 60))


def test_images_without_an_output_are_left_out_and_nothing_else_is_refused() -> None:
    field = replace(FIELD, surplus=(-20, -20))
    small, large = cut((12, 12), field, "tiles", (8, 8)), cut((40, 40), field, "tiles", (8, 8))
    assert {s.image for n in range(3) for s in Sampler([small, large], "image").step(n)} == {1}
    with pytest.raises(ValueError, match="no image is large enough"):
        Sampler([small], 4)


def test_cores_without_a_label_are_in_no_epoch() -> None:
    cores = images((16, 16), (8, 24))
    labels = [np.array([[3, 0], [0, 0], [0, 1], [2, 2]]), np.array([[0, 0], [1, 0], [0, 0]])]
    some = [of_image.labelled(counts) for of_image, counts in zip(cores, labels, strict=True)]
    expected = {(0, cores[0].tile(n).core) for n in (0, 2, 3)} | {(1, cores[1].tile(1).core)}
    sampler = Sampler(some, 1, seed=5)
    assert len(sampler) == 4 and {s[1:] for s in where(sampler, range(4))} == expected
    assert [len(Sampler(some, "image").step(n)) for n in range(2)] in ([1, 3], [3, 1])


def test_balanced_steps_see_classes_in_turn_from_the_cores_that_have_them() -> None:
    """One core of a hundred has class 2, another three times as much of it, and class 1 is nowhere."""
    counts = np.zeros((100, 3), int)
    counts[:, 0] = 64
    counts[17, 2], counts[80, 2] = 5, 15
    cores = cut((80, 80), FIELD, "tiles", (8, 8)).labelled(counts)
    sampler = Sampler([cores], 3, seed=2, balanced=True)
    drawn = where(sampler, range(1000))
    assert where(Sampler([cores], 1, seed=2, balanced=True), range(2000, 2100)) == drawn[2000:2100]
    assert len({number for number, *_ in drawn}) == 3000
    numbers = Counter(core for _, _, core in drawn[1::2])
    rare, common = (numbers[cores.tile(n).core] for n in (17, 80))
    assert rare + common == 1500 and 310 < rare < 440
    others = Counter(core for _, _, core in drawn[::2])
    assert len(others) == 100 and max(others.values()) < 40
    assert where(Sampler([cores], 3, seed=3, balanced=True), range(9)) != drawn[:27]
