"""Images as one thing whatever their source: axes, regions, dask, pickling, identity, the cache."""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage import tiff
from pipeline.storage.cache import ChunkCache
from pipeline.storage.image import Image, ImageReadError, open_image
from pipeline.storage.reference import refer
from pipeline.tiling.geometry import Region

RNG = np.random.default_rng(0)
CYX = RNG.integers(0, 255, (3, 61, 83), dtype=np.uint8)


def whole(image: Image) -> np.ndarray:
    y, x = image.shape[-2:]
    planes = [image.read(Region.of(0, y, 0, x), z) for z in range(image.shape[1] if len(image.shape) == 4 else 1)]
    return np.stack(planes, 1) if len(image.shape) == 4 else planes[0]


@pytest.fixture
def tiled(tmp_path: Path) -> str:
    path = tmp_path / "tiled.tif"
    tifffile.imwrite(path, CYX.transpose(1, 2, 0), tile=(16, 32), compression="deflate", photometric="rgb")
    return str(path)


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((7, 9), None, (1, 7, 9)),
        ((3, 7, 9), None, (3, 7, 9)),
        ((2, 4, 7, 9), None, (2, 4, 7, 9)),
        ((2, 1, 7, 9), None, (2, 1, 7, 9)),
        ((7, 9, 3), "yxc", (3, 7, 9)),
        ((4, 7, 9, 3), "ZYXC", (3, 4, 7, 9)),
        ((7, 9), "XY", (1, 9, 7)),
        ((1, 7, 9), "TYX", (1, 7, 9)),
        ((5, 2, 3, 7, 9), "TCZYX", (2, 3, 7, 9)),
        ((2, 3, 7, 9), "CSYX", (6, 7, 9)),
    ],
)
def test_axes_of_arrays(shape: tuple[int, ...], axes: str | None, expected: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    for source in (array, da.from_array(array, chunks=2)):
        image = open_image(source, axes=axes)
        assert image.shape == expected
        assert np.array_equal(whole(image), image.dask.compute())
    if axes == "ZYXC":
        assert np.array_equal(whole(image), np.moveaxis(array, -1, 0))
    if axes == "TCZYX":
        assert np.array_equal(whole(image), array[0])
    if axes == "XY":
        assert np.array_equal(whole(image)[0], array.T)


def test_channels_last_are_told_only_where_the_network_says_so() -> None:
    array = np.zeros((40, 50, 3), np.uint8)
    assert open_image(array).shape == (40, 50, 3)
    assert open_image(array, channels=40).shape == (40, 50, 3)
    assert open_image(np.zeros((3, 40, 3), np.uint8), channels=3).shape == (3, 40, 3)
    with pytest.raises(ValueError, match="--axes YXC"):
        open_image(array, channels=3)
    with pytest.raises(ValueError, match="--axes ZYXC"):
        open_image(array[None], channels=3)
    assert open_image(array, axes="YXC", channels=3).shape == (3, 40, 50)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (np.zeros((4, 5), object), {}, "not numbers"),
        (np.zeros((4, 5), np.longdouble), {}, "float128, which Zarr cannot store: convert it to float64"),
        (np.zeros((4, 5), np.clongdouble), {}, "complex256, which Zarr cannot store: convert it to complex128"),
        (np.zeros((0, 5)), {}, "empty"),
        (np.zeros(5), {}, "2 dimensions"),
        (np.zeros((1, 1, 1, 2, 3)), {}, "--axes"),
        (np.zeros((4, 5)), {"axes": "CYX"}, "names 3 axes"),
        (np.zeros((4, 5, 6)), {"axes": "YYX"}, "once"),
        (np.zeros((4, 5)), {"axes": "CX"}, "Y and X"),
        (np.zeros((4, 5)), {"level": 1}, "no level 1"),
        (np.zeros((2, 4, 5)), {"axes": "TYX", "time": 2}, "time 2"),
        (17, {}, "not int"),
    ],
)
def test_refusals_of_arrays(source: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        open_image(source, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_refusals_of_paths(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.tif"):
        open_image(tmp_path / "missing.tif")
    with pytest.raises(ValueError, match="folder"):
        open_image(tmp_path)
    for name, content, message in [
        ("empty.tif", b"", "empty"),
        ("text.tif", b"hello", "not an image of a known kind"),
        ("cut.tif", b"II*\0", "TIFF"),
        ("noifd.tif", b"II*\0\x08\0\0\0", "TIFF"),
        ("bad.npy", b"\x93NUMPY\1\0", "npy"),
        ("bad.png", b"\x89PNG\r\n\x1a\n", "PNG"),
        ("bad.jpg", b"\xff\xd8\xff\xe0", "JPEG"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            open_image(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="npy"):
        open_image(tmp_path / "objects.npy")


def test_an_image_is_told_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "named.png"
    np.save(tmp_path / "a.npy", CYX)
    (tmp_path / "a.npy").rename(path)
    assert np.array_equal(whole(open_image(path)), CYX)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_regions_equal_slices(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70)))
    array = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    path = tmp_path_factory.mktemp("r") / "a.tif"
    layout = data.draw(st.sampled_from([{"tile": (16, 16)}, {"tile": (32, 16)}, {"rowsperstrip": 5}, {}]))
    packed = data.draw(st.sampled_from([None, "deflate", "packbits"]))
    tifffile.imwrite(path, array, photometric="minisblack", metadata={"axes": "CYX"}, compression=packed, **layout)
    y = sorted(data.draw(st.tuples(st.integers(0, shape[1]), st.integers(0, shape[1]))))
    x = sorted(data.draw(st.tuples(st.integers(0, shape[2]), st.integers(0, shape[2]))))
    channels = data.draw(st.none() | st.lists(st.integers(0, shape[0] - 1), min_size=1, max_size=4))
    with open_image(path) as image:
        pixels = image.read(Region.of(*y, *x), 0, channels)
    expected = array[:, y[0] : y[1], x[0] : x[1]]
    assert np.array_equal(pixels, expected if channels is None else expected[channels])
    assert pixels.dtype == np.uint16


def test_read_refuses_what_is_outside(tiled: str) -> None:
    image = open_image(tiled)
    for region, plane, channels in [
        (Region.of(0, 62, 0, 83), 0, None),
        (Region.of(-1, 3, 0, 83), 0, None),
        (Region.of(0, 3, 0, 83), 1, None),
        (Region.of(0, 3, 0, 83), 0, [3]),
    ]:
        with pytest.raises(ValueError, match="not within"):
            image.read(region, plane, channels)


def test_dask_chunks_are_whole_chunks_of_the_source(tmp_path: Path) -> None:
    path = tmp_path / "big.tif"
    tifffile.imwrite(path, np.zeros((3000, 4000), np.uint16), tile=(48, 80), compression="deflate")
    image = open_image(path)
    lazy = image.dask
    assert lazy.shape == (1, 3000, 4000) and lazy.dtype == np.uint16
    assert all(n % 48 == 0 for n in lazy.chunks[1][:-1]) and all(n % 80 == 0 for n in lazy.chunks[2][:-1])
    assert len(lazy.chunks[1]) * len(lazy.chunks[2]) > 1
    assert lazy[0, 10:20, 5].compute().shape == (10,)


def test_dask_of_volumes_and_from_threads(tmp_path: Path) -> None:
    array = RNG.integers(0, 60000, (2, 3, 40, 50), dtype=np.uint16)
    path = tmp_path / "v.tif"
    tifffile.imwrite(path, array, imagej=False, metadata={"axes": "CZYX"}, tile=(16, 16), photometric="minisblack")
    image = open_image(path)
    assert image.shape == array.shape
    assert np.array_equal(image.dask.compute(scheduler="threads", num_workers=4), array)
    assert np.array_equal(image.dask[1, 2, 5:9].compute(), array[1, 2, 5:9])


def test_one_image_may_be_read_from_several_threads(tiled: str) -> None:
    image, failures = open_image(tiled), []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(30):
            y, x = int(rng.integers(0, 50)), int(rng.integers(0, 70))
            if not np.array_equal(image.read(Region.of(y, y + 9, x, x + 9)), CYX[:, y : y + 9, x : x + 9]):
                failures.append((y, x))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not failures


def test_pickling_carries_how_to_open(tiled: str, tmp_path: Path) -> None:
    image = open_image(tiled)
    image.cache_bytes = 12345
    data = pickle.dumps(image)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert np.array_equal(whole(again), CYX) and again.cache_bytes == 12345
    assert pickle.loads(pickle.dumps(open_image(CYX))).shape == CYX.shape
    assert np.array_equal(whole(pickle.loads(pickle.dumps(open_image(da.from_array(CYX, chunks=30))))), CYX)


def test_a_relative_path_is_found_from_another_folder(
    tiled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(open_image("tiled.tif"))
    monkeypatch.chdir("/")
    assert pickle.loads(data).shape == CYX.shape


@pytest.mark.parametrize("over", [None, da.from_zarr, da.from_array])
def test_zarr_arrays_are_read_from_another_folder(
    over: Callable[..., Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they are below a dask array: of a relative store zarr would find no chunk, and read zeros."""
    monkeypatch.chdir(tmp_path)
    zarr.open_group("a.zarr").create_array("in/0", data=CYX, chunks=(1, 32, 32))
    array = zarr.open_array("a.zarr", path="in/0", mode="r")
    image = open_image(array if over is None else over(array)[:, 1:])
    data, pixels = pickle.dumps(refer(image)), whole(image)
    assert pixels.any()
    monkeypatch.chdir("/")
    assert np.array_equal(whole(pickle.loads(data).reopen()), pixels) and np.array_equal(whole(image), pixels)


@pytest.mark.parametrize("kind", ["npy", "zarr", "a zarr array"])
def test_a_file_that_is_replaced_is_not_opened_again(kind: str, tmp_path: Path) -> None:
    def save(path: Path, pixels: np.ndarray) -> None:
        if kind == "npy":
            with path.open("wb") as file:
                np.save(file, pixels)
        else:
            zarr.create_array(str(path), data=pixels, chunks=(3, 32, 32))

    old, new = tmp_path / "old", tmp_path / "new"
    save(old, CYX)
    save(new, CYX ^ 1)
    image = refer(old if kind != "a zarr array" else zarr.open_array(str(old), mode="r"))
    assert image.open().identity() == pickle.loads(pickle.dumps(image)).reopen().identity()
    old.rename(tmp_path / "gone")
    new.rename(old)
    for again in (image.open, pickle.loads(pickle.dumps(image)).reopen):
        with pytest.raises(ImageReadError, match=r"old.* was replaced while the run went on"):
            again()


def test_identity_is_of_content_not_of_place(tiled: str, tmp_path: Path) -> None:
    first = open_image(tiled).identity()
    moved = tmp_path / "elsewhere.tif"
    moved.write_bytes(Path(tiled).read_bytes())
    assert open_image(moved).identity() == first and first.startswith("sha256:") and len(first) == 71
    tifffile.imwrite(moved, CYX.transpose(1, 2, 0) ^ 1, tile=(16, 32), compression="deflate", photometric="rgb")
    assert open_image(moved).identity() != first


@pytest.mark.parametrize("source", ["numpy", "dask", "npy"])
def test_identity_of_arrays(source: str, tmp_path: Path) -> None:
    def identity(array: np.ndarray) -> str:
        if source == "npy":
            np.save(tmp_path / "a.npy", array)
            return open_image(tmp_path / "a.npy").identity()
        return open_image(array if source == "numpy" else da.from_array(array, chunks=20)).identity()

    changed = CYX.copy()
    changed[1, 30, 40] ^= 1
    assert identity(CYX) == identity(CYX.copy()) != identity(changed)
    assert identity(CYX.astype(np.uint16)) != identity(CYX)


def test_halos_are_not_decoded_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, decoded = tmp_path / "a.tif", []
    tifffile.imwrite(path, RNG.integers(0, 9, (1024, 1024), dtype=np.uint8), tile=(64, 64), compression="deflate")
    segment = tiff.TiffSource._segment
    monkeypatch.setattr(
        tiff.TiffSource, "_segment", lambda self, page, n: (decoded.append(n), segment(self, page, n))[1]
    )
    image = open_image(path)

    def walk() -> None:
        for y in range(0, 1024, 256):
            for x in range(0, 1024, 256):
                image.read(Region.of(max(0, y - 10), min(1024, y + 266), max(0, x - 10), min(1024, x + 266)))

    image.cache_bytes = 5 * 64 * 1024  # five of sixteen rows of chunks
    walk()
    assert sorted(decoded) == list(range(256))
    decoded.clear()
    image.cache_bytes = 0
    walk()
    assert len(decoded) > 300


def test_the_cache_is_bounded_and_forgets_spent_chunks_first() -> None:
    cache, chunk = ChunkCache(100), np.zeros(30, np.uint8)
    for i in range(3):
        cache.put((0, 0, 0, i), chunk)
    cache.spend((0, 0, 0, 2))
    cache.put((0, 0, 0, 3), chunk)
    assert cache.get((0, 0, 0, 2)) is None and cache.get((0, 0, 0, 0)) is not None
    cache.put((0, 0, 0, 4), chunk)
    assert cache.get((0, 0, 0, 1)) is None and cache.get((0, 0, 0, 0)) is not None
    cache.put((0, 0, 0, 5), np.zeros(101, np.uint8))
    assert cache.size == 90 and cache.get((0, 0, 0, 5)) is None
    cache.resize(40)
    assert cache.size == 30
    cache.put((0, 0, 0, 6), chunk)
    cache.put((0, 0, 0, 6), chunk)
    assert cache.size == 30


def test_several_times_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pipeline"):
        image = open_image(np.zeros((4, 5, 6)), axes="TYX", time=3)
    assert "4 times" in caplog.text and "time 3 is opened" in caplog.text
    caplog.clear()
    pickle.loads(pickle.dumps(image))
    assert not caplog.text


def test_an_error_of_a_dask_graph_is_an_image_read_error() -> None:
    def fail(block: np.ndarray) -> np.ndarray:
        raise RuntimeError("broken\ndisk")

    image = open_image(da.zeros((1, 50, 50), chunks=25).map_blocks(fail, dtype=float, meta=np.empty((0, 0, 0))))
    with pytest.raises(ImageReadError, match="broken disk"):
        image.read(Region.of(0, 9, 0, 9))


def test_an_image_given_to_open_image_is_returned() -> None:
    image = open_image(CYX)
    assert open_image(image) is image
