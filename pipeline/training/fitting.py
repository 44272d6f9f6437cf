"""How many samples go through the network together where a job leaves that open: as many as memory holds.

It is tried: 1, 2, 4, ... samples of the largest shape go forwards and back. On a CPU the bytes of all tensors are
counted that are there at a time, which is the same on every machine; a GPU is filled until it has no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from pipeline.network.memory import Alive
from pipeline.tiling.geometry import Region
from pipeline.training.gradient import Read, batch_gradient
from pipeline.training.passes import passes
from pipeline.training.sampling import Cores, Sample
from pipeline.training.statistics import Statistics
from pipeline.training.task import Task

HEAP = 1.4
"""Bytes that the CPU's allocator holds for each of a tensor, as freed blocks lie between those in use. Measured: peaks
of a U-Net (base 8, depth 3) with 4 and 16 tiles of 128 in a pass were 1.37 and 1.42 times what was counted."""


def most_that_fit(used: Callable[[int], int], budget: float, most: int) -> tuple[int, int]:
    """(samples, bytes): the greatest power of two up to `most` for which `used` says no more than the budget.

    What twice as many would use is foretold from the last two tries, so that nothing beyond the budget is tried; two
    are taken to use twice what one does.
    Raises ValueError where one sample is beyond it.
    """
    samples, now = 1, used(1)
    before = now / 2
    if now > budget:
        raise ValueError(
            f"memory={budget / 1e6:.0f}MB: training on one sample takes {now / 1e6:.0f}MB; give as much, "
            "smaller cores, or checkpoint_activations: true"
        )
    while 2 * samples <= most and now + 2 * (now - before) <= budget:
        try:
            more = used(2 * samples)
        except torch.OutOfMemoryError:
            break
        if more > budget:
            break
        samples, before, now = 2 * samples, now, more
    return samples, now


def fit(task: Task, module: nn.Module, device: str, world: int) -> tuple[int, int]:
    """(samples, bytes) of a pass that fits the task's memory, or the GPU's, and is no more than a worker's epoch.

    `module`: a copy for trying, in training mode. Raises ValueError where not even one sample fits.
    """
    cores = task.cut()
    read = _largest(cores, task.channels)
    statistics = Statistics(module)
    beside = _beside(task, module)

    def train(samples: int) -> None:
        held = torch.empty(beside, dtype=torch.uint8, device=device)
        with passes(module, statistics, mixed=task.precision == "bfloat16", recompute=task.checkpoint_activations):
            batch_gradient(module, lambda: [read] * samples, task.loss, lambda sums: None, together=samples)
        module.zero_grad()
        del held

    most = math.ceil(sum(map(len, cores)) / world)
    budget = task.memory if torch.device(device).type == "cpu" else math.inf
    return most_that_fit(lambda samples: peak_of(lambda: train(samples), device), budget, most)


def peak_of(run: Callable[[], None], device: str) -> int:
    """The most bytes that tensors take at a time while something runs."""
    if torch.device(device).type == "cpu":
        with (alive := Alive(reorders=False)):
            run()
        return round(HEAP * alive.peak)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device)


def _beside(task: Task, module: nn.Module) -> int:
    """Bytes that training holds beside a pass: weights, the optimiser's state, a running mean, the best so far."""
    slots = {"sgd": int(task.optimizer["momentum"] > 0)}.get(task.optimizer["name"], 2)
    copies = 1 + slots + (task.ema is not None) + (task.validation is not None)
    return copies * sum(p.numel() * p.element_size() for p in module.parameters())


def _largest(cores: list[Cores], channels: int) -> Read:
    """A sample as large as any read of these, all of whose outputs are labelled."""
    grid = max((of.grid for of in cores), key=lambda grid: grid.y.largest_read * grid.x.largest_read)
    rows, columns = (
        axis.core_of(max(range(len(axis)), key=lambda tile: axis.read_of(tile).size)) for axis in (grid.y, grid.x)
    )
    tile = grid.window(Region(rows, columns))
    pixels = np.zeros((channels, *tile.read.shape), np.float32)
    return Sample(0, 0, tile), pixels, np.zeros(tile.core.shape, np.int64)
