"""Labels of a pair, by regions of the output: what counts, what is left out, what is no class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipeline.tiling.geometry import ReceptiveField, Region
from pipeline.training.pairs import IGNORE, PART, Labels, Pair, part_of
from pipeline.training.sampling import cut


def pair(folder: Path, label: np.ndarray, **more: object) -> Pair:
    np.save(folder / "label.npy", label)
    return Pair("a", "a.png", str(folder / "label.npy"), (label.shape[0], label.shape[1]), **more)  # type: ignore[arg-type]


def test_classes_of_a_region_and_nothing_beyond_the_image(tmp_path: Path) -> None:
    label = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
    with Labels(pair(tmp_path, label), classes=3, ignore=255) as labels:
        found = labels.read(Region.of(0, 3, 1, 5))
    assert found.dtype == np.int64
    assert found.tolist() == [[1, 2, IGNORE, IGNORE], [IGNORE, 0, IGNORE, IGNORE], [IGNORE] * 4]


def test_outside_its_region_nothing_counts(tmp_path: Path) -> None:
    with Labels(pair(tmp_path, np.ones((4, 4), np.uint8), region=Region.of(1, 3, 2, 4)), classes=2) as labels:
        expected = np.full((4, 4), IGNORE)
        expected[1:3, 2:4] = 1
        assert (labels.read(Region.of(0, 4, 0, 4)) == expected).all()
        assert (labels.read(Region.of(0, 1, 0, 4)) == IGNORE).all()
        assert labels.count().tolist() == [[0, 4]]


def test_a_trimmed_output_has_the_labels_under_it(tmp_path: Path) -> None:
    label = np.arange(20, dtype=np.int16).reshape(4, 5)
    with Labels(pair(tmp_path, label, shift=(1, 2)), classes=20) as labels:
        assert labels.read(Region.of(0, 2, 0, 1)).tolist() == [[7], [12]]


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16, np.int32])
def test_object_numbers_become_two_classes(tmp_path: Path, dtype: type[np.generic]) -> None:
    label = np.array([[0, 1], [7, 3]]).astype(dtype)
    ignore = None if dtype is np.bool_ else 3
    with Labels(pair(tmp_path, label), classes=1, ignore=ignore, binary=True) as labels:
        assert labels.read(Region.of(0, 2, 0, 2)).tolist() == [[0, 1], [1, 1 if ignore is None else IGNORE]]


@pytest.mark.parametrize(("value", "dtype"), [(3, np.uint8), (-1, np.int8), (70000, np.uint32)])
def test_what_is_no_class_is_named_with_its_place(tmp_path: Path, value: int, dtype: type[np.generic]) -> None:
    label = np.zeros((5, 6), dtype)
    label[3, 4] = value
    with (
        Labels(pair(tmp_path, label), classes=3) as labels,
        pytest.raises(ValueError, match=rf"label\.npy: label {value} at row 3, column 4 is none of the classes 0 to 2"),
    ):
        labels.read(Region.of(2, 5, 1, 6))


@pytest.mark.parametrize("tile", [(16, 16), (48, 16), None])
def test_labels_are_counted_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int]) -> None:
    monkeypatch.setattr("pipeline.training.pairs.PART", 300)
    label = np.random.default_rng(0).integers(0, 4, (70, 90)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "label.tif", label, tile=tile, compression="deflate", rowsperstrip=3)
    counted = Pair("a", "", str(tmp_path / "label.tif"), (70, 90), Region.of(25, 66, 37, 90))
    with Labels(counted, classes=3, ignore=3) as labels:
        assert (labels.count() == np.bincount(label[25:66, 37:90].ravel())[:3]).all()
        cores = cut((70, 90), ReceptiveField((0, 0), (0, 0), (4, 4)), "tiles", (16, 28), counted.region)
        table = labels.count(cores)
    expected = [np.bincount(label[cores.tile(n).core.slices].ravel(), minlength=4)[:3] for n in range(len(cores))]
    assert len(table) == 4 * 3 and (table == expected).all()


@pytest.mark.parametrize("chunk", [(1, 50_000), (16, 100_000), (512, 512), (980, 980), (30_000, 20), (8000, 8000)])
def test_a_part_is_bounded(chunk: tuple[int, int]) -> None:
    height, width = part_of(chunk, 50_000)
    assert 1 <= height * min(width, 50_000) <= PART
    assert chunk[0] * chunk[1] > PART or (height % chunk[0] == 0 and width % chunk[1] == 0)
