"""Zarr arrays and OME-Zarr images, PNG and JPEG pictures."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import zarr
from PIL import Image as Pillow

from pipeline.storage.image import ImageReadError, open_image
from pipeline.tiling.geometry import Region

RNG = np.random.default_rng(2)
CYX = RNG.integers(0, 65535, (3, 70, 90), dtype=np.uint16)


@pytest.mark.parametrize("form", [2, 3])
@pytest.mark.parametrize("shards", [None, (3, 64, 64)])
def test_plain_arrays(tmp_path: Path, form: int, shards: tuple[int, ...] | None) -> None:
    if form == 2 and shards:
        pytest.skip("Zarr v2 has no shards")
    array = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=CYX.shape, chunks=(1, 32, 32), shards=shards, dtype="u2", zarr_format=form
    )
    array[:] = CYX
    image = open_image(tmp_path / "a.zarr")
    assert image.shape == CYX.shape and np.array_equal(image.dask.compute(), CYX)
    assert np.array_equal(image.read(Region.of(5, 60, 31, 65), 0, [2, 0]), CYX[[2, 0], 5:60, 31:65])
    with pytest.raises(ValueError, match="no level 1"):
        open_image(tmp_path / "a.zarr", level=1)


def test_dimension_names_and_big_endian(tmp_path: Path) -> None:
    array = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=(70, 90, 3), chunks=(32, 32, 3), dtype=">u2", zarr_format=2,
        attributes={"_ARRAY_DIMENSIONS": ["latitude", "longitude", "band"]},
    )  # fmt: skip
    array[:] = np.moveaxis(CYX, 0, -1)
    image = open_image(tmp_path / "a.zarr")
    assert image.dtype.isnative and np.array_equal(image.dask.compute(), CYX)


def ome(path: Path, version: str, data: np.ndarray, axes: list[dict[str, Any]], scale: list[float]) -> None:
    group = zarr.open_group(str(path), mode="w", zarr_format=2 if version == "0.4" else 3)
    datasets = []
    for level in (0, 1):
        pixels = data[..., :: level + 1, :: level + 1]
        group.create_array(str(level), shape=pixels.shape, chunks=(1,) * (data.ndim - 2) + (32, 32), dtype=data.dtype)
        group[str(level)][...] = pixels
        steps = [*scale[:-2], scale[-2] * (level + 1), scale[-1] * (level + 1)]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": steps}]})
    content = {"multiscales": [{"axes": axes, "datasets": datasets, "name": "cells"}]}
    content["omero"] = {"channels": [{"label": "dna"}, {"label": "actin"}, {"label": "er"}]}
    group.attrs.update(content if version == "0.4" else {"ome": {"version": "0.5", **content}})


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path: Path, version: str) -> None:
    axes = [
        {"name": "t", "type": "time"}, {"name": "c", "type": "channel"}, {"name": "z", "type": "space"},
        {"name": "y", "type": "space", "unit": "micrometer"}, {"name": "x", "type": "space", "unit": "micrometer"},
    ]  # fmt: skip
    ome(tmp_path / "a.zarr", version, CYX[None, :, None], axes, [1, 1, 3, 0.5, 0.25])
    image = open_image(tmp_path / "a.zarr", level=1)
    assert image.levels == ((3, 70, 90), (3, 35, 45)) and image.shape == (3, 35, 45)
    assert np.array_equal(image.dask.compute(), CYX[:, ::2, ::2])
    assert image.pixel_size == (1.0, 0.5) and image.unit == "micrometer"
    assert image.metadata["channel_names"] == ["dna", "actin", "er"] and image.metadata["name"] == "cells"
    with pytest.raises(ValueError, match="levels 0 to 1"):
        open_image(tmp_path / "a.zarr", level=2)


def test_groups_that_are_no_image_are_refused_by_what_they_hold(tmp_path: Path) -> None:
    group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    group.create_array("a", shape=(4, 4), dtype="u1")
    assert open_image(tmp_path / "g.zarr").shape == (1, 4, 4)
    group.create_array("b", shape=(4, 4), dtype="u1")
    with pytest.raises(ValueError, match=r"name one within it, of \['a', 'b'\]"):
        open_image(tmp_path / "g.zarr")


def test_damaged_arrays(tmp_path: Path) -> None:
    array = zarr.create_array(str(tmp_path / "a.zarr"), shape=(64, 64), chunks=(64, 64), dtype="u1")
    array[:] = 3
    (tmp_path / "a.zarr" / "c" / "0" / "0").write_bytes(b"damage")
    with pytest.raises(ImageReadError, match=r"a\.zarr: array .* chunk \(0, 0, 0, 0\)") as caught:
        open_image(tmp_path / "a.zarr").read(Region.of(0, 64, 0, 64))
    assert "\n" not in str(caught.value)
    (tmp_path / "a.zarr" / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.zarr"):
        open_image(tmp_path / "a.zarr")


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_png(tmp_path: Path, samples: int, dtype: str) -> None:
    array = RNG.integers(0, np.iinfo(dtype).max, (50, 60, samples)).astype(dtype)
    (tmp_path / "a.bin").write_bytes(imagecodecs.png_encode(array.squeeze()))
    image = open_image(tmp_path / "a.bin")
    assert image.shape == (samples, 50, 60) and image.dtype == dtype
    assert np.array_equal(image.dask.compute(), np.moveaxis(array, -1, 0))


def packed(values: np.ndarray, depth: int, colour: int, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of so few bits a pixel, with more chunks before its pixels."""
    bits = np.unpackbits(values[..., None], axis=2)[..., 8 - depth :].reshape(len(values), -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    head = struct.pack(">IIBBBBB", values.shape[1], len(values), depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_labels_in_png_are_numbers_and_images_are_grey_or_colours(
    tmp_path: Path, depth: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Pillow has the colours, and the indices of a palette too; fewer than 8 bits are grey up to 255."""
    values = RNG.integers(0, 2**depth, (50, 61), np.uint8)
    palette = RNG.integers(0, 255, (2**depth, 3), np.uint8)
    (tmp_path / "grey.png").write_bytes(packed(values, depth, 0, (b"tRNS", b"\0\1")))
    (tmp_path / "palette.png").write_bytes(packed(values, depth, 3, (b"PLTE", palette.tobytes()), (b"tRNS", b"\0\7")))
    for name, expected in (
        ("grey", values[None] * (255 // (2**depth - 1))),
        ("palette", palette[values].transpose(2, 0, 1)),
    ):
        with Pillow.open(tmp_path / f"{name}.png") as file:
            drawn = np.asarray(file.convert("RGBA"))[..., :3]
        image = open_image(tmp_path / f"{name}.png")
        assert np.array_equal(image.read(Region.of(0, 50, 0, 61)), expected)
        assert np.array_equal(drawn.transpose(2, 0, 1), np.broadcast_to(expected, (3, 50, 61)))
        labels = open_image(tmp_path / f"{name}.png", labels=True)
        assert labels.shape == (1, 50, 61) and np.array_equal(labels.read(Region.of(0, 50, 0, 61))[0], values)
    assert capfd.readouterr().err == ""


def test_jpeg_and_damaged_pictures(tmp_path: Path) -> None:
    array = np.tile(np.arange(60, dtype=np.uint8)[None, :, None], (50, 1, 3))
    data = imagecodecs.jpeg_encode(array, level=95)
    (tmp_path / "a.jpg").write_bytes(data)
    image = open_image(tmp_path / "a.jpg")
    assert image.shape == (3, 50, 60)
    assert np.abs(image.dask.compute().astype(int) - np.moveaxis(array.astype(int), -1, 0)).max() < 6
    png = imagecodecs.png_encode(array)
    (tmp_path / "a.png").write_bytes(png[: len(png) // 2])
    with pytest.raises(ImageReadError, match=r"a\.png"):
        open_image(tmp_path / "a.png").read(Region.of(0, 5, 0, 5))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_ends_early_is_not_made_up(progressive: bool, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Pillow.fromarray(pixels).save(tmp_path / "a.jpg", progressive=progressive)
    whole = (tmp_path / "a.jpg").read_bytes()
    assert open_image(tmp_path / "a.jpg").dask.compute().shape == (3, 64, 64)
    for cut in (len(whole) // 2, len(whole) - 3):
        (tmp_path / "cut.jpg").write_bytes(whole[:cut])
        with pytest.raises(ImageReadError, match=rf"cut.jpg: cannot be decoded: it ends early, after {cut} bytes"):
            open_image(tmp_path / "cut.jpg").dask.compute()


@pytest.mark.parametrize("scale", [[1.0, float("nan"), 1.0], [1.0, 0.0, -1.0]])
def test_a_scale_that_is_no_size_is_left_out(scale: list[float], tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "i.zarr", mode="w")
    group.create_array("0", data=np.zeros((3, 8, 8), np.uint8))
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    transforms = [{"type": "scale", "scale": scale}]
    datasets = [{"path": "0", "coordinateTransformations": transforms}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    assert open_image(tmp_path / "i.zarr").pixel_size is None


@pytest.mark.parametrize(("shape", "said"), [((3, 0, 5), "is empty"), ((5,), "has shape .*2 dimensions at least")])
def test_what_is_no_picture_is_told_with_its_name(shape: tuple[int, ...], said: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape))
    with pytest.raises(ValueError, match=rf"a\.npy {said}"):
        open_image(tmp_path / "a.npy")
