"""The drawn image: the same however it is cut, with a truth that fits, and streamed to a tiled BigTIFF."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipeline.tiling.geometry import Region

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_any_region_is_the_same_part_of_the_plane() -> None:
    from tissue import field

    rgb, label = field(Region.of(300, 700, 400, 900), seed=3)
    part_rgb, part_label = field(Region.of(500, 530, 450, 813), seed=3)
    assert np.array_equal(part_rgb, rgb[200:230, 50:413])
    assert np.array_equal(part_label, label[200:230, 50:413])
    assert not np.array_equal(field(Region.of(300, 340, 400, 440), seed=4)[0], rgb[:40, :40])


def test_nuclei_are_dark_and_blue_where_the_label_says() -> None:
    from tissue import field

    rgb, label = field(Region.of(0, 512, 0, 1024), seed=0)
    nucleus = label > 0
    assert 0.04 < nucleus.mean() < 0.4
    assert len(np.unique(label)) > 200
    inside, outside = (rgb[where].astype(float).mean(axis=0) for where in (nucleus, ~nucleus))
    assert (inside + 40 < outside).all()
    assert inside[2] > inside[0] > inside[1]


def test_a_nucleus_has_one_number_across_blocks() -> None:
    from tissue import BLOCK, field

    _, label = field(Region.of(0, 2 * BLOCK, BLOCK - 1, BLOCK + 1), seed=0)
    left, right = label[:, 0], label[:, 1]
    both = (left > 0) & (right > 0)
    assert both.sum() > 50
    assert (left == right)[both].mean() > 0.9  # else one nucleus ends where its neighbour begins


def test_the_file_that_the_command_writes(tmp_path: Path) -> None:
    image, label = tmp_path / "big.tif", tmp_path / "label.tif"
    command = [sys.executable, str(BENCHMARKS / "draw.py"), str(image), "--size", "530,300", "--label", str(label)]
    subprocess.run(command, check=True, env={"PYTHONPATH": str(BENCHMARKS.parent)})
    with tifffile.TiffFile(image) as opened:
        page = opened.pages[0]
        assert opened.is_bigtiff
        assert (page.shape, page.dtype, page.tile) == ((530, 300, 3), np.uint8, (256, 256))
        assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        pixels = page.asarray()
    from tissue import field

    rgb, truth = field(Region.of(0, 530, 0, 300), seed=0)
    assert np.array_equal(pixels, rgb)
    assert np.array_equal(tifffile.imread(label), truth)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.tif", "label.tif"]
