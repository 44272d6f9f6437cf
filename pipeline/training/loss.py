"""Losses as functions of sums over outputs, which tiles and workers add up to those of whole images.

A loss says what it sums over the outputs of a core (`sums`), and what follows from the sums S of the batch and the
weight W of its labels (`value`). Its gradient is by the chain rule that of the sums of each tile, times the slope
d value / d S at the sums of the whole batch, which is a constant there:

    cross entropy, focal     value = S / W, linear: the slope 1 / W is the same wherever it is taken
    soft Dice                value = 1 - mean of 2 I / (P + G): the slope is known once all tiles have been summed
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.training.pairs import IGNORE


@dataclass(frozen=True)
class Loss(ABC):
    """A loss of logits (k, h, w) and labels (h, w), in which one channel is the logit of class 1.

    `class_weights`: of each class, by which its outputs count, in the sum and in what divides it.
    """

    class_weights: Sequence[float] | None = None

    @property
    def linear(self) -> bool:
        """Whether the value is one number times the sums, divided by the weight: the slope needs no sums then."""
        return True

    @property
    def count(self) -> int:
        """How many sums there are."""
        return 1

    def weight(self, labels: Tensor) -> Tensor:
        """What the labelled outputs count for, in float64; summed over a batch, it divides the batch's loss."""
        counted = labels[labels != IGNORE]
        if self.class_weights is None:
            return torch.tensor(counted.numel(), dtype=torch.float64)
        return torch.tensor(self.class_weights, dtype=torch.float64)[counted.cpu()].sum()

    @abstractmethod
    def sums(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(count,): what adds up over the labelled outputs."""

    def value(self, sums: Tensor, weight: float) -> Tensor:
        """The loss of a batch of these sums and this weight, which is above 0."""
        return sums[0] / weight


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross entropy; of one channel the binary one."""

    def sums(self, logits: Tensor, labels: Tensor) -> Tensor:
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        if logits.shape[0] > 1:
            of_all = F.cross_entropy(logits[None], labels[None], weights, ignore_index=IGNORE, reduction="sum")
            return of_all[None]
        counted = labels != IGNORE
        classes = labels[counted]
        each = None if weights is None else weights[classes]
        targets = classes.to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits[0][counted], targets, each, reduction="sum")[None]


@dataclass(frozen=True)
class Focal(Loss):
    """Cross entropy times (1 - p) ** gamma, p the probability of the true class: what is right already counts less.

    Lin et al. 2017, equation 5, doi:10.1109/ICCV.2017.324; class weights are its alpha.
    """

    gamma: float = 2.0

    def sums(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p, classes = _of_labelled(logits, labels)
        true = log_p.gather(0, classes[None])[0]
        wrong = -torch.expm1(true)  # 1 - p, to all digits where p is almost 1
        each = -(wrong.clamp(min=torch.finfo(wrong.dtype).tiny) ** self.gamma) * true
        if self.class_weights is not None:
            each = each * logits.new_tensor(self.class_weights)[classes]
        return each.sum()[None]


@dataclass(frozen=True)
class Dice(Loss):
    """1 - the mean over classes of 2 I / (P + G): I, P and G sum p g, p ** 2 and g ** 2 over all outputs of a batch.

    p is an output's probability of the class, g 1 where that is the true one, else 0: Milletari et al. 2016, section 3,
    doi:10.1109/3DV.2016.79. The mean is that of the classes with a label in the batch, by their weights. It is no sum
    over outputs, so it takes two passes over a batch: the first gathers its sums, the second has the gradient.
    """

    classes: int = 2

    @property
    def linear(self) -> bool:
        return False

    @property
    def count(self) -> int:
        return 3 * self.classes

    def sums(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p, classes = _of_labelled(logits, labels)
        p = log_p.exp()
        truth = F.one_hot(classes, self.classes).T.to(p.dtype)
        return torch.cat([(p * truth).sum(1), (p**2).sum(1), truth.sum(1)])

    def value(self, sums: Tensor, weight: float) -> Tensor:
        both, predicted, true = sums.view(3, self.classes)
        there = true > 0
        share = there.to(sums) * (1 if self.class_weights is None else sums.new_tensor(self.class_weights))
        dice = 2 * both / torch.where(there, predicted + true, 1)
        mean: Tensor = (share * dice).sum() / share.sum().clamp(min=torch.finfo(share.dtype).tiny)
        return 1 - mean


@dataclass(frozen=True)
class Total(Loss):
    """The sum of losses, each times a factor."""

    terms: Sequence[tuple[float, Loss]] = ()

    @property
    def linear(self) -> bool:
        return all(loss.linear for _, loss in self.terms)

    @property
    def count(self) -> int:
        return sum(loss.count for _, loss in self.terms)

    def sums(self, logits: Tensor, labels: Tensor) -> Tensor:
        return torch.cat([loss.sums(logits, labels) for _, loss in self.terms])

    def value(self, sums: Tensor, weight: float) -> Tensor:
        parts = sums.split([loss.count for _, loss in self.terms])
        values = [factor * loss.value(part, weight) for (factor, loss), part in zip(self.terms, parts, strict=True)]
        return torch.stack(values).sum()


def _of_labelled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(classes, n) logarithms of the labelled outputs' probabilities, and (n,) their classes."""
    both = logits if logits.shape[0] > 1 else torch.cat([torch.zeros_like(logits), logits])
    counted = labels != IGNORE
    return F.log_softmax(both[:, counted], dim=0), labels[counted]
