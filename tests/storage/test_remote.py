"""Images in object stores are the same as on this machine, and no more of them is fetched than is needed."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import obstore
import pytest
import tifffile
import zarr
from obstore.store import from_url

from pipeline.storage import remote
from pipeline.storage.image import open_image
from pipeline.tiling.geometry import Region

PIXELS = np.random.default_rng(4).integers(0, 255, (1100, 1300, 3), np.uint8)
CYX = np.moveaxis(PIXELS, -1, 0)
WINDOW = Region.of(300, 420, 700, 900)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each request for a part of a file."""
    sizes: list[int] = []
    pread = remote.RemoteFile.pread

    def counting(self: Any, count: int, offset: int) -> bytes:
        data = pread(self, count, offset)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(remote.RemoteFile, "pread", counting)
    return sizes


def put(bucket: str, path: Path) -> str:
    obstore.put(from_url(bucket), f"images/{path.name}", path)
    return f"{bucket}/images/{path.name}"


def tiff(path: Path, pixels: np.ndarray = PIXELS, **options: Any) -> Path:
    tifffile.imwrite(path, pixels, **{"photometric": "rgb"} | options)
    return path


LAYOUTS = {
    "tiles": {"tile": (256, 256), "compression": "zstd"},
    "strips": {"rowsperstrip": 64, "compression": "deflate"},
    "uncompressed": {},
    "uncompressed big endian": {"byteorder": ">", "dtype": "u2"},
    "uncompressed tiles": {"tile": (256, 256)},
    "uncompressed planes": {"planarconfig": "separate"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tiff_is_read_in_parts(bucket: str, tmp_path: Path, fetched: list[int], layout: str) -> None:
    options = dict(LAYOUTS[layout])
    pixels = (CYX if "planes" in layout else PIXELS).astype(options.pop("dtype", "u1"))
    path = tiff(tmp_path / "a.tif", pixels, **options)
    with open_image(put(bucket, path)) as image, open_image(path) as local:
        assert (image.shape, image.dtype, image.levels) == (local.shape, local.dtype, local.levels)
        assert np.array_equal(image.read(WINDOW, 0, [2, 0]), CYX[[2, 0], *WINDOW.slices])
        assert sum(fetched) < 0.5 * path.stat().st_size + 2 * remote.BLOCK
        assert np.array_equal(image.read(Region.of(0, 1100, 0, 1300)), CYX)
        other = pickle.loads(pickle.dumps(image))
        assert np.array_equal(other.read(WINDOW), CYX[:, *WINDOW.slices]) and other.identity() == image.identity()


def test_pyramids_and_metadata(bucket: str, tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as writer:
        options: Any = {"tile": (128, 128), "photometric": "rgb", "compression": "deflate"}
        metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        writer.write(PIXELS, subifds=1, metadata=metadata, **options)
        writer.write(PIXELS[::2, ::2], subfiletype=1, **options)
    image = open_image(put(bucket, tmp_path / "a.ome.tif"), level=1)
    assert image.levels == ((3, 1100, 1300), (3, 550, 650)) and image.pixel_size == (1.0, 1.0)
    assert np.array_equal(image.dask.compute(), CYX[:, ::2, ::2])


def test_one_strip_is_copied_to_scratch(bucket: str, tmp_path: Path, temporary: Path) -> None:
    path = tiff(tmp_path / "a.tif", rowsperstrip=1100, compression="zstd")
    image = open_image(put(bucket, path))
    image.cache_bytes = 1 << 16
    assert np.array_equal(image.read(WINDOW), CYX[:, *WINDOW.slices])
    image.close()
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("form", ["png", "jpg", "npy"])
def test_other_files_are_fetched_whole_and_removed(bucket: str, tmp_path: Path, temporary: Path, form: str) -> None:
    path = tmp_path / f"a.{form}"
    if form == "npy":
        np.save(path, CYX)
    else:
        path.write_bytes(imagecodecs.png_encode(PIXELS) if form == "png" else imagecodecs.jpeg_encode(PIXELS))
    image = open_image(put(bucket, path))
    with open_image(path) as local:
        assert np.array_equal(image.read(WINDOW), local.read(WINDOW))
        assert image.metadata["name"] == "a" and set(image.metadata) == set(local.metadata)
    other = pickle.loads(pickle.dumps(image))
    image.close()
    assert other.identity() and np.array_equal(other.read(WINDOW)[:, :9], open_image(path).read(WINDOW)[:, :9])
    del other
    gc.collect()
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr(bucket: str, tmp_path: Path, zarr_format: Any) -> None:
    array = zarr.create_array(
        zarr.storage.ObjectStore(from_url(f"{bucket}/a.zarr")),
        shape=CYX.shape, chunks=(3, 256, 256), dtype="u1", zarr_format=zarr_format,
    )  # fmt: skip
    array[:] = CYX
    image = open_image(f"{bucket}/a.zarr/")
    assert image.shape == CYX.shape and image.metadata["name"] == "a"
    assert np.array_equal(pickle.loads(pickle.dumps(image)).read(WINDOW), CYX[:, *WINDOW.slices])


def test_the_identity_is_the_etag_and_not_the_name(bucket: str, tmp_path: Path) -> None:
    one = open_image(put(bucket, tiff(tmp_path / "a.tif", tile=(256, 256)))).identity()
    assert open_image(put(bucket, tiff(tmp_path / "b.tif", tile=(256, 256)))).identity() == one
    changed = PIXELS.copy()
    changed[5, 5] ^= 1
    assert open_image(put(bucket, tiff(tmp_path / "a.tif", changed, tile=(256, 256)))).identity() != one


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a b.tif", tile=(256, 256))
    assert open_image(path.as_uri()).identity() == open_image(path).identity()
    with pytest.raises(ValueError, match="three slashes"):
        open_image("file://tmp/a.tif")


def test_what_is_no_image(bucket: str) -> None:
    store = from_url(bucket)
    obstore.put(store, "empty.tif", b"")
    obstore.put(store, "text.txt", b"no image at all, but text")
    obstore.put(store, "bad.tif", b"II*\0" + bytes(100))
    for name, words in (("empty.tif", "is empty"), ("text.txt", "not an image of a known kind"), ("bad.tif", "TIFF")):
        with pytest.raises(ValueError, match=words):
            open_image(f"{bucket}/{name}")
    with pytest.raises(FileNotFoundError, match=r"none\.tif: there is no such object"):
        open_image(f"{bucket}/none.tif")
