"""Arrays from Python: a stored one stays where it is, a large one in memory goes to workers through one file."""

from __future__ import annotations

import gc
import pickle
import threading
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

import pipeline
from pipeline.storage import scratch
from pipeline.storage.image import open_image
from pipeline.tiling.geometry import Region

PIXELS = np.random.default_rng(2).integers(0, 255, (3, 600, 700), np.uint8)
WINDOW = Region.of(100, 590, 30, 690)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(scratch, "HEAVY", 1 << 16)
    return folder


def test_a_stored_zarr_array_is_read_where_it_is(tmp_path: Path, temporary: Path) -> None:
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=PIXELS.shape, chunks=(3, 100, 100), dtype="u1", dimension_names=("c", "y", "x")
    )
    array[:] = PIXELS
    (tmp_path / "a.zarr/c/0/5/6").unlink()  # a chunk that no read below needs
    (tmp_path / "a.zarr/c/0/5/6").write_bytes(b"damaged")
    image = open_image(array)
    assert image.shape == PIXELS.shape
    assert np.array_equal(image.read(Region.of(0, 300, 0, 690)), PIXELS[:, :300, :690])
    sent = pickle.dumps(image)
    assert len(sent) < 8000 and not list(temporary.iterdir())
    assert np.array_equal(pickle.loads(sent).read(Region.of(0, 90, 0, 90)), PIXELS[:, :90, :90])


def test_a_group_from_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an image is a Zarr array, not Group"):
        open_image(zarr.create_group(tmp_path / "g.zarr"))


def in_zarr_memory() -> Any:
    array = zarr.create_array(MemoryStore(), shape=PIXELS.shape, chunks=(3, 300, 300), dtype="u1")
    array[:] = PIXELS
    return array


def unsendable() -> Any:
    lock = threading.Lock()
    return dask.array.from_array(PIXELS, chunks=(3, 200, 200)).map_blocks(lambda part: (lock, part)[1], dtype="u1")


@pytest.mark.parametrize(
    "make",
    [
        lambda: PIXELS.copy(),
        lambda: np.asfortranarray(PIXELS),
        lambda: dask.array.from_array(PIXELS, chunks=(3, 200, 200)),
        unsendable,
        in_zarr_memory,
    ],
    ids=["numpy", "fortran order", "dask", "dask that cannot be sent", "zarr in memory"],
)
def test_an_array_in_memory_goes_to_others_through_one_copy(temporary: Path, make: Any) -> None:
    image = open_image(make())
    sent = [pickle.dumps(image) for _ in range(2)]
    assert len(sent[0]) < 4000, "no pixels travel"
    assert len(list(temporary.iterdir())) == 1, "one copy for all"
    other = pickle.loads(sent[1])
    assert other.shape == image.shape and other.identity() == image.identity()
    assert np.array_equal(other.read(WINDOW, 0, [2, 0]), PIXELS[[2, 0], *WINDOW.slices])
    third = pickle.loads(pickle.dumps(other))
    other.close()
    del other
    gc.collect()
    assert np.array_equal(third.read(WINDOW), PIXELS[:, *WINDOW.slices]), "the creator alone removes the copy"
    image.close()
    assert not list(temporary.iterdir())


def test_a_small_array_travels_as_it_is(temporary: Path) -> None:
    image = pickle.loads(pickle.dumps(open_image(PIXELS[:, :50, :50])))
    assert np.array_equal(image.read(Region.of(0, 50, 0, 50)), PIXELS[:, :50, :50])
    assert not list(temporary.iterdir())


def test_a_dask_array_of_what_is_stored_stays_lazy(tmp_path: Path, temporary: Path) -> None:
    zarr.save_array(tmp_path / "a.zarr", PIXELS)
    image = open_image(dask.array.from_zarr(tmp_path / "a.zarr"))
    assert np.array_equal(pickle.loads(pickle.dumps(image)).read(WINDOW), PIXELS[:, *WINDOW.slices])
    assert not list(temporary.iterdir())


def test_a_run_with_workers_leaves_no_copy_behind(tmp_path: Path, temporary: Path) -> None:
    one = pipeline.predict(PIXELS, "unet-tiny", tmp_path / "one.zarr", workers=1, tile=(512, 512))
    assert not list(temporary.glob("pipeline-*")), "a run in this process needs none"
    two = pipeline.predict(PIXELS, "unet-tiny", tmp_path / "two.zarr", workers=2, tile=(512, 512))
    assert np.array_equal(one.array[:], two.array[:])
    gc.collect()
    assert not list(temporary.glob("pipeline-*"))
