"""Reads of the extended image, in bands, with what comes next being read meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.image import Image, ImageReadError, open_image
from pipeline.storage.reading import Reading, ahead, extend_to
from pipeline.tiling.geometry import Region

PIXELS = np.random.default_rng(0).integers(0, 255, (2, 37, 29), np.uint8)
PATIENCE = 10.0


def rows_of_chunks(seen: Callable[[int], None]) -> Image:
    """`PIXELS` in chunks of 10 rows; `seen` is told the number of each row of chunks that is read."""

    def block(part: np.ndarray, block_info: dict) -> np.ndarray:  # type: ignore[type-arg]
        seen(block_info[0]["chunk-location"][1])
        return part

    return open_image(da.from_array(PIXELS, chunks=(2, 10, 29)).map_blocks(block, meta=PIXELS[:, :0, :0]))


@given(
    *(st.tuples(st.integers(0, n - 1), st.integers(0, n + 8)) for n in PIXELS.shape[1:]),
    st.integers(1, 20),
    st.booleans(),
)
def test_bands_are_the_extended_image(y: tuple[int, int], x: tuple[int, int], height: int, chunked: bool) -> None:
    (top, bottom), (left, right) = ((min(pair), max(*pair, min(pair) + 1)) for pair in (y, x))
    image = open_image(da.from_array(PIXELS, chunks=(1, 10, 12)) if chunked else PIXELS)
    extended = extend_to(PIXELS, (50, 50))[:, top:bottom, left:right]
    bands = list(Reading(image, Region.of(top, bottom, left, right), (37, 29)).bands(height))
    assert {band.shape[1] for band in bands[:-1]} <= {height}
    np.testing.assert_array_equal(np.concatenate(bands, axis=1), extended)


def test_channels_and_planes_are_picked() -> None:
    volume = np.stack([PIXELS, PIXELS[::-1] + 1], axis=1)
    reading = Reading(open_image(volume), Region.of(3, 40, 0, 29), (37, 29), plane=1, channels=[1])
    np.testing.assert_array_equal(reading.all(), extend_to(volume[1:, 1, 3:], (37, 29)))


def test_the_next_row_of_chunks_is_read_while_a_band_is_used() -> None:
    seen: list[int] = []
    second = threading.Event()

    def note(row: int) -> None:
        seen.append(row)
        if row == 1:
            second.set()

    image = rows_of_chunks(note)
    seen.clear()
    second.clear()
    bands = Reading(image, Region.of(0, 37, 0, 29), (37, 29)).bands(5)
    next(bands)
    assert second.wait(PATIENCE)
    time.sleep(0.2)
    assert seen == [0, 1], "one row of chunks ahead, and no further: memory is bounded"
    bands.close()  # type: ignore[attr-defined]


def test_what_cannot_be_read_fails_where_its_rows_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "broken.tif"
    tifffile.imwrite(path, PIXELS[0].repeat(4, 0).repeat(4, 1), tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[2 * 4]  # type: ignore[union-attr]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(bytes(20))
    bands = Reading(open_image(path), Region.of(0, 148, 0, 116), (148, 116)).bands(16)
    for top in range(0, 64, 16):
        np.testing.assert_array_equal(next(bands)[0], PIXELS[0].repeat(4, 0).repeat(4, 1)[top : top + 16])
    with pytest.raises(ImageReadError, match="tile 8"):
        next(bands)


def test_no_thread_is_left_where_the_reader_stops_early() -> None:
    items = ahead(iter(range(100)))
    assert [next(items), next(items)] == [0, 1]
    items.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
