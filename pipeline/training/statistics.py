"""Batch norm that trains: statistics of each tile by itself, and running ones that move once a step.

In training mode a batch norm normalises a tile, halo included, by that tile's own mean and variance, so a step on tiles
is no longer the whole image's: only networks without batch norm, or with it frozen, have that. What is kept is that the
number of workers changes nothing: the running statistics move by the mean over all samples of the step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Statistics:
    """The running statistics of all batch norms of a module that are in training mode."""

    def __init__(self, module: nn.Module) -> None:
        self.norms = [
            part
            for part in module.modules()
            if isinstance(part, _BatchNorm) and part.training and part.running_mean is not None
        ]
        self.momenta = [0.1 if norm.momentum is None else norm.momentum for norm in self.norms]

    def begin(self) -> None:
        """From here on, each norm averages what it sees."""
        self.before = [[b.clone() for b in self._buffers(norm)] for norm in self.norms]
        for norm in self.norms:
            norm.momentum = None  # a plain average since the last reset
            norm.reset_running_stats()

    def end(self, add: Callable[[Tensor], None]) -> None:
        """Moves the running statistics as they were by what all workers saw; `add` sums over the workers."""
        for norm, (mean, variance, steps), momentum in zip(self.norms, self.before, self.momenta, strict=True):
            seen_mean, seen_variance, count = self._buffers(norm)
            seen = torch.cat([seen_mean * count, seen_variance * count, count[None].to(seen_mean)])
            add(seen)
            if seen[-1] > 0:
                new_mean, new_variance = (seen[:-1] / seen[-1]).chunk(2)
                mean, variance, steps = mean.lerp(new_mean, momentum), variance.lerp(new_variance, momentum), steps + 1
            for buffer, value in zip((seen_mean, seen_variance, count), (mean, variance, steps), strict=True):
                buffer.copy_(value)
            norm.momentum = momentum

    @staticmethod
    def _buffers(norm: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
        assert mean is not None and variance is not None and count is not None
        return mean, variance, count
