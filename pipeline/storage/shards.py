"""A shard as bytes: compressed chunks, then an index of where they lie (Zarr v3, codec `sharding_indexed`).

    | chunk | chunk | ... | index: offset and length of every chunk, row major | crc32c of the index |

Written here and not through zarr, so that the bytes depend on the pixels alone: one thread (threads of Blosc
finish in any order), chunks in row-major order, whatever the version and configuration of zarr. Any reader of
Zarr v3 reads it. Source: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import google_crc32c
import imagecodecs
import numpy as np
from numpy.typing import NDArray

LEVEL = 1
"""Of Blosc's zstd: higher ones cost twice the time for a tenth of the size."""
MISSING = 2**64 - 1
"""In the index, of a chunk that holds only the fill value."""


def codecs(dtype: np.dtype[Any], chunk: Sequence[int]) -> list[dict[str, Any]]:
    """What `encode` writes, as the array's metadata name it."""
    endian: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    checksum: dict[str, Any] = {"name": "crc32c"}
    blosc = {
        "name": "blosc",
        "configuration": {
            "cname": "zstd",
            "clevel": LEVEL,
            "shuffle": "bitshuffle" if dtype.itemsize == 1 else "shuffle",
            "typesize": dtype.itemsize,
            "blocksize": 0,
        },
    }
    configuration = {
        "chunk_shape": list(chunk),
        "codecs": [endian, blosc, checksum],
        "index_codecs": [endian, checksum],
        "index_location": "end",
    }
    return [{"name": "sharding_indexed", "configuration": configuration}]


def encode(data: NDArray[Any], shard: Sequence[int], chunk: Sequence[int], fill: NDArray[Any]) -> list[bytes] | None:
    """The shard's bytes in pieces; None where every pixel is the fill value, as such a shard is not stored.

    `data` is the part of the shard that lies within the array; what is beyond it is filled.
    """
    counts = [s // c for s, c in zip(shard, chunk, strict=True)]
    index = np.full((*counts, 2), MISSING, "<u8")
    pieces: list[bytes] = []
    at = 0
    for position in product(*map(range, counts)):
        starts = [p * c for p, c in zip(position, chunk, strict=True)]
        part = data[tuple(slice(s, s + c) for s, c in zip(starts, chunk, strict=True))]
        if part.size == 0 or _is_fill(part, fill):
            continue
        piece = _compress(_whole(part, chunk, fill))
        index[position] = at, len(piece)
        at += len(piece)
        pieces.append(piece)
    if not pieces:
        return None
    pieces.append(_with_checksum(index.tobytes()))
    return pieces


def length_and_checksum(pieces: Iterable[bytes]) -> tuple[int, int]:
    """Number of bytes and crc32 of the pieces, one after the other.

    No crc32c, which over a piece that ends with its own is the same for all pieces of a length.
    """
    length = crc = 0
    for piece in pieces:
        length += len(piece)
        crc = zlib.crc32(piece, crc)
    return length, crc


def _whole(part: NDArray[Any], chunk: Sequence[int], fill: NDArray[Any]) -> NDArray[Any]:
    """The chunk in full, row major and little endian; an edge chunk is padded with the fill value."""
    little = part.dtype.newbyteorder("<")
    if part.shape == tuple(chunk):
        return np.ascontiguousarray(part, little)
    whole = np.full(chunk, fill, little)
    whole[tuple(map(slice, part.shape))] = part
    return whole


def _compress(chunk: NDArray[Any]) -> bytes:
    size = chunk.dtype.itemsize
    shuffle = 2 if size == 1 else 1
    packed = imagecodecs.blosc_encode(
        chunk.tobytes(), level=LEVEL, compressor="zstd", shuffle=shuffle, typesize=size, blocksize=0, numthreads=1
    )
    return _with_checksum(bytes(packed))


def _with_checksum(piece: bytes) -> bytes:
    crc: int = google_crc32c.value(piece)
    return piece + crc.to_bytes(4, "little")


def _is_fill(part: NDArray[Any], fill: NDArray[Any]) -> bool:
    """Bit for bit where a float is concerned: -0.0 is no 0.0, and a NaN is one."""
    if part.dtype.kind == "c":
        return _is_fill(part.real, fill.real) and _is_fill(part.imag, fill.imag)
    if part.dtype.kind == "f":
        bits = f"u{part.dtype.itemsize}"
        return bool((np.ascontiguousarray(part).view(bits) == fill.view(bits)).all())
    return bool((part == fill).all())
