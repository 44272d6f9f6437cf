"""Batch norm that trains: statistics of each pass by itself, and running ones that move once a step.

In training mode a batch norm normalises the tiles of a pass, halos included, by their own mean and variance, so a step
on tiles is no longer the whole image's: only networks without batch norm, or with it frozen, have that. What is kept is
that the number of workers changes nothing: it has no part in which tiles share a pass, and the running statistics, by
which inference normalises, move by the mean and variance of all pixels of the step together, which differ between
tiles as well as within them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle


class Statistics:
    """The running statistics of all batch norms of a module that are in training mode."""

    def __init__(self, module: nn.Module) -> None:
        self.norms = [
            part
            for part in module.modules()
            if isinstance(part, _BatchNorm) and part.training and part.running_mean is not None
        ]
        self.momenta = [0.1 if norm.momentum is None else norm.momentum for norm in self.norms]
        self.seen: dict[nn.Module, Tensor] = {}
        for norm in self.norms:
            norm.momentum = 0.0  # a single pass moves nothing
        self.watched: list[RemovableHandle] = []
        self.counts = True

    def begin(self) -> None:
        """A step begins: from here to its end, what each norm is given counts."""
        self.steps = [norm.get_buffer("num_batches_tracked").clone() for norm in self.norms]
        self.watched = [norm.register_forward_hook(self._see) for norm in self.norms]
        for norm in self.norms:
            assert norm.running_mean is not None
            zeros = torch.zeros(norm.num_features, dtype=torch.float64, device=norm.running_mean.device)
            self.seen[norm] = torch.stack([zeros] * 3)

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """What norms are given meanwhile they were given before."""
        self.counts = False
        try:
            yield
        finally:
            self.counts = True

    def _see(self, norm: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        """Adds up numbers, sums and squares of each channel; a pass without gradient, before the other, not twice."""
        if not (self.counts and torch.is_grad_enabled()):
            return
        values = inputs[0].detach()
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        variance, mean = (of.double() for of in torch.var_mean(values, (0, 2, 3), correction=0))
        count = values.numel() // values.shape[1]
        self.seen[norm] += torch.stack([torch.full_like(mean, count), count * mean, count * (variance + mean**2)])

    def end(self, add: Callable[[Tensor], None]) -> None:
        """Moves the running statistics by what all workers saw; `add` sums over the workers."""
        while self.watched:
            self.watched.pop().remove()
        for norm, momentum, steps in zip(self.norms, self.momenta, self.steps, strict=True):
            seen = self.seen[norm]
            add(seen)
            count, mean, square = seen[0, 0], seen[1] / seen[0], seen[2] / seen[0]
            if count > 1:
                assert norm.running_mean is not None and norm.running_var is not None
                steps += 1
                variance = (square - mean**2).clamp(min=0) * count / (count - 1)
                norm.running_mean.lerp_(mean.to(norm.running_mean), momentum)
                norm.running_var.lerp_(variance.to(norm.running_var), momentum)
            norm.get_buffer("num_batches_tracked").copy_(steps)  # not tiles, of which each worker sees others
