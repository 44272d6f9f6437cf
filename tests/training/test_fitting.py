"""batch: auto is what the memory holds, found once a run; passes are the same on any number of workers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pipeline
from pipeline.jobfile import validated
from pipeline.network.memory import Alive
from pipeline.network.unet import UNet
from pipeline.tiling.geometry import Region
from pipeline.tiling.grid import Tile
from pipeline.training.fitting import HEAP, most_that_fit, peak_of
from pipeline.training.gradient import accumulate
from pipeline.training.loss import CrossEntropy
from pipeline.training.sampling import Sample, Sampler, dealt
from pipeline.training_job import TrainJob
from pipeline.training_task import passes_of
from tests.training.drawn import Drawn, gradient_of
from tests.training.test_training import job, weights

NOWHERE = Region.of(0, 1, 0, 1)


@given(st.integers(0, 50), st.integers(1, 50), st.integers(1, 1000), st.integers(1, 100))
def test_the_most_that_fit_is_found_without_trying_far_beyond_the_budget(
    fixed: int, each: int, budget: int, most: int
) -> None:
    tried: list[int] = []

    def used(samples: int) -> int:
        tried.append(samples)
        return fixed + samples * each

    if fixed + each > budget:
        with pytest.raises(ValueError, match=r"^memory=.*: training on one sample takes"):
            most_that_fit(used, budget, most)
        return
    samples, bytes_ = most_that_fit(used, budget, most)
    assert bytes_ == fixed + samples * each <= budget and samples <= most
    assert 2 * samples > most or (fixed + 2 * samples * each if samples > 1 else 2 * (fixed + each)) > budget
    assert all(fixed + n * each <= budget for n in tried)


def test_a_device_that_is_full_is_stepped_back_from() -> None:
    def used(samples: int) -> int:
        if samples > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return samples

    assert most_that_fit(used, float("inf"), 100) == (4, 4)


def test_what_is_counted_is_what_is_there_at_a_time() -> None:
    def run() -> None:
        one = torch.zeros(1000, dtype=torch.uint8)
        two = one + 1
        one.view(10, 100)
        del one
        two.neg()

    assert peak_of(run, "cpu") == round(HEAP * 2000)
    with Alive(reorders=False) as alive:
        run()
    assert alive.now == 0


def told(run: Any) -> dict[str, Any]:
    """What the log says first."""
    line: dict[str, Any] = json.loads((Path(run.path) / "metrics.jsonl").read_text().splitlines()[0])
    return line


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_batch_that_is_left_open_fills_the_memory_and_goes_on_as_it_was(tmp_path: Path, norm: str) -> None:
    """Twice the memory holds twice as many; a run that goes on with other memory has its batch nonetheless."""
    network = {**job(tmp_path)["network"], "norm": norm}
    given = {"batch": "auto", "network": network, "checkpoint_every": 1, "steps": 2}
    small = pipeline.train(job(tmp_path, run=f"{tmp_path}/small", memory="6MB", **given))
    large = pipeline.train(job(tmp_path, run=f"{tmp_path}/large", memory="12MB", **given))
    assert told(small)["step"] == 0 and told(small)["batch"] == told(small)["together"] >= 2
    assert 0 < told(small)["megabytes"] <= 6 and told(small)["megabytes"] < told(large)["megabytes"] <= 12
    assert told(large)["batch"] == 2 * told(small)["batch"]
    card = json.loads((Path(small.path) / "network.json").read_text())["training"]
    assert (card["batch"], card["together"]) == (told(small)["batch"],) * 2

    (Path(small.path) / "network.json").unlink()  # as if it had been interrupted after the first step
    (Path(small.path) / "checkpoints" / "00000002.pt").unlink()
    before = weights(large.path)
    again = pipeline.train(job(tmp_path, run=f"{tmp_path}/small", memory="12MB", **given))
    assert again.resumed == 1 and told(again) == told(small)
    given["batch"] = given["together"] = told(large)["batch"]
    number = pipeline.train(job(tmp_path, run=f"{tmp_path}/number", **given))
    assert torch.equal(weights(number.path), before)


def test_too_little_memory_is_one_line_that_names_the_least(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^memory=1MB: training on one sample takes \dMB; give as much, sm"):
        pipeline.train(job(tmp_path, batch="auto", memory="1MB"))


@given(st.integers(0, 40), st.integers(1, 12), st.integers(1, 5), st.integers(1, 4))
def test_groups_are_dealt_whole_to_one_worker_each(first: int, count: int, group: int, world: int) -> None:
    samples = [Sample(first + n, 0, Tile(0, NOWHERE, NOWHERE, NOWHERE), at=n) for n in range(count)]
    hands = [dealt(samples, rank, world, group) for rank in range(world)]
    assert sorted(s.number for hand in hands for s in hand) == [s.number for s in samples]
    owners = {s.at: rank for rank, hand in enumerate(hands) for s in hand}
    assert all(owners[a] == owners[b] for a in owners for b in owners if a // group == b // group)


def test_batch_norm_sees_the_same_passes_on_any_number_of_workers() -> None:
    """Its gradient depends on which samples share a pass, so one worker's stacks must be those of several."""
    drawn = Drawn.random(lambda: UNet(2, 2, "batch", channels=2, classes=2), [(40, 56)])
    samples = Sampler(drawn.cores("tiles", (8, 8)), 12).step(0)

    def found(world: int, together: int, grouped: bool) -> torch.Tensor:
        module = copy.deepcopy(drawn.module).train()
        for rank in range(world):
            mine = dealt(samples, rank, world, together if grouped else 1)
            accumulate(module, drawn.reads(mine), CrossEntropy(), together=together, grouped=grouped)
        return gradient_of(module)

    alone, stacked = found(1, 1, True), found(1, 3, True)
    assert float((alone - stacked).abs().max()) > 1e-3
    for world in (2, 3):
        assert torch.allclose(found(world, 3, True), stacked, rtol=0, atol=1e-10)
        assert not torch.allclose(found(world, 3, False), stacked, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("keep", "warns"), [(1.0, True), (0.5, False)])
def test_workers_that_have_nothing_to_train_on_are_told_of(
    caplog: pytest.LogCaptureFixture, keep: float, warns: bool
) -> None:
    """Four samples are one pass of batch norm, and eight, where half of their loss is kept, are two."""
    data = {"train": [{"image": "/a.png", "label": "/b.png"}]}
    made = {"run": "/r", "data": data, "batch": 4, "workers": 2, "sampling": {"loss_keep": keep}}
    assert passes_of(validated(TrainJob, made), learns=True) == 4
    assert ("so only 1 of 2 workers have any to train on" in caplog.text) == warns


@pytest.mark.parametrize(("batch", "expected"), [(3, [3]), (5, [4, 1]), ("image", [4, 2])])
def test_batch_norm_sees_as_many_of_a_step_together_as_there_are(batch: Any, expected: list[int]) -> None:
    """Whichever step it is: no tile is alone in a pass that others of its step could share."""
    drawn = Drawn.random(lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)), [(16, 24), (24, 16)])
    module, passes = drawn.module.train(), list[int]()
    module.register_forward_hook(lambda _, inputs, output: passes.append(len(inputs[0])))
    sampler = Sampler(drawn.cores("tiles", (8, 8)), batch)
    for step in range(5):
        for rank in range(2):
            reads = drawn.reads(dealt(sampler.step(step), rank, 2, 4))
            accumulate(module, reads, CrossEntropy(), together=4, grouped=True)
    assert passes == 5 * expected
