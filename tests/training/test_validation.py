"""Validation is exact: the confusion matrix over tiles is that of the whole-image forward pass."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

import pipeline
from pipeline.analysis import Analysis
from pipeline.config import options
from pipeline.network.builtin import build, build_untrained
from pipeline.network.loading import load_network
from pipeline.planning import plan_image
from pipeline.storage.image import open_image
from pipeline.training.finding import find_pairs
from pipeline.training.metrics import confusion, metrics
from pipeline.training.pairs import IGNORE, Pair
from pipeline.training.reading import OPEN, Reader
from pipeline.training.sampling import Sample, cut
from pipeline.training.validation import Validation

SIZES = [(37, 50), (64, 32), (16, 90)]
CORE = 16


def network(kind: str) -> nn.Module:
    """A network that predicts both classes."""
    torch.manual_seed(0)
    if kind == "unet":
        module = build_untrained("unet-tiny")
    elif kind == "single":
        module = build("unet", {"base": 2, "depth": 1, "classes": 1, "norm": "none"})
    elif kind == "valid":
        module = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Conv2d(4, 2, 3))
    else:
        module = nn.Sequential(nn.Conv2d(3, 2, 4, 4))
    module = module.double().eval()
    last = [part for part in module.modules() if isinstance(part, nn.Conv2d)][-1]
    with torch.no_grad():
        last.bias -= module(255 * torch.rand(1, 3, 64, 64).double())[0].flatten(1).median(dim=1).values  # type: ignore[operator]
    return module


def data(folder: Path, label_size: Any) -> None:
    random = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        np.save(folder / f"{number}.npy", random.integers(0, 256, (3, *size), np.uint8))
        np.save(folder / f"{number}_label.npy", random.choice([0, 1, 255], label_size(size), p=[0.5, 0.4, 0.1]))


def made(folder: Path, module: nn.Module, label_size: Any = lambda size: size, **more: Any) -> Validation:
    data(folder, label_size)
    asked = options(precision="float64", tile=(CORE, CORE), device="cpu")
    analysis = Analysis(load_network(module), asked)
    pattern = (f"{folder}/{{name}}.npy", f"{folder}/{{name}}_label.npy")
    split = find_pairs([pattern], field=analysis.field, channels=3, classes=analysis.classes, ignore=255, **more)
    pairs = split.validation or split.train
    plans = [plan_image(open_image(pair.image), analysis, asked) for pair in pairs]
    return Validation(pairs, plans, 3, analysis.classes, ignore=255)


def whole(validation: Validation, module: nn.Module) -> np.ndarray:
    """The confusion matrix of one forward pass of each extended image, by the plainest means."""
    total = np.zeros((2, 2), np.int64)
    for pair, plan in zip(validation.pairs, validation.plans, strict=True):
        extended = torch.from_numpy(pipeline.extend(np.load(pair.image), module)).double()
        with torch.no_grad():
            logits = module(extended[None])[0]
        rows, columns = plan.field.output_shape(*plan.size)
        predicted = (logits[0] > 0).long() if len(logits) == 1 else logits.argmax(0)
        label = np.load(pair.label)
        top, left = ((m - n) // 2 for m, n in zip(label.shape, (rows, columns), strict=True))
        truth = label[top : top + rows, left : left + columns].astype(np.int64)
        assert pair.region is not None
        outside = np.ones(truth.shape, bool)
        outside[pair.region.slices] = False
        truth[outside | (truth == 255)] = IGNORE
        total += confusion(truth, predicted[:rows, :columns].numpy(), 2)
    return total


def quarter(size: tuple[int, int]) -> tuple[int, int]:
    return -(-size[0] // 4), -(-size[1] // 4)


@pytest.mark.parametrize("kind", ["unet", "single", "valid", "coarse"])
def test_tiles_add_up_to_the_whole_image(tmp_path: Path, kind: str) -> None:
    module = network(kind)
    validation = made(tmp_path, module, quarter if kind == "coarse" else lambda size: size)
    found = validation.confusion(module)
    assert len(found) == len(validation.tiles) > 2 * len(SIZES)
    assert found.sum(axis=0).tolist() == whole(validation, module).tolist()
    assert (found.sum(axis=0) > 0).all()


def test_of_an_image_split_by_region_only_what_is_held_out_counts(tmp_path: Path) -> None:
    module = network("valid")
    everything = made(tmp_path, module)
    validation = made(tmp_path, module, shares={"validation": (0.3, "region")}, seed=1)
    assert 0 < len(validation.tiles) < len(everything.tiles)
    assert validation.confusion(module).sum(axis=0).tolist() == whole(validation, module).tolist()


@pytest.mark.parametrize("world", [2, 3, 40])
def test_shares_of_workers_add_up(tmp_path: Path, world: int) -> None:
    module = network("unet")
    validation = made(tmp_path, module)
    alone = validation.confusion(module)
    shares = [validation.confusion(module, rank, world) for rank in range(world)]
    assert (sum(shares) == alone).all()
    assert max(np.count_nonzero(share.sum(axis=(1, 2))) for share in shares) <= -(-len(alone) // world)


def test_the_network_is_as_it_was(tmp_path: Path) -> None:
    """In training mode, one part frozen in eval mode, batch statistics untouched, gradients still taken."""
    module = network("unet").train()
    frozen = next(part for part in module.modules() if isinstance(part, nn.BatchNorm2d)).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    validation = made(tmp_path, network("unet"))
    in_eval = validation.confusion(network("unet"))
    assert (validation.confusion(module) == in_eval).all()
    assert module.training and not frozen.training and torch.is_grad_enabled()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    module(torch.ones(1, 3, 16, 16).double()).sum().backward()


def test_a_tile_can_be_shown(tmp_path: Path) -> None:
    module = network("valid")
    validation = made(tmp_path, module)
    index = len(validation.tiles) - 1
    number, tile = validation.tiles[index]
    [(pixels, truth, predicted)] = validation.show(module, [index])
    y, x = (part.shift(3) for part in (tile.core.y, tile.core.x))  # of the 5 x 5 and the 3 x 3 convolution
    assert (pixels == np.load(validation.pairs[number].image)[:, y.slice, x.slice]).all()
    assert truth.shape == predicted.shape == pixels.shape[1:]
    assert (confusion(truth, predicted, 2) == validation.confusion(module)[index]).all()


def test_scores_of_a_known_matrix() -> None:
    found = metrics(np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]]))
    assert found.accuracy == 9 / 12
    assert found.iou == [6 / 9, 3 / 6, None] and found.mean_iou == (6 / 9 + 3 / 6) / 2
    assert found.f1 == [12 / 15, 6 / 9, None] and found.mean_f1 == (12 / 15 + 6 / 9) / 2
    assert found.recall == [6 / 8, 3 / 4, None] and found.precision == [6 / 7, 3 / 5, None]
    assert metrics(np.zeros((2, 2), np.int64)).accuracy is None
    assert metrics(np.eye(2, dtype=np.int64)).to_json()["confusion"] == [[1, 0], [0, 1]]


def test_rows_are_true_and_columns_predicted() -> None:
    assert confusion(np.array([0, 0, 1, IGNORE]), np.array([1, 1, 0, 0], np.uint8), 2).tolist() == [[0, 2], [1, 0]]


def tiffs(folder: Path, count: int) -> list[Pair]:
    """Pairs in files that are open for as long as their images are."""
    pixels = np.random.default_rng(0).integers(0, 2, (32, 40, 3), np.uint8)
    for number in range(count):
        tifffile.imwrite(folder / f"{number}.tif", pixels, compression="zlib", photometric="rgb")
        tifffile.imwrite(folder / f"{number}_label.tif", pixels[..., 0], compression="zlib")
    return [Pair(str(n), str(folder / f"{n}.tif"), str(folder / f"{n}_label.tif"), (32, 40)) for n in range(count)]


def open_tiffs() -> int:
    links = [Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return sum(str(link.readlink()).endswith(".tif") for link in links if link.is_symlink())


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Nothing is closed by the garbage collector meanwhile."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
def test_two_pairs_are_open_at_a_time_and_none_afterwards(tmp_path: Path) -> None:
    module = nn.Conv2d(3, 2, 3, padding=1).eval()
    pairs = tiffs(tmp_path, 5)
    asked = options(device="cpu")
    analysis = Analysis(load_network(module), asked)
    with open_image(pairs[0].image) as image:
        plan = plan_image(image, analysis, asked)
    validation = Validation(pairs, [plan] * 5, channels=3, classes=2)
    validation.confusion(module)
    assert open_tiffs() == 0
    for _ in validation.show(module, range(5)):
        assert open_tiffs() <= 4
    assert open_tiffs() == 0


@pytest.mark.usefixtures("uncollected")
def test_a_reader_closes_pairs_that_others_follow(tmp_path: Path) -> None:
    pairs = tiffs(tmp_path, OPEN + 4)
    field = Analysis(load_network(nn.Conv2d(3, 2, 1).eval()), options(device="cpu")).field
    cores = [cut(pair.size, field, "whole", (CORE, CORE)) for pair in pairs]
    reader = Reader(pairs, channels=3, classes=2, ignore=None, binary=False)
    reads = reader.reads(Sample(n, n, cores[n].tile(0)) for n in range(len(pairs)))
    assert max(open_tiffs() for _ in reads) == 2 * OPEN
    del reads, reader
    assert open_tiffs() == 0
