"""Layouts that would decode the whole image for each read are copied once, in little memory; the copy is removed."""

from __future__ import annotations

import gc
import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile

from pipeline.storage import png, scratch, streams, tiff
from pipeline.storage.image import ImageReadError, open_image
from pipeline.tiling.geometry import Region

RNG = np.random.default_rng(3)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(scratch, "READ", 256)
    monkeypatch.setattr(scratch, "LARGE", 1 << 12)
    monkeypatch.setattr(streams, "PIECE", 1 << 10)
    monkeypatch.setattr(png, "PIECE", 1 << 10)
    return folder


def single_strip(path: Path, array: np.ndarray, **options: Any) -> None:
    tifffile.imwrite(path, array, rowsperstrip=array.shape[0], **options)


@pytest.mark.parametrize(
    ("packed", "predictor"),
    [*((name, False) for name in ("deflate", "lzw", "packbits", "lzma", "zstd")),
     *((name, True) for name in ("deflate", "lzw", "lzma", "zstd"))],
)  # fmt: skip
def test_one_strip_is_copied_once_announced_and_removed(
    tmp_path: Path, temporary: Path, caplog: pytest.LogCaptureFixture, packed: str, predictor: bool
) -> None:
    array = RNG.integers(0, 40, (2300, 100, 3)).astype(np.uint16)  # more than the cache holds
    single_strip(tmp_path / "a.tif", array, photometric="rgb", compression=packed, predictor=predictor, byteorder=">")
    image = open_image(tmp_path / "a.tif")
    image.cache_bytes = 1 << 20
    assert not list(temporary.iterdir()), "opening copies nothing"
    assert image.chunk[0] < 2300
    with caplog.at_level(logging.WARNING, "pipeline"):
        pixels = image.read(Region.of(100, 2250, 17, 90), 0, [2, 1])
    assert np.array_equal(pixels, np.moveaxis(array[100:2250, 17:90, [2, 1]], -1, 0))
    assert "copying it once" in caplog.text and len(list(temporary.iterdir())) == 1
    again = pickle.loads(pickle.dumps(image))
    assert np.array_equal(again.read(Region.of(100, 2250, 17, 90), 0, [2, 1]), pixels)
    assert again.identity() == image.identity()
    assert len(list(temporary.iterdir())) == 1 and caplog.text.count("copying") == 1
    again.close()
    del again
    gc.collect()
    assert len(list(temporary.iterdir())) == 1, "only its maker removes a copy"
    image.close()
    assert not list(temporary.iterdir())


def test_tiles_and_uncompressed_strips_are_not_copied(tmp_path: Path, temporary: Path) -> None:
    array = RNG.integers(0, 40, (2300, 300)).astype(np.uint16)
    for options in ({"tile": (256, 256), "compression": "deflate"}, {"rowsperstrip": 1}, {"rowsperstrip": 2300}):
        tifffile.imwrite(tmp_path / "a.tif", array, **options)
        image = open_image(tmp_path / "a.tif")
        image.cache_bytes = 1 << 20
        assert np.array_equal(image.read(Region.of(0, 500, 0, 300))[0], array[:500])
        assert not list(temporary.iterdir())


def test_a_large_tile_that_the_cache_cannot_keep_is_decoded_once_for_all_reads(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a read of the usual size would need most of it."""
    array, decoded = RNG.integers(0, 40, (300, 300, 3)).astype(np.float32), []
    tifffile.imwrite(tmp_path / "a.tif", array, tile=(304, 304), photometric="rgb", compression="zlib")
    image, segment = open_image(tmp_path / "a.tif"), tiff.TiffSource._segment
    monkeypatch.setattr(
        tiff.TiffSource, "_segment", lambda self, page, n: (decoded.append(n), segment(self, page, n))[1]
    )
    image.cache_bytes = 1 << 20
    assert image.needs_copy
    for y in range(0, 300, 100):
        assert np.array_equal(image.read(Region.of(y, y + 100, 0, 300)), np.moveaxis(array[y : y + 100], -1, 0))
    assert decoded == [0]
    image.close()
    assert not list(temporary.iterdir())


def test_a_strip_that_is_damaged_is_named_and_leaves_nothing(tmp_path: Path, temporary: Path) -> None:
    path = tmp_path / "a.tif"
    single_strip(path, RNG.integers(0, 255, (2300, 300), dtype=np.uint8), compression="deflate", metadata=None)
    data = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[0]
    path.write_bytes(data[: offset + 5000] + bytes(9000) + data[offset + 14000 :])
    image = open_image(path)
    image.cache_bytes = 1 << 18
    with pytest.raises(ImageReadError, match=r"a\.tif: page 0, strip 0"):
        image.read(Region.of(0, 50, 0, 50))
    assert not list(temporary.iterdir())


def test_a_copy_ends_with_its_process_and_those_of_the_dead_are_swept(tmp_path: Path, temporary: Path) -> None:
    single_strip(tmp_path / "a.tif", RNG.integers(0, 9, (2300, 300), dtype=np.uint8), compression="deflate")
    code = (
        "import sys, os, tempfile; tempfile.tempdir = sys.argv[2]\n"
        "from pipeline.storage import scratch; scratch.READ = 256\n"
        "from pipeline.storage.image import open_image\n"
        "image = open_image(sys.argv[1]); image.cache_bytes = 1 << 18; image.prepare()\n"
        "assert len(os.listdir(sys.argv[2])) == 1\n"
    )
    arguments = [str(tmp_path / "a.tif"), str(temporary)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    assert not list(temporary.iterdir())
    subprocess.run([sys.executable, "-c", code + "os._exit(0)", *arguments], check=True)
    assert len(list(temporary.iterdir())) == 1
    copy = scratch.Scratch(0)
    assert [p.name for p in temporary.iterdir()] == [copy.path.name]
    copy.remove()


def test_a_copy_whose_process_is_not_seen_here_is_not_swept(temporary: Path) -> None:
    """As that of another container, which shares this one's name and folder but not its numbers of processes."""
    theirs = scratch.Scratch(0, temporary / f"{scratch.PREFIX}4194305-0")
    (theirs.path / "pixels").write_bytes(b"1")
    ours = scratch.Scratch(0)
    assert (theirs.path / "pixels").read_bytes() == b"1"
    theirs.remove()
    ours.remove()
    assert not list(temporary.iterdir())


def test_too_little_room_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TMPDIR"):
        scratch.Scratch(1 << 60)


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("lzw", imagecodecs.lzw_encode),
        ("deflate", imagecodecs.zlib_encode),
        ("packbits", imagecodecs.packbits_encode),
        ("xz", imagecodecs.lzma_encode),
    ],
)
def test_streams_equal_whole_decoding(name: str, encode: Any) -> None:
    for data in (
        bytes(300_000),
        RNG.bytes(60_000),
        RNG.integers(0, 3, 200_000, dtype=np.uint8).tobytes(),
        b"a",
        b"abcabcabd" * 3000,
    ):
        pieces = list(getattr(streams, name)(memoryview(encode(data))))
        assert b"".join(pieces) == data


@pytest.mark.parametrize(("samples", "dtype"), [(1, "u1"), (2, "u1"), (3, "u1"), (4, "u1"), (1, "u2"), (3, "u2")])
def test_a_large_png_is_decoded_in_bands(tmp_path: Path, samples: int, dtype: str) -> None:
    rows, columns = np.indices((901, 77))
    array = (rows * 300 + columns * columns)[..., None] // (1 + np.arange(samples)) % np.iinfo(dtype).max
    array = array.astype(dtype)
    array[100:150] = RNG.integers(0, np.iinfo(dtype).max, (50, 77, samples), dtype)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(array.squeeze(), level=6))
    image = open_image(tmp_path / "a.png")
    image.cache_bytes = 1 << 12
    bands = list(image._original.stream((0, 0, 0, 0)))  # type: ignore[attr-defined]
    assert len(bands) > 4 and sum(band.shape[2] for band in bands) == 901
    assert np.array_equal(image.read(Region.of(3, 901, 5, 77)), np.moveaxis(array[3:, 5:], -1, 0))


def test_a_png_that_ends_early_is_named(tmp_path: Path) -> None:
    png = imagecodecs.png_encode(RNG.integers(0, 255, (901, 77, 3), np.uint8))
    (tmp_path / "a.png").write_bytes(png[: len(png) // 2])
    image = open_image(tmp_path / "a.png")
    image.cache_bytes = 1 << 12
    with pytest.raises(ImageReadError, match=r"a\.png: ends after \d+ of 901 rows"):
        image.read(Region.of(0, 5, 0, 5))


@pytest.mark.parametrize("mode", ["P", "1"])
def test_a_png_with_a_palette_is_decoded_whole(tmp_path: Path, mode: str) -> None:
    from PIL import Image as Pillow

    drawn = Pillow.fromarray(RNG.integers(0, 255, (300, 80, 3), np.uint8)).convert(mode)
    drawn.save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    image.cache_bytes = 1 << 12
    expected = np.asarray(drawn.convert("RGB" if mode == "P" else "L"))
    assert np.array_equal(image.read(Region.of(0, 300, 0, 80)), np.moveaxis(np.atleast_3d(expected), -1, 0))
