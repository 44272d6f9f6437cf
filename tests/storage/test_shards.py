"""Shards as bytes: readable by others, the same on every call, and empty where there is nothing to say."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage.shards import encode, length_and_checksum

ZERO = np.array(0, np.uint8)


def index_of(pieces: list[bytes], chunks: int) -> np.ndarray:
    return np.frombuffer(pieces[-1][:-4], "<u8").reshape(chunks, 2)


def test_a_shard_of_fill_has_no_bytes() -> None:
    assert encode(np.zeros((8, 8), np.uint8), (8, 8), (4, 4), ZERO) is None


def test_chunks_of_fill_are_left_out_and_the_others_follow_one_another() -> None:
    data = np.zeros((8, 8), np.uint8)
    data[0, 0] = data[7, 0] = 1
    pieces = encode(data, (8, 8), (4, 4), ZERO)
    assert pieces is not None and len(pieces) == 3
    index = index_of(pieces, 4)
    missing = np.iinfo(np.uint64).max
    assert index[1].tolist() == index[3].tolist() == [missing, missing]
    assert index[0].tolist() == [0, len(pieces[0])]
    assert index[2].tolist() == [len(pieces[0]), len(pieces[1])]


@pytest.mark.parametrize(("value", "fill", "stored"), [(-0.0, 0.0, True), (np.nan, np.nan, False), (0.0, 0.0, False)])
def test_fill_is_compared_bit_for_bit(value: float, fill: float, stored: bool) -> None:
    data = np.full((4, 4), value, np.float32)
    assert (encode(data, (4, 4), (4, 4), np.array(fill, np.float32)) is not None) is stored
    both = np.stack([data, data], -1).view(np.complex64)[..., 0]
    assert (encode(both, (4, 4), (4, 4), np.array(complex(fill, fill), both.dtype)) is not None) is stored


def test_bytes_are_the_same_in_any_thread() -> None:
    """Blosc with threads of its own puts its blocks in the order in which they happen to be ready."""
    data = np.random.default_rng(0).integers(0, 200, (512, 512)).astype(np.float32)
    fill = np.array(0, np.float32)
    results = [encode(data, (512, 512), (256, 512), fill)]
    threads = [
        threading.Thread(target=lambda: results.append(encode(data, (512, 512), (256, 512), fill))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result == results[0] for result in results)


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.sampled_from(["uint8", "uint16", "float32", "bool", ">i4", "float64"]),
)
def test_only_the_pixels_decide(shape: tuple[int, int], dtype: str) -> None:
    """Not their layout in memory, their byte order, nor what lies beyond the array's edge."""
    data = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    fill = np.array(0, dtype).astype(np.dtype(dtype).newbyteorder("="))
    straight = encode(data, (12, 12), (4, 6), fill)
    assert encode(np.asfortranarray(data), (12, 12), (4, 6), fill) == straight
    padded = np.zeros((12, 12), dtype)
    padded[: shape[0], : shape[1]] = data
    assert encode(padded, (12, 12), (4, 6), fill) == straight


def test_the_checksum_is_that_of_all_bytes() -> None:
    assert length_and_checksum([b"1234", b"56789"]) == (9, 0xCBF43926)


def test_shards_of_other_pixels_and_equal_length_have_other_checksums() -> None:
    """Each piece ends with its own crc32c, after which a crc32c over all of them would tell nothing but lengths."""
    shards = [encode(np.full((8, 8), value, np.uint8), (8, 8), (4, 4), ZERO) for value in range(1, 40)]
    records = [length_and_checksum(shard) for shard in shards if shard is not None]
    assert len({length for length, _ in records}) == 1 and len(set(records)) == 39
