"""Images and labels that tests train on, and what the whole image at once gives of them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.network.receptive_field import receptive_field
from pipeline.network.sizes import least_size
from pipeline.storage.reading import extend_to
from pipeline.tiling.geometry import ReceptiveField
from pipeline.training.gradient import Read, Sums, batch_gradient
from pipeline.training.loss import CrossEntropy, Loss
from pipeline.training.pairs import IGNORE
from pipeline.training.sampling import Cores, Sample, Sampler, cut

Plain = Callable[[Tensor, Tensor], Tensor]
"""The loss of logits (n, classes) and labels (n,), IGNORE among them."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=IGNORE)


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

    def whole(self, loss: Plain = cross_entropy) -> Tensor:
        """The gradient of the loss of all images at once, which is computed by torch alone."""
        self.module.zero_grad()
        self._of_all(loss).backward()
        return gradient_of(self.module)

    def value(self, loss: Plain) -> float:
        """That loss itself."""
        with torch.no_grad():
            return self._of_all(loss).item()

    def _of_all(self, loss: Plain) -> Tensor:
        logits, labels = [], []
        for image, of_image in zip(self.images, self.labels, strict=True):
            extended = extend_to(image, self.field.extended(*image.shape[1:]))
            made = self.module(torch.from_numpy(extended)[None])[0]
            logits.append(made[:, : of_image.shape[0], : of_image.shape[1]].flatten(1))
            labels.append(torch.from_numpy(of_image).flatten())
        return loss(torch.cat(logits, dim=1).T, torch.cat(labels))

    def by_workers(
        self, samples: Sequence[Sample], world: int, loss: Loss | None = None, **options: Any
    ) -> tuple[Tensor, Sums]:
        """The gradient that `world` workers find together, each a thread with a module of its own."""
        modules = [copy.deepcopy(self.module) for _ in range(world)]
        adder = Adder(world)

        def work(rank: int) -> Sums:
            mine = samples[rank::world]
            with adder.ended_by_errors():
                return batch_gradient(
                    modules[rank], lambda: self.reads(mine), loss or CrossEntropy(), partial(adder.add, rank), **options
                )

        with ThreadPoolExecutor(world) as pool:
            sums = list(pool.map(work, range(world)))
        found = [gradient_of(module) for module in modules]
        assert all(torch.equal(gradient, found[0]) for gradient in found)
        return found[0], sums[0]


class Adder:
    """Adds tensors up over threads, as a process group does over processes."""

    def __init__(self, world: int) -> None:
        self.barrier = threading.Barrier(world)
        self.given: list[Tensor] = [torch.empty(0)] * world

    def add(self, rank: int, tensor: Tensor) -> None:
        self.given[rank] = tensor.clone()
        self.barrier.wait(60)
        tensor.copy_(torch.stack(self.given).sum(dim=0))
        self.barrier.wait(60)

    @contextmanager
    def ended_by_errors(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.barrier.abort()
            raise


def gradient_of(module: nn.Module) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in module.parameters()])


def all_samples(sampler: Sampler) -> list[Sample]:
    """Those of the first epoch."""
    assert sampler.batch == 1
    return [sample for step in range(len(sampler)) for sample in sampler.step(step)]


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())
