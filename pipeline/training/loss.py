"""Losses as sums over outputs, with the weight that divides them, so that tiles and workers add up to the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.training.pairs import IGNORE


@dataclass(frozen=True)
class CrossEntropy:
    """Cross entropy of logits (k, h, w) and labels (h, w); of one channel the binary one, of the logit of class 1.

    `class_weights`: of each class, by which its outputs count, in the sum and in what divides it.
    """

    class_weights: Sequence[float] | None = None

    def weight(self, labels: Tensor) -> Tensor:
        """What the labelled outputs count for, in float64; summed over a batch, it divides the batch's loss."""
        counted = labels[labels != IGNORE]
        if self.class_weights is None:
            return torch.tensor(counted.numel(), dtype=torch.float64)
        return torch.tensor(self.class_weights, dtype=torch.float64)[counted.cpu()].sum()

    def sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss summed over the labelled outputs."""
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        if logits.shape[0] > 1:
            return F.cross_entropy(logits[None], labels[None], weights, ignore_index=IGNORE, reduction="sum")
        counted = labels != IGNORE
        classes = labels[counted]
        each = None if weights is None else weights[classes]
        targets = classes.to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits[0][counted], targets, each, reduction="sum")
