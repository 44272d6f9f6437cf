"""A worker that does tiles in order decodes each chunk of the source about once, halos included."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipeline.storage.image import Image, open_image
from pipeline.tiling.geometry import ReceptiveField
from pipeline.tiling.grid import Grid

CHUNK, HALO, SIZE = 64, 20, (1000, 2000)
FIELD = ReceptiveField((HALO, HALO), (HALO, HALO), (4, 4))
CORE = (4 * CHUNK, 4 * CHUNK)
CHUNK_BYTES = 3 * CHUNK * CHUNK


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache") / "wide.tif"
    pixels = np.random.default_rng(1).integers(0, 255, (*SIZE, 3), np.uint8)
    tifffile.imwrite(path, pixels, tile=(CHUNK, CHUNK), compression="zstd", photometric="rgb")
    return path


def counted(path: Path, cache_bytes: int) -> tuple[Image, Counter[tuple[int, ...]]]:
    """An image and how often each of its chunks was decoded."""
    image = open_image(path)
    image.cache_bytes = cache_bytes
    decode, counts = image._original.decode, Counter[tuple[int, ...]]()

    def counting(at: tuple[int, int, int, int]) -> np.ndarray:
        counts[at] += 1
        return decode(at)

    image._original.decode = counting  # type: ignore[method-assign]
    return image, counts


def row_of_tiles() -> int:
    """Bytes of the chunks that a row of tiles shares with the next, and of one read."""
    across, read = -(-SIZE[1] // CHUNK), (CORE[0] // CHUNK + 2) * (CORE[1] // CHUNK + 2)
    return (2 * across + read) * CHUNK_BYTES


def test_within_the_bound_each_chunk_is_decoded_once(path: Path) -> None:
    image, counts = counted(path, row_of_tiles())
    grid = Grid.build(SIZE, CORE, FIELD)
    for number in range(len(grid)):
        image.read(grid.tile(number).read.clip(*SIZE))
    assert len(counts) == -(-SIZE[0] // CHUNK) * -(-SIZE[1] // CHUNK)
    assert set(counts.values()) == {1}


def test_each_of_two_workers_decodes_a_chunk_once(path: Path) -> None:
    images = [counted(path, row_of_tiles()) for _ in range(2)]
    grid = Grid.build(SIZE, CORE, FIELD)
    for number in range(len(grid)):
        images[number % 2][0].read(grid.tile(number).read.clip(*SIZE))
    for _, counts in images:
        assert set(counts.values()) == {1}


def test_a_cache_too_small_for_a_row_of_tiles_still_spares_most(path: Path) -> None:
    image, counts = counted(path, row_of_tiles() // 2)
    grid = Grid.build(SIZE, CORE, FIELD)
    for number in range(len(grid)):
        image.read(grid.tile(number).read.clip(*SIZE))
    assert sum(counts.values()) / len(counts) < 1.6
    assert image._cache.size <= image.cache_bytes
