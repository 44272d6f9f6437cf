"""Finding pairs: what {name} pairs, and every way in which a folder of images and labels can be wrong."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from pipeline.jobfile import validated
from pipeline.tiling.geometry import ReceptiveField, Region
from pipeline.training.finding import find_pairs
from pipeline.training.pairs import Labels, Split
from pipeline.training.sampling import cut
from pipeline.training_job import Data

FIELD = ReceptiveField((3, 3), (3, 3), (2, 2))


def picture(path: Path, shape: tuple[int, ...] = (12, 14), value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)
    return path


def pair(folder: Path, name: str, size: tuple[int, int] = (12, 14)) -> None:
    picture(folder / f"{name}.png", (*size, 3))
    picture(folder / f"{name}_label.png", size, 1)


def found(folder: Path, *patterns: tuple[str, str], field: ReceptiveField = FIELD, **more: Any) -> Split:
    patterns = patterns or (("{name}.png", "{name}_label.png"),)
    train = [(f"{folder}/{image}", f"{folder}/{label}") for image, label in patterns]
    return find_pairs(train, **{"field": field, "channels": 3, "classes": 2, **more})


def names(pairs: Any) -> list[str]:
    return [pair.name for pair in pairs]


def test_names_pair_images_with_labels_also_in_one_folder(tmp_path: Path) -> None:
    for name in ("b", "a", "b [1]", "x.y"):
        pair(tmp_path, name)
    picture(tmp_path / "other.jpg")
    split = found(tmp_path)
    assert names(split.train) == ["a", "b", "b [1]", "x.y"] and split.validation == ()
    first = split.train[0]
    assert (first.image, first.label) == (f"{tmp_path}/a.png", f"{tmp_path}/a_label.png")
    assert (first.size, first.region, first.shift) == ((12, 14), Region.of(0, 12, 0, 14), (0, 0))
    assert first.counts == (0, 12 * 14)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("image/{name}.png", "label/{name}.png"),
        ("{name}/image.png", "{name}/label.png"),
        ("{name}_i.png", "{name}.png"),
    ],
)
def test_a_name_is_a_part_of_one_folder_or_file(tmp_path: Path, image: str, label: str) -> None:
    for name in "pq":
        picture(tmp_path / image.format(name=name), (4, 4, 3))
        picture(tmp_path / label.format(name=name), (4, 4))
    picture(tmp_path / "deep/er" / image.format(name="r"), (4, 4, 3))
    assert names(found(tmp_path, (image, label)).train) == ["p", "q"]


def test_several_patterns_and_single_pairs_of_any_format(tmp_path: Path) -> None:
    pair(tmp_path / "a", "1")
    pair(tmp_path / "b", "1", (20, 10))
    tifffile.imwrite(tmp_path / "big.tif", np.zeros((64, 48, 3), np.uint8), tile=(16, 16), photometric="rgb")
    label = zarr.create_array(tmp_path / "big.zarr", shape=(64, 48), chunks=(16, 16), dtype="uint8")
    label[:] = 1
    patterns = [("a/{name}.png", "a/{name}_label.png"), ("b/{name}.png", "b/{name}_label.png"), ("big.tif", "big.zarr")]
    pairs = found(tmp_path, *patterns).train
    assert names(pairs) == ["1", "1", "big"]
    assert [p.size for p in pairs] == [(12, 14), (20, 10), (64, 48)]


def test_a_missing_partner_is_named_on_either_side(tmp_path: Path) -> None:
    for name in "abc":
        pair(tmp_path, name)
    (tmp_path / "b_label.png").unlink()
    with pytest.raises(ValueError, match=rf"^{tmp_path}/b\.png has no label: there is no {tmp_path}/b_label\.png$"):
        found(tmp_path)
    (tmp_path / "c.png").unlink()
    with pytest.raises(ValueError, match=r"b_label\.png \(and 1 more like it\)$"):
        found(tmp_path)
    (tmp_path / "b.png").unlink()
    with pytest.raises(ValueError, match=rf"^{tmp_path}/c_label\.png has no image: there is no {tmp_path}/c\.png$"):
        found(tmp_path)


def test_an_image_is_not_its_own_label(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/{{name}}\.png is both image and label$"):
        found(tmp_path, ("{name}.png", "{name}.png"))


def test_no_pair_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"no file is called like {tmp_path}/{{name}}\.png"):
        found(tmp_path)
    with pytest.raises(ValueError, match=r"a\.tif: there is no such file"):
        found(tmp_path, ("a.tif", "b.tif"))


def label(folder: Path, values: np.ndarray) -> None:
    tifffile.imwrite(folder / "a_label.png", values)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: picture(f / "a_label.png", (12, 15)), "a_label.png is 12 x 15 pixels, and not the image's 12 x 14 "),
        (
            lambda f: picture(f / "a_label.png", (12, 14), 9),
            "a_label.png: label 9 at row 0, column 0 is none of the cl",
        ),
        (
            lambda f: picture(f / "a_label.png", (12, 14, 3)),
            "a_label.png has shape (3, 12, 14): a label has one channel",
        ),
        (
            lambda f: picture(f / "a.png", (12, 14)),
            "a.png has shape (1, 12, 14): the network takes images of (3, y, x)",
        ),
        (lambda f: label(f, np.zeros((12, 14), np.float32)), "a_label.png holds float32 numbers: a label is a whole n"),
        (
            lambda f: tifffile.imwrite(f / "a.png", np.zeros((12, 14, 3), np.complex64), photometric="rgb"),
            "a.png holds complex64: give its magnitude, or its parts as channels",
        ),
        (lambda f: (f / "a_label.png").write_text("text"), "a_label.png is not an image of a known kind"),
        (lambda f: (f / "a.png").write_bytes(b""), "a.png is empty"),
        (lambda f: cut_short(f / "a.png"), "a.png: cannot be decoded"),
        (lambda f: cut_short(f / "a_label.png"), "a_label.png: cannot be decoded"),
    ],
)
def test_a_pair_that_cannot_be_trained_on_is_one_line(tmp_path: Path, spoil: Any, says: str) -> None:
    pair(tmp_path, "a")
    spoil(tmp_path)
    with pytest.raises(ValueError) as caught:
        found(tmp_path)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_only_what_is_of_8_bits_is_stained(tmp_path: Path) -> None:
    """Said when the pairs are found, not at the first step; what is held out is never stained."""
    pair(tmp_path, "a")
    held = tmp_path / "held"
    pair(held, "b")
    tifffile.imwrite(held / "b.png", np.zeros((12, 14, 3), np.uint16))
    validation = [(f"{held}/{{name}}.png", f"{held}/{{name}}_label.png")]
    assert names(found(tmp_path, validation=validation, stained=True).validation) == ["b"]
    with pytest.raises(
        ValueError, match=r"b\.png holds uint16, and augment\.stain is for RGB of 8 bits: leave it out$"
    ):
        found(held, stained=True)


def cut_short(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (200, 200, 3) if path.name == "a.png" else (12, 14))
    Image.fromarray(noise.astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-40])


def test_all_that_is_ignored_is_named(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    pair(tmp_path, "b")
    picture(tmp_path / "b_label.png", (12, 14), 255)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/b_label\.png: nothing in it is labelled$"):
        found(tmp_path, ignore=255)


def test_one_image_in_both_parts_is_refused(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    held = [(f"{tmp_path}/a.png", f"{tmp_path}/a_label.png")]
    with pytest.raises(ValueError, match=r"a\.png is there twice: an image may be in train, in validation or in test"):
        found(tmp_path, validation=held)


def test_held_out_pairs_are_found_and_checked_like_the_others(tmp_path: Path) -> None:
    pair(tmp_path / "train", "a")
    pair(tmp_path / "held", "b")
    held = [(f"{tmp_path}/held/{{name}}.png", f"{tmp_path}/held/{{name}}_label.png")]
    pattern = ("train/{name}.png", "train/{name}_label.png")
    assert names(found(tmp_path, pattern, validation=held).validation) == ["b"]
    picture(tmp_path / "held" / "b_label.png", (12, 14), 7)
    with pytest.raises(ValueError, match=r"held/b_label\.png: label 7"):
        found(tmp_path, pattern, validation=held)


def test_a_test_has_other_images_than_training_and_validation(tmp_path: Path) -> None:
    for name in "abcdefghij":
        pair(tmp_path, name)
    shares = {"validation": (0.2, None), "test": (0.3, None)}
    split = found(tmp_path, shares=shares, cores=lambda pair: cut(pair.size, FIELD, "tiles", (8, 8)))
    assert [len(part) for part in (split.train, split.validation, split.test, split.cores)] == [5, 2, 3, 5]
    assert sorted(names((*split.train, *split.validation, *split.test))) == list("abcdefghij")
    picture(tmp_path / f"{split.test[0].name}_label.png", (12, 14), 7)
    with pytest.raises(ValueError, match=rf"{split.test[0].name}_label\.png: label 7"):
        found(tmp_path, shares=shares)


def test_what_the_output_trims_or_coarsens(tmp_path: Path) -> None:
    """Valid convolutions are labelled under their outputs; a coarser output needs labels of its own size."""
    pair(tmp_path, "a")
    valid = ReceptiveField((0, 0), (4, 4), (1, 1), surplus=(-4, -4))
    trimmed = found(tmp_path, field=valid).train[0]
    assert (trimmed.region, trimmed.shift, trimmed.counts) == (Region.of(0, 8, 0, 10), (2, 2), (0, 80))
    coarse = ReceptiveField((0, 0), (1, 1), (2, 2), rate=(Fraction(1, 2), Fraction(1, 2)))
    with pytest.raises(
        ValueError, match=r"a_label\.png is 12 x 14 pixels, and not the 6 x 7 pixels of the network's o"
    ):
        found(tmp_path, field=coarse)
    picture(tmp_path / "a_label.png", (6, 7), 1)
    assert found(tmp_path, field=coarse).train[0].counts == (0, 42)
    with pytest.raises(ValueError, match=r"a\.png is 12 x 14 pixels, too small for the network"):
        found(tmp_path, field=ReceptiveField((0, 0), (12, 12), (1, 1), surplus=(-12, -12)))


def test_a_job_says_all_that_is_needed(tmp_path: Path) -> None:
    for name in "abcd":
        pair(tmp_path, name)
    data = {"train": [{"image": f"{tmp_path}/{{name}}.png", "label": f"{tmp_path}/{{name}}_label.png"}], "binary": True}
    held = data | {"validation": {"fraction": 0.25}}
    for given, count in ((data, 0), (held, 1), (data | {"validation": data["train"]}, None)):
        arguments = validated(Data, given).arguments()
        if count is None:
            with pytest.raises(ValueError, match="is there twice"):
                find_pairs(**arguments, field=FIELD, channels=3, classes=2)
        else:
            assert len(find_pairs(**arguments, field=FIELD, channels=3, classes=2).validation) == count
    split = find_pairs(**validated(Data, held).arguments(), field=FIELD, channels=3, classes=1)
    assert Labels(split.train[0], classes=1, binary=True).count().tolist() == [[0, 168]]
