"""Large PNG files from the top down, a band of rows at a time. https://www.w3.org/TR/png/

    inflated     | filter, row | filter, row | filter, row | ...
    a band       none, row above | filter, row | ... | filter, row      as a PNG of its own, which imagecodecs decodes

A filter refers to the row above and to nothing higher, so a band with that row on top decodes as it would in the whole.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np

from pipeline.storage.source import PNG, ImageReadError, one_line
from pipeline.storage.streams import PIECE, blocks

SAMPLES = {0: 1, 2: 3, 4: 2, 6: 4}
"""By colour type, without palettes."""
PALETTE = 3


def png_bands(path: Path) -> Iterator[np.ndarray] | None:
    """(c, 1, h, w) after (c, 1, h, w); None where rows are interlaced, of a palette, or of less than 8 bits."""
    with path.open("rb") as file:
        head = file.read(29)
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", head[16:29])
    if interlaced or depth < 8 or colour not in SAMPLES:
        return None
    return _bands(path, width, height, depth, colour)


def _bands(path: Path, width: int, height: int, depth: int, colour: int) -> Iterator[np.ndarray]:
    row = width * SAMPLES[colour] * depth // 8
    rows = max(1, min(height, 4 * PIECE // row))
    above, done = bytes(row), 0
    try:
        for block in blocks(_inflated(path), rows * (row + 1)):
            count = min(len(block) // (row + 1), height - done)
            if count == 0:
                break
            ihdr = struct.pack(">IIBBBBB", width, count + 1, depth, colour, 0, 0, 0)
            data = zlib.compress(b"\0" + above + block[: count * (row + 1)], 0)
            band = imagecodecs.png_decode(PNG + _chunk(b"IHDR", ihdr) + _chunk(b"IDAT", data) + _chunk(b"IEND", b""))
            pixels = band.reshape(count + 1, width, -1)[1:]
            above = pixels[-1].astype(pixels.dtype.newbyteorder(">")).tobytes()
            done += count
            yield np.moveaxis(pixels, -1, 0)[:, np.newaxis]
    except (zlib.error, ValueError, RuntimeError, struct.error) as error:
        raise ImageReadError(f"{path}: cannot be decoded after row {done}: {one_line(error)}") from error
    if done < height:
        raise ImageReadError(f"{path}: ends after {done} of {height} rows")


def numbers(data: bytes) -> np.ndarray:
    """(y, x, ...) of a PNG file as they are stored: the indices of a palette, grey of fewer than 8 bits unstretched."""
    depth, colour = data[24], data[25]
    if colour == PALETTE:
        data = _without_palette(data)
    pixels: np.ndarray = imagecodecs.png_decode(data)
    return pixels // (255 // (2**depth - 1)) if depth < 8 else pixels


def _without_palette(data: bytes) -> bytes:
    """The file as a grey one, in which indices are stored alike."""
    kept, at = [PNG], len(PNG)
    while len(start := data[at : at + 8]) == 8:
        size, name = struct.unpack(">I4s", start)
        if name == b"IHDR":
            kept.append(_chunk(name, data[at + 8 : at + 17] + b"\0" + data[at + 18 : at + 21]))
        elif name in (b"IDAT", b"IEND"):
            kept.append(data[at : at + size + 12])
        at += size + 12
    return b"".join(kept)


def _inflated(path: Path) -> Iterator[bytes]:
    """The contents of all IDAT chunks as one zlib stream."""
    inflate = zlib.decompressobj()
    with path.open("rb") as file:
        file.seek(len(PNG))
        while len(start := file.read(8)) == 8:
            left, name = struct.unpack(">I4s", start)
            if name == b"IEND":
                return
            if name != b"IDAT":
                file.seek(left + 4, 1)
                continue
            while left and (rest := file.read(min(left, PIECE))):
                left -= len(rest)
                while rest and not inflate.eof:
                    yield inflate.decompress(rest, PIECE)
                    rest = inflate.unconsumed_tail
            file.seek(4, 1)
    yield inflate.flush()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
