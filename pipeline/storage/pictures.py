"""PNG and JPEG pictures: decoded whole, but for large PNG, which can be decoded from the top down."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np

from pipeline.storage.png import PALETTE, SAMPLES, numbers, png_bands
from pipeline.storage.source import PNG, ImageReadError, Index, Metadata, native, one_line

LARGEST = 1 << 34
"""Pixels beyond which a header is taken for damage."""


def open_picture(path: Path, start: bytes, labels: bool = False) -> PictureSource:
    """A PNG or JPEG file, told by its first bytes; `labels`: a PNG's numbers, not the colours that they stand for.

    Raises ValueError for a damaged header.
    """
    form = "png" if start.startswith(PNG) else "jpeg"
    try:
        shape, dtype = _png_header(path, labels) if form == "png" else _jpeg_header(path)
    except (struct.error, ValueError, IndexError) as error:
        raise ValueError(f"{path}: a damaged {form.upper()} file: {one_line(error)}") from error
    if 0 in shape or shape[1] * shape[2] > LARGEST:
        raise ValueError(f"{path}: a {form.upper()} file of {shape[1]} x {shape[2]} pixels")
    return PictureSource(path, form, shape, dtype, labels)


def _png_header(path: Path, labels: bool) -> tuple[tuple[int, int, int], np.dtype[np.generic]]:
    """Channels, rows and columns from IHDR (and tRNS). https://www.w3.org/TR/png/#11IHDR"""
    with path.open("rb") as file:
        head = file.read(33)
    width, height, depth, colour = struct.unpack(">4x4xIIBB", head[8:26])
    samples = SAMPLES | {PALETTE: 1 if labels else 3}
    if head[12:16] != b"IHDR" or colour not in samples or depth not in (1, 2, 4, 8, 16):
        raise ValueError("no valid header")
    return (samples[colour], height, width), np.dtype("u2" if depth == 16 else "u1")


def _jpeg_header(path: Path) -> tuple[tuple[int, int, int], np.dtype[np.generic]]:
    """Channels, rows and columns from the start of frame. ITU-T T.81, B.2.2"""
    with path.open("rb") as file:
        file.seek(2)
        while True:
            marker = file.read(1)
            if marker != b"\xff":
                raise ValueError("no start of frame")
            while marker == b"\xff":
                marker = file.read(1)
            length = struct.unpack(">H", file.read(2))[0]
            if 0xC0 <= marker[0] <= 0xCF and marker[0] not in (0xC4, 0xC8, 0xCC):
                depth, height, width, samples = struct.unpack(">BHHB", file.read(6))
                if samples not in (1, 3, 4):
                    raise ValueError(f"{samples} components")
                return (samples, height, width), np.dtype("u1" if depth == 8 else "u2")
            file.seek(length - 2, 1)


MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""Of a JPEG file, what is neither pixels nor filling."""


def _check_end(data: bytes) -> None:
    """Raises ValueError for a JPEG file without its end, for which a decoder makes up the rows that are missing."""
    at = 2
    while found := MARKER.search(data, at):
        if data[found.end() - 1] == 0xD9:
            return
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    raise ValueError(f"it ends early, after {len(data)} bytes")


class PictureSource:
    """A picture that is one chunk."""

    def __init__(
        self, path: Path, form: str, shape: tuple[int, int, int], dtype: np.dtype[np.generic], labels: bool
    ) -> None:
        c, y, x = shape
        self.path, self.form, self.labels = path, form, labels
        self.size = path.stat().st_size
        self.shape: Index = (c, 1, y, x)
        self.chunk: Index = self.shape
        self.dtype = native(dtype, str(path))
        self.metadata = Metadata(form, "YXC" if c > 1 else "YX", path.stem)

    def decode(self, at: Index) -> np.ndarray:
        return np.moveaxis(self._decode(), -1, 0)[:, np.newaxis]

    def _decode(self) -> np.ndarray:
        """(y, x, c)"""
        try:
            data = self.path.read_bytes()
            if self.form == "png":
                pixels: np.ndarray = numbers(data) if self.labels else imagecodecs.png_decode(data)
            else:
                _check_end(data)
                pixels = imagecodecs.jpeg_decode(data)
        except Exception as error:  # a decoder of hostile bytes
            raise ImageReadError(f"{self.path}: cannot be decoded: {one_line(error)}") from error
        c, _, y, x = self.shape
        pixels = pixels.reshape(*pixels.shape[:2], -1)[..., :c]
        if pixels.shape != (y, x, c) or pixels.dtype != self.dtype:
            raise ImageReadError(f"{self.path}: decodes to {pixels.shape} {pixels.dtype}, its header says {(y, x, c)}")
        return pixels

    def stream(self, at: Index) -> Iterator[np.ndarray] | None:
        """A PNG in bands of rows; None for what must be decoded whole."""
        return None if self.form == "jpeg" else png_bands(self.path)

    def sample(self, at: Index) -> bytes:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    def close(self) -> None: ...
