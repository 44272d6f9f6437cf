"""The gradient of a batch's loss, added up tile by tile and worker by worker: that of the whole images at once.

Each output of a core is computed from a read that holds all it depends on, so its loss and the gradient of that are
those of the whole image's forward pass. A sum over tiles in any order, on any number of workers, divided once by what
all labelled outputs of the batch weigh, is therefore the gradient of

    loss = sum of w(label) * loss(output) over the labelled outputs / sum of w(label) over the same outputs

Where only a share of the outputs keeps its loss, each with probability p, the divisor is p times the weight of *all*
labelled outputs of the samples drawn, and not the weight of those that were kept: the expected gradient is then exactly
that of the same samples in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.training.loss import CrossEntropy
from pipeline.training.pairs import IGNORE
from pipeline.training.sampling import Sample
from pipeline.worker import batch

Read = tuple[Sample, np.ndarray, np.ndarray]
"""A sample, its pixels (c, h, w) as stored and extended, and the classes (h', w') of its core, IGNORE among them."""
Kept = Callable[[Sample], np.ndarray] | None
"""Which outputs (h', w') of a sample's core keep their loss; None: all."""


@dataclass
class Sums:
    """What samples add up to beside the gradients, which torch keeps with the parameters."""

    loss: float = 0.0
    weight: float = 0.0
    """What divides loss and gradient."""
    pixels: int = 0
    """Labelled outputs, kept or not."""
    problem: str = ""
    """What kept this worker from adding up its samples."""
    failed: int = 0
    """Workers with a problem."""


def accumulate(
    module: nn.Module,
    reads: Iterable[Read],
    loss: CrossEntropy,
    *,
    kept: Kept = None,
    keep: float = 1.0,
    together: int = 1,
) -> Sums:
    """Adds the gradient of the loss, summed over the reads' cores, to that of the parameters.

    At most `together` reads of one shape go through the network at a time, which bounds the memory. A core without a
    labelled output is not run at all.
    """
    sums = Sums()
    waiting: dict[tuple[int, ...], list[tuple[Sample, np.ndarray, Tensor]]] = {}
    for sample, pixels, classes in reads:
        labels = torch.from_numpy(classes)
        sums.pixels += int((labels != IGNORE).sum())
        sums.weight += keep * float(loss.weight(labels))
        if kept is not None:
            labels = torch.where(torch.from_numpy(kept(sample)), labels, IGNORE)
        if (labels != IGNORE).any():
            stack = waiting.setdefault(pixels.shape, [])
            stack.append((sample, pixels, labels))
            if len(stack) == together:
                sums.loss += _backward(module, waiting.pop(pixels.shape), loss)
    for stack in waiting.values():
        sums.loss += _backward(module, stack, loss)
    return sums


def _backward(module: nn.Module, stack: list[tuple[Sample, np.ndarray, Tensor]], loss: CrossEntropy) -> float:
    """The summed loss of reads of one shape, in one pass forwards and one back."""
    like = next(module.parameters())
    logits = module(torch.cat([batch(pixels, like.dtype, str(like.device)) for _, pixels, _ in stack]))
    summed = torch.stack(
        [
            loss.sum(of_read[:, *sample.tile.crop.slices], labels.to(like.device))
            for of_read, (sample, _, labels) in zip(logits, stack, strict=True)
        ]
    ).sum()
    summed.backward()
    return summed.item()


def reduce(module: nn.Module, sums: Sums, add: Callable[[Tensor], None]) -> Sums:
    """Turns every worker's sums into the batch's gradient, the same on all, and returns the batch's own sums.

    `add` adds a tensor up over the workers, in place; all must call this, also those that had no sample. Where nothing
    was labelled the gradient is 0.
    """
    totals = torch.tensor([sums.loss, sums.weight, sums.pixels, bool(sums.problem)], dtype=torch.float64)
    add(totals)
    loss, weight, pixels, failed = totals.tolist()
    parameters = [p for p in module.parameters() if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    add(flat)
    if weight > 0:
        flat /= weight
    for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = gradient.view_as(p)
    return Sums(loss, weight, int(pixels), sums.problem, int(failed))
