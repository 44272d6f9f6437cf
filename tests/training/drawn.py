"""Images and labels that tests train on, and what the whole image at once gives of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.network.receptive_field import receptive_field
from pipeline.network.sizes import least_size
from pipeline.tiling.geometry import ReceptiveField
from pipeline.training.gradient import Read, Sums, accumulate, reduce
from pipeline.training.loss import CrossEntropy
from pipeline.training.pairs import IGNORE
from pipeline.training.sampling import Cores, Sample, Sampler, cut
from pipeline.worker import extend_to


def field_of(module: nn.Module, channels: int) -> ReceptiveField:
    field = receptive_field(module, channels)
    return replace(field, least=least_size(module, channels, field))


@dataclass
class Drawn:
    """Images (c, y, x) and the classes (y', x') of the network's outputs, some of them ignored."""

    module: nn.Module
    field: ReceptiveField
    images: list[np.ndarray]
    labels: list[np.ndarray]

    @classmethod
    def random(
        cls,
        build: Callable[[], nn.Module],
        sizes: Sequence[tuple[int, int]],
        *,
        channels: int = 2,
        classes: int = 2,
        seed: int = 0,
    ) -> Drawn:
        """The network with random weights in float64, and images with about a fifth of the labels ignored."""
        random = np.random.default_rng(seed)
        torch.manual_seed(seed)
        module = build().double().eval()
        field = field_of(module, channels)
        images = [random.normal(size=(channels, *size)) for size in sizes]
        labels = [random.integers(0, classes, field.output_shape(*size)) for size in sizes]
        for of_image in labels:
            of_image[random.random(of_image.shape) < 0.2] = IGNORE
        return cls(module, field, images, labels)

    def cores(self, kind: Any, core: tuple[int, int] | None = None) -> list[Cores]:
        return [cut((image.shape[1], image.shape[2]), self.field, kind, core) for image in self.images]

    def reads(self, samples: Sequence[Sample]) -> Iterator[Read]:
        for sample in samples:
            image, tile = self.images[sample.image], sample.tile
            pixels = image[:, *tile.read.clip(*image.shape[1:]).slices]
            yield sample, extend_to(pixels, tile.read.shape), self.labels[sample.image][tile.core.slices]

    def whole(self, loss: CrossEntropy | None = None) -> Tensor:
        """The gradient of the loss of all images at once, by torch's own mean."""
        self.module.zero_grad()
        logits, labels = [], []
        for image, of_image in zip(self.images, self.labels, strict=True):
            extended = extend_to(image, self.field.extended(*image.shape[1:]))
            made = self.module(torch.from_numpy(extended)[None])[0]
            logits.append(made[:, : of_image.shape[0], : of_image.shape[1]].flatten(1))
            labels.append(torch.from_numpy(of_image).flatten())
        weights = None if loss is None or loss.class_weights is None else torch.tensor(loss.class_weights).double()
        F.cross_entropy(torch.cat(logits, dim=1).T, torch.cat(labels), weights, ignore_index=IGNORE).backward()
        return gradient_of(self.module)

    def by_workers(self, samples: Sequence[Sample], world: int, **options: Any) -> tuple[Tensor, Sums]:
        """The gradient that `world` workers find together, one after another in this process."""
        loss = options.pop("loss", CrossEntropy())
        tensors: list[list[Tensor]] = []
        for rank in range(world):
            self.module.zero_grad()
            sums = accumulate(self.module, self.reads(samples[rank::world]), loss, **options)
            mine: list[Tensor] = []
            reduce(self.module, sums, lambda tensor, mine=mine: mine.append(tensor.clone()))  # type: ignore[misc]
            tensors.append(mine)
        totals = iter([sum(parts[1:], parts[0]) for parts in zip(*tensors, strict=True)])
        self.module.zero_grad()
        sums = reduce(self.module, Sums(), lambda tensor: copy(next(totals), tensor))
        return gradient_of(self.module), sums


def copy(source: Tensor, target: Tensor) -> None:
    target.copy_(source)


def gradient_of(module: nn.Module) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in module.parameters()])


def all_samples(sampler: Sampler) -> list[Sample]:
    """Those of the first epoch."""
    assert sampler.batch == 1
    return [sample for step in range(len(sampler)) for sample in sampler.step(step)]


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())
