"""Passes that take less memory or less precision: the same gradient, or nearly, and the module as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pipeline
from pipeline.network.builtin import build
from pipeline.network.memory import Alive
from pipeline.training.passes import passes, stages
from pipeline.training.statistics import Statistics
from tests.training.drawn import gradient_of
from tests.training.test_training import job, weights

NETWORKS = {
    "unet": {"base": 4, "depth": 2, "norm": "batch", "channels": 2},
    "fcn": {"variant": 8, "widths": [2, 2, 2, 2, 2], "head": 4, "channels": 2},
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(name, NETWORKS[name]).train()


def backward(module: nn.Module, size: int, **given: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The gradient of some loss, and the module's state after the step."""
    module.zero_grad()
    like = next(module.parameters())
    torch.manual_seed(1)
    image = torch.rand(2, 2, size, size, dtype=like.dtype)
    statistics = Statistics(module)
    statistics.begin()
    with passes(module, statistics, **{"mixed": False, "recompute": False, **given}):
        logits = module(image)
        assert logits.dtype == like.dtype
        logits.square().mean().backward()
    statistics.end(lambda tensor: None)
    return gradient_of(module), module.state_dict()


@pytest.mark.parametrize("name", NETWORKS)
def test_stages_that_are_computed_again_give_the_same_gradient_and_statistics(name: str) -> None:
    plain, state = backward(network(name).double(), 64)
    module = network(name).double()
    again, kept = backward(module, 64, recompute=True)
    assert float((again - plain).abs().max()) < 1e-12
    assert list(kept) == list(state) and all(torch.allclose(kept[key], state[key], atol=1e-12) for key in state)
    assert not any("forward" in vars(part) for part in module.modules()) and len(stages(module)) > 5


def test_stages_that_are_computed_again_take_less_memory() -> None:
    peaks = []
    for recompute in (False, True):
        module = build("unet", {"base": 4, "depth": 3, "norm": "batch", "channels": 2}).train()
        with Alive(reorders=False) as alive:
            backward(module, 128, recompute=recompute)
        peaks.append(alive.peak)
    assert peaks[1] < 0.75 * peaks[0]


def test_a_gradient_in_bfloat16_is_near_that_in_float32() -> None:
    plain, _ = backward(network("unet"), 32)
    mixed, state = backward(network("unet"), 32, mixed=True)
    assert mixed.dtype == torch.float32
    assert 0 < float((mixed - plain).norm() / plain.norm()) < 0.1
    assert all(tensor.dtype != torch.bfloat16 for tensor in state.values())


def test_jobs_that_ask_for_it(tmp_path: Path) -> None:
    """Recomputed the same weights result; in bfloat16 others, in float32, which predict in float32."""
    data = {**job(tmp_path)["data"], "validation": {"fraction": 0.3}}
    runs = {
        name: pipeline.train(job(tmp_path, run=f"{tmp_path}/{name}", steps=3, data=data, **given))
        for name, given in {
            "plain": {},
            "again": {"checkpoint_activations": True},
            "mixed": {"precision": "bfloat16"},
            "both": {"precision": "bfloat16", "checkpoint_activations": True},
        }.items()
    }
    plain, again, mixed, both = (weights(run.path) for run in runs.values())
    assert torch.equal(again, plain) and torch.equal(both, mixed)
    assert 0 < float((mixed - plain).abs().max()) < 0.05 and mixed.dtype == torch.float32
    assert np.isfinite(runs["mixed"].metrics["loss"]) and runs["mixed"].metrics["mean_iou"] is not None
