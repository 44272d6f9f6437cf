"""Which kind of source a path or an array is, and what identifies it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.storage import scratch
from pipeline.storage.arrays import ArraySource, DaskSource, open_npy
from pipeline.storage.location import array_path, is_url
from pipeline.storage.source import JPEG, MARKS, PNG, Source

TIFF = (b"II", b"MM", b"EP")
"""How TIFF files begin."""
SAMPLES = 64
"""Chunks of which an image's identity is made."""
Version = tuple[str, int, int]
"""The machine that looked at a file, the file's size, and when it was changed last, in ns."""


def open_source(
    source: Any, *, axes: str | None, level: int, channels: int | None, time: int, labels: bool = False
) -> Source:
    if isinstance(source, str):
        if is_url(source):
            return _open_url(source, axes, level, channels, time, labels)
        return _open_path(Path(source), axes, level, channels, time, labels)
    if isinstance(source, scratch.Copy):
        return source.open()
    if level != 0:
        raise ValueError(f"an array has no level {level}")
    if type(source).__module__.partition(".")[0] == "zarr":
        from pipeline.storage.zarrs import open_array

        return open_array(source, axes, channels, time)
    if hasattr(source, "dask") and hasattr(source, "chunks"):
        return DaskSource(source, axes, channels, time)
    if isinstance(source, np.ndarray) or hasattr(source, "__array__"):
        return ArraySource(np.asarray(source), axes, channels, time)
    raise ValueError(f"an image is a path, a NumPy, dask or Zarr array, not {type(source).__name__}")


def _open_url(url: str, axes: str | None, level: int, channels: int | None, time: int, labels: bool) -> Source:
    from pipeline.storage import remote
    from pipeline.storage.zarrs import open_zarr

    try:
        file = remote.RemoteFile(url)
    except FileNotFoundError:
        if not remote.is_zarr(url):
            raise
        return open_zarr(url, axes, level, channels, time, remote.zarr_store(url))
    if file.size == 0:
        raise ValueError(f"{url} is empty")
    source: Source | None = None
    start = file.read(2)
    file.seek(0)
    if start in TIFF:
        from pipeline.storage.tiff import open_tiff

        source = open_tiff(file, axes, level, time)
    if source is None:
        folder, path = remote.fetch(file)
        source = _open_path(path, axes, level, channels, time, labels)
        source.metadata.keeps = folder
    source.metadata.etag = file.etag
    return source


def _open_path(path: Path, axes: str | None, level: int, channels: int | None, time: int, labels: bool) -> Source:
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if path.is_dir():
        from pipeline.storage.zarrs import is_zarr, open_zarr

        if not is_zarr(path):
            raise ValueError(f"{path} is a folder, and no Zarr array or group")
        return open_zarr(path, axes, level, channels, time)
    if not path.is_file() and not path.is_char_device():
        raise ValueError(f"{path} is neither a file nor a folder")
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if not start:
        raise ValueError(f"{path} is empty")
    if start[:2] in TIFF:
        from pipeline.storage.tiff import open_tiff

        opened = open_tiff(path, axes, level, time)
        assert opened is not None, "a file of this machine need not be fetched"
        return opened
    if level != 0:
        raise ValueError(f"{path} has no level {level}")
    if start.startswith(b"\x93NUMPY"):
        return open_npy(path, axes, channels, time)
    if start.startswith((PNG, JPEG)):
        from pipeline.storage.pictures import open_picture

        return open_picture(path, start, labels)
    raise ValueError(f"{path} is not an image of a known kind: TIFF, Zarr, .npy, PNG or JPEG")


def identity(source: Source) -> str:
    """Hash of size, shape, axes, dtype and 64 chunks that are drawn by number alone; of all pixels of an array.

    Of a file in an object store, its ETag stands for the chunks.
    """
    head = {"shape": source.shape, "axes": source.metadata.axes, "bytes": source.size}
    head["dtype"] = source.dtype.str.lstrip("<>=|")
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    if isinstance(source, ArraySource) and source.size == 0:
        digest.update(source.content().encode())
        return digest.hexdigest()
    if source.metadata.etag:
        digest.update(source.metadata.etag.encode())
        return digest.hexdigest()
    counts = [-(-n // c) for n, c in zip(source.shape, source.chunk, strict=True)]
    picker = random.Random(0)
    drawn = {(0, 0, 0, 0), *(tuple(picker.randrange(n) for n in counts) for _ in range(SAMPLES - 1))}
    for at in sorted(drawn):
        digest.update(source.sample(at))  # type: ignore[arg-type]
    return digest.hexdigest()


def version(source: Any) -> Version | None:
    """What tells at once that a file of this machine, or the metadata of a Zarr folder, was replaced.

    None where nothing does: for URLs, arrays in memory, and where nothing is.
    """
    path = source if isinstance(source, str) else array_path(source)
    if path is None or is_url(path):
        return None
    for file in (path, *(os.path.join(path, mark) for mark in MARKS)):
        with suppress(OSError, ValueError):
            found = os.stat(file)
            if stat.S_ISREG(found.st_mode):
                return socket.gethostname(), found.st_size, found.st_mtime_ns
    return None
