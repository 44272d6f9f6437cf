"""Decompression from the front, piece by piece: what one strip of a whole image needs to be read in little memory."""

from __future__ import annotations

import copy
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import imagecodecs
import numpy as np

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor
else:
    from backports.zstd import ZstdDecompressor

PIECE = 1 << 20
"""Bytes that are taken in or handed out at once, about."""


def deflate(data: memoryview) -> Iterator[bytes]:
    """zlib streams (compressions 8 and 32946)."""
    decoder = zlib.decompressobj()
    rest: bytes | memoryview = b""
    for start in range(0, len(data), PIECE):
        rest = data[start : start + PIECE]
        while rest and not decoder.eof:
            yield decoder.decompress(rest, PIECE)
            rest = decoder.unconsumed_tail
    while not decoder.eof and (piece := decoder.decompress(b"", PIECE)):
        yield piece


def xz(data: memoryview) -> Iterator[bytes]:
    """LZMA2 streams (compression 34925)."""
    return _drained(lzma.LZMADecompressor(), data)


def zstd(data: memoryview) -> Iterator[bytes]:
    """Zstandard frames (compressions 50000 and 34926)."""
    return _drained(ZstdDecompressor(), data)


def _drained(decoder: Any, data: memoryview) -> Iterator[bytes]:
    """What a decoder with the interface of lzma's makes of the data, a piece at a time."""
    for start in range(0, len(data), PIECE):
        if decoder.eof:
            return
        yield decoder.decompress(data[start : start + PIECE], PIECE)
        while not decoder.eof and not decoder.needs_input:
            yield decoder.decompress(b"", PIECE)


def packbits(data: memoryview) -> Iterator[bytes]:
    """Runs and literals (compression 32773). TIFF 6.0, section 9"""
    out, at = bytearray(), 0
    while at < len(data):
        head = data[at]
        if head < 128:
            out += data[at + 1 : at + 2 + head]
            at += 2 + head
        else:
            if head > 128:
                out += bytes(data[at + 1 : at + 2]) * (257 - head)
            at += 1 if head == 128 else 2
        if len(out) >= PIECE:
            yield bytes(out)
            out.clear()
    yield bytes(out)


CLEAR, END = 256, 257
_WIDTHS = np.repeat([9, 10, 11, 12], [254, 512, 1024, 8192])
"""Bits of the codes that follow a clear code, one after the other."""
_STARTS = np.concatenate([[0], np.cumsum(_WIDTHS)[:-1]])


def lzw(data: memoryview) -> Iterator[bytes]:
    """LZW as TIFF has it (compression 5), cut at its clear codes, where the table begins anew. TIFF 6.0, section 13"""
    at, end = 0, len(data) * 8
    if end >= 9 and data[0] == 0x80 and data[1] < 128:
        at = 9  # the clear code that every stream begins with
    elif end >= 9 and data[0] == 0 and data[1] & 1:
        raise ValueError("LZW of the first kind, with its bits reversed")
    while at < end:
        bits = np.unpackbits(np.frombuffer(data[at // 8 : (at + int(_WIDTHS.sum())) // 8 + 2], np.uint8))[at % 8 :]
        codes = _codes(bits)
        ends = np.flatnonzero((codes == CLEAR) | (codes == END))
        if not len(ends):
            count, last = len(codes), True
        else:
            count, last = int(ends[0]), bool(codes[ends[0]] == END)
        if count >= len(_WIDTHS):
            raise ValueError("LZW without clear codes")
        stop = int(_STARTS[count])
        if count:
            yield _segment(bits[:stop], int(_WIDTHS[count]))
        if last:
            return
        at += stop + int(_WIDTHS[count])


def _codes(bits: np.ndarray) -> np.ndarray:
    """The codes in those bits, as far as they are whole, if none of them clears the table."""
    count = int(np.searchsorted(_STARTS + _WIDTHS, len(bits), side="right"))
    values = np.zeros(count, np.int32)
    for k in range(12):
        wide = _WIDTHS[:count] > k
        values[wide] = values[wide] << 1 | bits[_STARTS[:count][wide] + k]
    return values


def _segment(bits: np.ndarray, width: int) -> bytes:
    """Decodes codes between two clear codes: made a stream of its own, moved to begin at a byte."""
    clear = np.array([1, 0, 0, 0, 0, 0, 0, 0, 0], np.uint8)
    end = np.array([int(b) for b in np.binary_repr(END, width)], np.uint8)
    return bytes(imagecodecs.lzw_decode(np.packbits(np.concatenate([clear, bits, end])).tobytes()))


def stored(data: memoryview) -> Iterator[bytes]:
    """Bytes that are not compressed."""
    for start in range(0, len(data), PIECE):
        yield bytes(data[start : start + PIECE])


DECODERS: dict[int, Callable[[memoryview], Iterator[bytes]]] = {
    1: stored,
    5: lzw,
    8: deflate,
    32946: deflate,
    32773: packbits,
    34925: xz,
    34926: zstd,
    50000: zstd,
}
"""By the number of a TIFF file's compression."""


def blocks(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in blocks of that size; the last may be shorter."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


def is_streamable(page: Any) -> bool:
    """Whether the strips of a TIFF page can be decoded from the front."""
    return (
        not page.is_tiled
        and int(page.compression) in DECODERS
        and isinstance(page.bitspersample, int)
        and page.dtype.kind != "c"
        and not page.is_subsampled
    )


def strip_blocks(page: Any, data: memoryview, rows: int) -> Iterator[np.ndarray]:
    """Blocks (depth, h, w, samples) of a strip of that many rows, unpacked as tifffile does uncompressed strips."""
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    row_bytes = -(-page.imagewidth * samples * page.bitspersample // 8)
    height = max(1, min(rows, 4 * PIECE // row_bytes))
    plain = copy.copy(page)  # the same page, as if its strips were short and not compressed
    for name in ("decode", "hash"):
        plain.__dict__.pop(name, None)
    plain.compression, plain.fillorder, plain.rowsperstrip = 1, 1, height
    plain.imagelength, plain.shaped = rows, (*page.shaped[:2], rows, *page.shaped[3:])
    plain.tags = page.tags
    if page.fillorder == 2:
        data = memoryview(bytes(imagecodecs.bitorder_decode(bytes(data))))
    pieces = DECODERS[int(page.compression)](data)
    for number, block in enumerate(blocks(pieces, height * row_bytes)):
        if number * height >= rows:
            return
        yield plain.decode(block, number)[0]
