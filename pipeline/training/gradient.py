"""The gradient of a batch's loss, added up tile by tile and worker by worker: that of the whole images at once.

Each output of a core is computed from a read that holds all it depends on, so what a loss sums over the core, and the
gradient of that, are those of the whole image's forward pass. The sums S of all tiles, in any order and on any number
of workers, and the weight W of their labels therefore are those of the whole images, and so is the loss, value(S, W).
By the chain rule its gradient is

    d value / d weights = sum over tiles of (d value / d S) . (d S of the tile / d weights)

with d value / d S at the batch's sums, the same for all tiles. Of a sum over outputs, which W divides, it is 1 / W,
divided by once in the end. A loss that is another function of its sums (Dice) takes a pass without gradient that
gathers S and W first, over the same reads, and with the same outputs kept.

Where only a share of the outputs keeps its loss, each with probability p, the divisor is p times the weight of *all*
labelled outputs of the samples drawn, and not the weight of those that were kept: the expected gradient is then exactly
that of the same samples in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.training.loss import Loss
from pipeline.training.pairs import IGNORE
from pipeline.training.sampling import Sample
from pipeline.worker import batch

Read = tuple[Sample, np.ndarray, np.ndarray]
"""A sample, its pixels (c, h, w) as stored and extended, and the classes (h', w') of its core, IGNORE among them."""
Labelled = tuple[Sample, np.ndarray, Tensor]
"""The same with the classes that keep their loss, as a tensor."""
Kept = Callable[[Sample], np.ndarray] | None
"""Which outputs (h', w') of a sample's core keep their loss; None: all."""


@dataclass
class Sums:
    """What samples add up to beside the gradients, which torch keeps with the parameters."""

    of_loss: Tensor
    """What the loss sums over outputs, in float64."""
    weight: float = 0.0
    """What divides loss and gradient."""
    pixels: int = 0
    """Labelled outputs, kept or not."""
    problem: str = ""
    """What kept this worker from adding up its samples."""
    failed: int = 0
    """Workers with a problem."""

    @classmethod
    def none(cls, loss: Loss, problem: str = "") -> Sums:
        """Those of no sample."""
        return cls(torch.zeros(loss.count, dtype=torch.float64), problem=problem)

    def value(self, loss: Loss) -> float | None:
        """The loss of the batch that these are the sums of; None where nothing is labelled."""
        return loss.value(self.of_loss, self.weight).item() if self.weight > 0 else None

    def slope(self, loss: Loss) -> Tensor:
        """(count,): the weight times d value / d sums, at these sums."""
        at = self.of_loss.clone().requires_grad_()
        if self.weight > 0:
            loss.value(at, self.weight).backward()
        return torch.zeros_like(at) if at.grad is None else self.weight * at.grad


def batch_gradient(
    module: nn.Module,
    reads: Callable[[], Iterable[Read]],
    loss: Loss,
    add: Callable[[Tensor], None],
    *,
    kept: Kept = None,
    keep: float = 1.0,
    together: int = 1,
    grouped: bool = False,
) -> Sums:
    """Gives the parameters the gradient of the loss of a batch, of which `reads()` are this worker's, and its sums.

    `add` adds a tensor up over the workers, in place; all must call this, also those that have no sample. A problem
    with reads is told by the sums, whose `failed` all workers see. A loss that is not linear takes the reads twice.
    """

    def passed(slope: Tensor | None) -> Sums:
        try:
            return accumulate(module, reads(), loss, slope, kept=kept, keep=keep, together=together, grouped=grouped)
        except (ValueError, OSError) as error:  # a file that is not seen, a label that is none: no other try would help
            return Sums.none(loss, str(error))

    module.zero_grad()
    if loss.linear:
        return reduce(module, passed(None), add)
    with torch.no_grad():
        first = total(passed(None), add)
    return first if first.failed else reduce(module, passed(first.slope(loss)), add)


def accumulate(
    module: nn.Module,
    reads: Iterable[Read],
    loss: Loss,
    slope: Tensor | None = None,
    *,
    kept: Kept = None,
    keep: float = 1.0,
    together: int = 1,
    grouped: bool = False,
) -> Sums:
    """Adds the gradient of slope . sums, of the loss's sums over the reads' cores, to that of the parameters.

    `slope`: that of the batch's sums, which a first pass under torch.no_grad gathers; None: of a linear loss.
    At most `together` reads of one shape go through the network at a time, which bounds the memory; `grouped`, only
    those whose places in the step are of one group of so many, so that a pass is the same on any number of workers.
    A core without a labelled output is not run at all.
    """
    sums = Sums.none(loss)

    def labelled() -> Iterator[Labelled]:
        for sample, pixels, classes in reads:
            labels = torch.from_numpy(classes)
            sums.pixels += int((labels != IGNORE).sum())
            sums.weight += keep * float(loss.weight(labels))
            if kept is not None:
                labels = torch.where(torch.from_numpy(kept(sample)), labels, IGNORE)
            if (labels != IGNORE).any():
                yield sample, pixels, labels

    for stack in stacks(labelled(), together, grouped):
        sums.of_loss += _run(module, stack, loss, slope)
    return sums


def stacks(reads: Iterable[Labelled], together: int, grouped: bool) -> Iterator[list[Labelled]]:
    """The reads that share a pass: up to `together` of one shape, and `grouped`, of one group of so many places.

    Reads come by their places in the step, so that nothing of a group is to come when the next has begun.
    """
    waiting: dict[tuple[int, ...], list[Labelled]] = {}
    group = 0
    for read in reads:
        sample, pixels, _ = read
        if grouped and sample.at // together != group:
            group = sample.at // together
            while waiting:
                yield waiting.pop(next(iter(waiting)))
        stack = waiting.setdefault(pixels.shape, [])
        stack.append(read)
        if len(stack) == together:
            yield waiting.pop(pixels.shape)
    while waiting:
        yield waiting.pop(next(iter(waiting)))


def _run(module: nn.Module, stack: list[Labelled], loss: Loss, slope: Tensor | None) -> Tensor:
    """The sums of reads of one shape, in one pass forwards and, where gradients are taken, one back."""
    like = next(module.parameters())
    pixels = torch.cat([batch(of_read, like.dtype, str(like.device)) for _, of_read, _ in stack])
    try:
        logits = module(pixels)
    except ValueError as error:  # torch's, of batch norm that is given a single value, which has no variance
        height, width = pixels.shape[2:]
        raise ValueError(
            f"{height} x {width} pixels, alone in their pass, leave batch norm nothing to normalise by ({error}): "
            "give larger images, a larger batch, freeze_norm: true or norm: none"
        ) from None
    summed = torch.stack(
        [
            loss.sums(of_read[:, *sample.tile.crop.slices], labels.to(like.device))
            for of_read, (sample, _, labels) in zip(logits, stack, strict=True)
        ]
    ).sum(dim=0)
    if torch.is_grad_enabled():
        (loss.value(summed, 1.0) if slope is None else slope.to(summed) @ summed).backward()
    return summed.detach().to("cpu", torch.float64)


def total(sums: Sums, add: Callable[[Tensor], None]) -> Sums:
    """The batch's own sums, from every worker's; `add` as for `reduce`."""
    numbers = torch.tensor([sums.weight, sums.pixels, bool(sums.problem)], dtype=torch.float64)
    together = torch.cat([sums.of_loss, numbers])
    add(together)
    weight, pixels, failed = together[-3:].tolist()
    return Sums(together[:-3], weight, int(pixels), sums.problem, int(failed))


def reduce(module: nn.Module, sums: Sums, add: Callable[[Tensor], None]) -> Sums:
    """Turns every worker's sums into the batch's gradient, the same on all, and returns the batch's own sums.

    `add` adds a tensor up over the workers, in place; all must call this, also those that had no sample. Where nothing
    was labelled the gradient is 0.
    """
    sums = total(sums, add)
    parameters = [p for p in module.parameters() if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    add(flat)
    if sums.weight > 0:
        flat /= sums.weight
    for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = gradient.view_as(p)
    return sums
