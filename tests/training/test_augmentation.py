"""Views of samples: a turned tile has the gradient of the turned image, and each is drawn by its number alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pipeline
from pipeline.network.unet import UNet
from pipeline.storage.reading import extend_to
from pipeline.tiling.geometry import ReceptiveField, Region
from pipeline.training.augmentation import Augmentation, displacements, moved, restained, turned, view
from pipeline.training.gradient import accumulate, reduce
from pipeline.training.loss import CrossEntropy
from pipeline.training.pairs import IGNORE
from pipeline.training.sampling import Sampler
from tests import zoo
from tests.training.drawn import Drawn, all_samples, distance, gradient_of
from tests.training.test_training import job, weights

NETWORKS = {
    "lopsided": lambda: nn.Sequential(nn.ZeroPad2d((0, 4, 3, 1)), nn.Conv2d(2, 3, 5)),
    "unet": lambda: UNet(3, 2, "none", channels=2, classes=3),
    "valid": lambda: nn.Sequential(nn.Conv2d(2, 4, 5), nn.ReLU(), nn.Conv2d(4, 3, 4)),
    "coarse": lambda: nn.Sequential(zoo.conv(2, 4, stride=2), nn.ReLU(), zoo.conv(4, 3, 5)),
}
VIEWS = [(turns, up, across) for turns in range(4) for up in (False, True) for across in (False, True)]


def whole(drawn: Drawn, turns: int, up: bool, across: bool) -> torch.Tensor:
    """The gradient of the turned, extended image at once."""
    image = drawn.images[0]
    rows, columns = drawn.field.extended(image.shape[1], image.shape[2])
    extended = extend_to(image, (rows, columns))
    output = drawn.field.output_shape(rows, columns)
    labels = np.full(output, IGNORE)
    labels[: drawn.labels[0].shape[0], : drawn.labels[0].shape[1]] = drawn.labels[0]
    drawn.module.zero_grad()
    pixels, classes = (torch.from_numpy(view(a, turns, up, across).copy()) for a in (extended, labels))
    loss = nn.functional.cross_entropy(drawn.module(pixels[None]), classes[None], ignore_index=IGNORE)
    loss.backward()
    return gradient_of(drawn.module)


def tiles(drawn: Drawn, field: ReceptiveField, turns: int, up: bool, across: bool) -> torch.Tensor:
    """The sum over tiles, each turned with its halo."""
    wide = replace(drawn, field=field)
    a = field.alignment
    samples = all_samples(Sampler(wide.cores("tiles", tuple(n * -(-12 // n) for n in a)), 1))
    reads = [
        (replace(s, tile=turned(s.tile, drawn.field, turns, up, across)),
         view(pixels, turns, up, across), view(labels, turns, up, across).copy())
        for s, pixels, labels in wide.reads(samples)
    ]  # fmt: skip
    drawn.module.zero_grad()
    reduce(drawn.module, accumulate(drawn.module, reads, CrossEntropy()), lambda tensor: None)
    return gradient_of(drawn.module)


@pytest.mark.parametrize("name", NETWORKS)
def test_turned_tiles_have_the_gradient_of_the_turned_image(name: str) -> None:
    drawn = Drawn.random(NETWORKS[name], [(37, 46)], classes=3)
    field = Augmentation(flip=True, rotate=True).field(drawn.field)
    for turn in VIEWS:
        assert distance(tiles(drawn, field, *turn), whole(drawn, *turn)) < 1e-10, turn


def test_with_the_halo_of_the_plain_network_they_have_not() -> None:
    drawn = Drawn.random(NETWORKS["lopsided"], [(37, 46)], classes=3)
    turn = (0, True, False)
    assert distance(tiles(drawn, drawn.field, *turn), whole(drawn, *turn)) > 1e-3


def test_views_depend_on_seed_and_number_alone() -> None:
    drawn = Drawn.random(NETWORKS["unet"], [(37, 46)], classes=3)
    augmentation = Augmentation(True, True, 0.1, 0.1, 2.0, seed=5)
    wide = replace(drawn, field=augmentation.field(drawn.field))
    samples = all_samples(Sampler(wide.cores("tiles", (12, 16)), 1))
    first = list(augmentation.views(wide.reads(samples), drawn.field))
    again = list(augmentation.views(wide.reads(samples[::-1]), drawn.field))[::-1]
    for one, other in zip(first, again, strict=True):
        assert one[0] == other[0] and (one[1] == other[1]).all() and (one[2] == other[2]).all()
    shapes = {labels.shape for _, _, labels in first}
    assert {(12, 16), (16, 12)} <= shapes
    assert all(sample.tile.core.shape == sample.tile.crop.shape == labels.shape for sample, _, labels in first)
    other_seed = list(replace(augmentation, seed=6).views(wide.reads(samples), drawn.field))
    assert any(a[1].shape != b[1].shape or (a[1] != b[1]).any() for a, b in zip(first, other_seed, strict=True))


def test_pixels_keep_to_the_range_of_their_type() -> None:
    drawn = Drawn.random(NETWORKS["unet"], [(16, 16)], classes=3)
    samples = all_samples(Sampler(drawn.cores("tiles", (16, 16)), 1))
    bright = np.full((2, 16, 16), 250, np.uint8)
    reads = [(samples[0], bright, np.zeros((16, 16), np.int64))]
    [(_, pixels, _)] = Augmentation(brightness=0.5, noise=20.0).views(reads, drawn.field)
    assert pixels.dtype == np.float32 and 0 <= pixels.min() < pixels.max() <= 255
    [(_, same, _)] = Augmentation(flip=True).views(reads, drawn.field)
    assert same.dtype == np.uint8


def test_an_image_is_not_turned_where_rows_are_no_match_for_columns() -> None:
    field = ReceptiveField((1, 1), (1, 1), (4, 2))
    with pytest.raises(ValueError, match=r"augment\.rotate: the network does not treat rows as columns"):
        Augmentation(rotate=True).field(field)
    assert Augmentation(flip=True).field(field).alignment == (4, 2)
    assert Augmentation(noise=1.0).field(field) is field


def test_a_job_trains_on_views(tmp_path: Path) -> None:
    """The same ones each time, and others than the plain images."""
    views = {"augment": {"flip": True, "rotate": True, "brightness": 0.2, "noise": 2.0, "elastic": 2, "stain": 0.1}}
    runs: dict[str, dict[str, Any]] = {"plain": {}, "first": views, "again": views}
    found = {}
    for name, more in runs.items():
        found[name] = weights(pipeline.train(job(tmp_path, run=f"{tmp_path}/{name}", **more)).path)
    assert torch.equal(found["first"], found["again"])
    assert not torch.equal(found["first"], found["plain"])


class Deformed:
    """Where a deformed image takes its pixels from, over the whole image; views draw it for a read alone."""

    def __init__(self, size: tuple[int, int], most: float) -> None:
        self.all = displacements(size, most, np.random.default_rng(1))

    def of(self, read: Region) -> np.ndarray:
        return self.all[:, *read.slices]


@pytest.mark.parametrize("name", ["lopsided", "unet", "valid"])
def test_deformed_tiles_have_the_gradient_of_the_deformed_image(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Edges included, with labels that move with their pixels; and a read without the margin is too small."""
    drawn = Drawn.random(NETWORKS[name], [(48, 64)], classes=3)
    augmentation = Augmentation(elastic=2.5)
    a, image, labels = drawn.field.alignment, drawn.images[0], drawn.labels[0]
    deformed = Deformed((48, 64), 2.5)

    def gradient(field: ReceptiveField, core: tuple[int, int]) -> torch.Tensor:
        wide = replace(drawn, field=field)
        sampler = Sampler(wide.cores("tiles", tuple(n * -(-least // n) for n, least in zip(a, core, strict=True))), 1)
        reads = []
        for sample, pixels, _ in wide.reads(all_samples(sampler)):
            monkeypatch.setattr(
                "pipeline.training.augmentation.displacements", lambda *_, at=sample.tile.read: deformed.of(at)
            )
            around = bordered(labels, sample.tile.core, augmentation.margin)
            reads += augmentation.views([(sample, pixels, around)], field)
        drawn.module.zero_grad()
        reduce(drawn.module, accumulate(drawn.module, reads, CrossEntropy()), lambda tensor: None)
        return gradient_of(drawn.module)

    top, left = (max(0, -n) // 2 for n in drawn.field.surplus)
    moves = np.rint(deformed.all[:, top : top + labels.shape[0], left : left + labels.shape[1]]).astype(int)
    rows, columns = np.indices(labels.shape) + moves
    inside = (rows >= 0) & (rows < labels.shape[0]) & (columns >= 0) & (columns < labels.shape[1])
    classes = np.where(inside, labels[rows.clip(0, labels.shape[0] - 1), columns.clip(0, labels.shape[1] - 1)], IGNORE)
    drawn.module.zero_grad()
    logits = drawn.module(torch.from_numpy(moved(image, deformed.all))[None])
    nn.functional.cross_entropy(logits, torch.from_numpy(classes)[None], ignore_index=IGNORE).backward()
    expected = gradient_of(drawn.module)
    assert np.abs(moves).max() >= 2
    assert distance(gradient(augmentation.field(drawn.field), (12, 12)), expected) < 1e-10
    if name == "lopsided":  # whose reads have not a pixel to spare
        assert distance(gradient(drawn.field, (12, 12)), expected) > 1e-4


def bordered(labels: np.ndarray, core: Region, margin: int) -> np.ndarray:
    """The labels of a core and around it, IGNORE beyond the image."""
    padded = np.pad(labels, margin, constant_values=IGNORE)
    return padded[core.y.start : core.y.stop + 2 * margin, core.x.start : core.x.stop + 2 * margin]


def test_displacements_are_bounded_and_do_not_fold() -> None:
    for most in (0.5, 3.0, 10.0):
        moves = displacements((90, 120), most, np.random.default_rng(0))
        assert most / 2 < np.abs(moves).max() <= most
        assert max(np.abs(np.diff(moves, axis=axis)).max() for axis in (1, 2)) < 0.5


def test_stains_change_by_their_density_and_white_and_grey_levels_keep_their_range() -> None:
    purple = np.array([120.0, 70.0, 150.0])[:, None, None] * np.ones((3, 2, 2))
    none = np.zeros((3, 1, 1))
    assert np.allclose(restained(purple, none, none), purple)
    darker = restained(purple, np.array([0.2, 0, 0])[:, None, None], none)
    ratio = np.log((darker + 1) / (purple + 1))[:, 0, 0]
    assert np.allclose(ratio / ratio[0], np.array([0.65, 0.70, 0.29]) / 0.65) and ratio[0] < 0
    white = np.full((3, 2, 2), 255.0)
    assert np.allclose(restained(white, np.full((3, 1, 1), 0.5), none), white)


def test_what_cannot_be_stained_or_deformed_is_refused(tmp_path: Path) -> None:
    drawn = Drawn.random(NETWORKS["unet"], [(16, 16)], classes=3)
    samples = all_samples(Sampler(drawn.cores("tiles", (16, 16)), 1))
    grey = [(samples[0], np.zeros((3, 16, 16), np.uint16), np.zeros((16, 16), np.int64))]
    with pytest.raises(ValueError, match=r"^augment\.stain: is for RGB of 8 bits, not for 3 channels of uint16$"):
        list(Augmentation(stain=0.1).views(grey, drawn.field))
    with pytest.raises(ValueError, match=r"^augment\.elastic: the network has not one output a pixel"):
        Augmentation(elastic=2.0).field(Drawn.random(NETWORKS["coarse"], [(16, 16)]).field)
    with pytest.raises(ValueError, match=r"^augment\.stain=0\.1: is for RGB, and the network takes 1 channels$"):
        network = {"architecture": "unet", "base": 4, "depth": 1, "channels": 1}
        pipeline.train(job(tmp_path, network=network, augment={"stain": 0.1}))


def test_a_single_row_of_labels_can_be_turned() -> None:
    """An axis of one row or column has, turned, a stride that NumPy thinks nothing of, and torch refuses."""
    drawn = Drawn.random(NETWORKS["unet"], [(37, 46)], classes=3)
    augmentation = Augmentation(flip=True, rotate=True)
    wide = replace(drawn, field=augmentation.field(drawn.field))
    samples = [
        sample for sample in all_samples(Sampler(wide.cores("tiles", (12, 16)), 1)) if 1 in sample.tile.core.shape
    ]
    for number in range(8):
        seen = replace(augmentation, seed=number).views(wide.reads(samples), wide.field)
        assert accumulate(drawn.module, seen, CrossEntropy()).pixels > 0
