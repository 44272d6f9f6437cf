"""Which images a call is about, and what their outputs are called."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tifffile

import pipeline
from pipeline.naming import asked_for, outputs_within
from pipeline.storage.location import location_of
from tests import warm

ROOT = Path(__file__).parents[1]


def names(*images: str) -> list[str]:
    """What comes of images in any order, in the order that they are given in."""
    found = [Path(path).name.removesuffix(".zarr") for path in outputs_within(location_of("out"), images)]
    for seed in range(5):
        mixed = random.Random(seed).sample(images, len(images))
        again = outputs_within(location_of("out"), mixed)
        assert dict(zip(mixed, again, strict=True)) == {i: f"out/{n}.zarr" for i, n in zip(images, found, strict=True)}
    return found


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (["a.tif", "d/b.ome.zarr"], ["a", "b"]),
        (["case1/image.tif", "case2/image.tif", "other.tif"], ["case1-image", "case2-image", "other"]),
        (["case0/image.tif", "case1/image.tif", "case2/image.tif"], ["case0-image", "case1-image", "case2-image"]),
        (["a/x/i.tif", "b/x/i.tif", "b/y/i.tif"], ["a-x-i", "b-x-i", "y-i"]),
        (["/d/i.tif", "/d/c/i.tif"], ["d-i", "c-i"]),
        (["/i.tif", "/c/i.tif"], ["i", "c-i"]),
        (["s3://b/c1/i.tif", "s3://b/c2/i.tif", "/c2/j.tif"], ["c1-i", "c2-i", "j"]),
        (["file:///d/c1/i.tif", "/d/c2/i.tif"], ["c1-i", "c2-i"]),
        (["d/a.tif", "d/a.png", "d/b.png"], ["a.tif", "a.png", "b"]),
        (["d/a.tif", "d/a.png", "e/a.tif"], ["d-a.tif", "d-a.png", "e-a"]),
        (["/d/c1/i.tif", "/d/c2/i.tif", "/d/c1-i.tif"], ["d-c1-i", "c2-i", "c1-i"]),
    ],
)
def test_folders_tell_outputs_apart_whatever_the_order(images: list[str], expected: list[str]) -> None:
    assert names(*images) == expected


def test_an_image_that_is_given_twice_has_a_number() -> None:
    given = ["big.tif", "big.tif", "big-1.tif", "./big.tif"]
    found = outputs_within(location_of("out"), given)
    assert found == ["out/big.zarr", "out/big-2.zarr", "out/big-1.zarr", "out/big-3.zarr"]
    pixels = np.zeros((1, 2, 2))
    assert outputs_within(location_of("out"), [pixels, "a.tif", pixels]) == [
        "out/image-0.zarr", "out/a.zarr", "out/image-2.zarr",
    ]  # fmt: skip


def slide(path: Path, seed: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb")
    return path


def test_a_case_that_is_added_before_others_leaves_theirs_as_they_are(tmp_path: Path) -> None:
    later = [slide(tmp_path / f"case{k}" / "image.tif", k) for k in (1, 2)]
    before = pipeline.predict(later, "unet-tiny", tmp_path / "out", workers=1)
    first = slide(tmp_path / "case0" / "image.tif", 0)
    after = pipeline.predict([first, *later], "unet-tiny", tmp_path / "out", workers=1)
    assert [Path(r.path).name for r in after] == [f"case{k}-image.zarr" for k in range(3)]
    assert [r.resumed for r in after] == [0, *(r.plan.units for r in before)]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    slide(tmp_path / "photos" / "a.tif", 0)
    slide(tmp_path / "photos" / "[1].tif", 0)
    return tmp_path


def test_a_pattern_and_a_list_have_a_folder_whatever_they_come_to(photos: Path) -> None:
    one = ["photos/a.tif"]
    assert asked_for("photos/a.tif") == (one, False)
    assert asked_for(f"file://{photos}/photos/a.tif") == ([f"{photos}/photos/a.tif"], False)
    assert asked_for("photos/[1].tif") == (["photos/[1].tif"], False)  # a file's own name
    assert asked_for("none*.tif") == (["none*.tif"], False)  # and is said to be no file
    assert asked_for("photos/a*.tif") == (one, True) == asked_for(one) == asked_for(["photos/a.tif", "photos/a*"])


@pytest.mark.parametrize(
    ("image", "made"),
    [("photos/a*.tif", "out/a.zarr/0"), ("file://{}/photos/a.tif", "out/0"), ("photos/a.tif", "out/0")],
)
def test_command_and_job_write_to_the_same_place(photos: Path, image: str, made: str) -> None:
    image = image.format(photos)
    job = [ROOT / "jobs" / "infer.py", ROOT / "jobs" / "infer.yaml", "engine=local", f"image={image}", "output=out"]
    for words in (["-m", "pipeline.infer", image, "-o", "out"], [*job, "workers=1"]):
        done = subprocess.run([warm.python(), *map(str, words)], capture_output=True, text=True, timeout=200)
        assert done.returncode == 0 and (photos / made).is_dir(), done.stderr
    assert "finished already" in done.stdout or "1 of 1 images" in done.stdout


def test_a_folder_of_images_is_asked_for_by_a_pattern(photos: Path) -> None:
    for folder in ("photos", "photos/"):
        with pytest.raises(ValueError, match=r"photos/? is a folder, and no Zarr .*: for .* in it give 'photos/\*'$"):
            asked_for(folder)
    pipeline.convert(photos / "photos" / "a.tif", photos / "photos" / "c.zarr", workers=1)
    assert asked_for("photos/c.zarr") == (["photos/c.zarr"], False)
    assert len(asked_for("photos/*")[0]) == 3
