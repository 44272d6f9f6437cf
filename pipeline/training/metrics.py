"""Scores from a confusion matrix, which adds up over tiles, images and workers as no score does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.training.pairs import IGNORE

Score = float | None
"""None where there is nothing to divide by, as for a class that is neither there nor predicted."""


@dataclass(frozen=True)
class Metrics:
    """How well classes were predicted. Lists are by class; means leave out classes without a score."""

    accuracy: Score
    """The part of the labelled outputs that was predicted right."""
    mean_iou: Score
    mean_f1: Score
    iou: list[Score]
    f1: list[Score]
    recall: list[Score]
    """The part of each class that was found, its accuracy."""
    precision: list[Score]
    confusion: list[list[int]]
    """Outputs by true class (rows) and predicted class (columns)."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) int64: outputs by true and predicted class, without those that are ignored."""
    counted = truth != IGNORE
    pairs = truth[counted] * classes + predicted[counted].astype(np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def metrics(matrix: np.ndarray) -> Metrics:
    """The scores of a confusion matrix."""
    right, true, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    iou = _scores(right, true + predicted - right)
    f1 = _scores(2 * right, true + predicted)
    return Metrics(
        accuracy=_scores(right.sum()[None], matrix.sum()[None])[0],
        mean_iou=_mean(iou),
        mean_f1=_mean(f1),
        iou=iou,
        f1=f1,
        recall=_scores(right, true),
        precision=_scores(right, predicted),
        confusion=matrix.tolist(),
    )


def _scores(part: np.ndarray, of: np.ndarray) -> list[Score]:
    return [int(n) / int(d) if d else None for n, d in zip(part, of, strict=True)]


def _mean(scores: list[Score]) -> Score:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None
