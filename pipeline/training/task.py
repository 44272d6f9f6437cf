"""What a run trains, by what and on which samples: all that a worker is told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

from pipeline.tiling.geometry import ReceptiveField
from pipeline.training.augmentation import Augmentation
from pipeline.training.loss import Loss
from pipeline.training.pairs import Pair
from pipeline.training.reading import Reader
from pipeline.training.sampling import Cores, Kind, Sampler, cut
from pipeline.training.validation import Validation


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a run, as a factor: it rises for `warmup` steps, then stays or falls to 0 at the end.

    poly: (1 - t) ** 0.9 (Chen et al. 2017, doi:10.1109/TPAMI.2017.2699184); cosine: half a turn (Loshchilov & Hutter
    2017, arXiv:1608.03983).
    """

    name: Literal["poly", "cosine"] | None = None
    warmup: int = 0

    def factor(self, step: int, steps: int) -> float:
        """For step 1 to `steps`; of the first step after the warm-up it is 1."""
        if step <= self.warmup:
            return step / (self.warmup + 1)
        t = (step - 1 - self.warmup) / max(1, steps - self.warmup)
        if self.name == "poly":
            return math.pow(1 - t, 0.9)
        return 1.0 if self.name is None else (1 + math.cos(math.pi * t)) / 2


@dataclass(frozen=True)
class Task:
    """All that a worker needs to train; it pickles small."""

    folder: str
    architecture: str
    arguments: Mapping[str, Any]
    normalise: Mapping[str, Any]
    start: str | None
    """A network folder or a built-in whose weights to start from; None: random ones."""
    card: Mapping[str, Any]
    """What the resulting network's card says beside that."""
    field: ReceptiveField
    """By which reads are cut: the network's, or a wider one where samples are turned."""
    pairs: Sequence[Pair]
    validation: Validation | None
    test: Validation | None
    channels: int
    classes: int
    ignore: int | None
    binary: bool
    kind: Kind
    core: tuple[int, int]
    keep: float
    batch: int | Literal["image", "auto"]
    """Samples a step; auto: as many as `memory` holds at a time, on every worker, and `together` is these."""
    together: int
    """Samples of one shape that go through the network in one pass, at most."""
    memory: int
    """Bytes that a worker may use, for batch "auto" on a CPU."""
    loss: Loss
    optimizer: Mapping[str, Any]
    steps: int
    precision: str
    seed: int
    cores: Sequence[np.ndarray] = ()
    """Of each pair (cores, classes): the labelled outputs; without, cores that have none are not known."""
    balanced: bool = False
    freeze_norm: int | None = None
    """Steps after which batch norm keeps its statistics; None: it never does."""
    clip: float | None = None
    ema: float | None = None
    schedule: Schedule = Schedule()
    augment: Augmentation | None = None
    checkpoint_every: int | None = None
    checkpoint_activations: bool = False

    @property
    def data(self) -> str:
        """A hash of what is trained on and what scores it: names, images and classes."""
        held = [() if part is None else part.pairs for part in (self.validation, self.test)]
        told = [
            [(pair.name, pair.identity, pair.region, pair.classes) for pair in part] for part in (self.pairs, *held)
        ]
        return blake2b(repr(told).encode(), digest_size=16).hexdigest()

    def cut(self) -> list[Cores]:
        """The cores of each image that are trained on."""
        cores = [cut(pair.size, self.field, self.kind, self.core, pair.region) for pair in self.pairs]
        if self.cores:
            cores = [of_image.labelled(counts) for of_image, counts in zip(cores, self.cores, strict=True)]
        return cores

    def sampler(self) -> Sampler:
        """Which samples each step takes, once `batch` is known."""
        assert self.batch != "auto"
        return Sampler(self.cut(), self.batch, keep=self.keep, seed=self.seed, balanced=self.balanced)

    def reader(self) -> Reader:
        margin = 0 if self.augment is None else self.augment.margin
        return Reader(self.pairs, self.channels, self.classes, self.ignore, self.binary, margin)
