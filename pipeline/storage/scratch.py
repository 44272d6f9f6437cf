"""A copy of an image in small chunks: for layouts that would decode far more than each read needs, and for arrays
in memory that several processes are to read."""

from __future__ import annotations

import fcntl
import logging
import math
import os
import secrets
import shutil
import socket
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import IO, Any

import cloudpickle
import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import MemoryStore

from pipeline.storage.arrays import ArraySource, DaskSource, MappedSource
from pipeline.storage.source import Direct, Index, Metadata, Source, Streamed
from pipeline.storage.zarrs import ZarrSource
from pipeline.tiling.grid import largest_divisor

log = logging.getLogger("pipeline")

READ = 2048 + 128
"""Side of the read by which a layout is judged: a core of the usual size with its halo."""
WASTE = 2
"""Pixels decoded per pixel read, more than which is worth a copy if the cache cannot hold them."""
SIDE = 512
"""Side of the copy's chunks."""
LARGE = 16 << 20
"""Bytes of a chunk beyond which it is decoded piece by piece, where that can be done."""
DECODING = 2
"""Times its own size that a chunk takes while it is decoded: what the decoder makes, and the chunk in our order."""
HEAVY = 16 << 20
"""Bytes of an array beyond which it goes to other processes through a copy on disk."""
KEPT = ("format", "axes", "name", "volumetric")
"""Of an image's metadata, what its copy keeps: all that those need who only read pixels."""
PREFIX = f"pipeline-scratch-{socket.gethostname()}-"
"""Of the copies that this machine's processes made: several may share the folder."""
OWNER = ".owner"
"""File in a copy's folder that its process keeps locked. The kernel lets go of it when that dies; numbers of processes
would not do, as containers that share the folder do not see one another's."""


def is_needed(source: Source, cache_bytes: int) -> bool:
    """Whether one read decodes much more than it needs, and more than the cache can keep for the next.

    A large chunk that the cache cannot keep is decoded again by every read, however much of it the read needs.
    """
    if isinstance(source, Direct):
        return False
    if chunk_bytes(source, source.chunk) > max(cache_bytes, LARGE):
        return True
    touched = source.dtype.itemsize * source.chunk[1] * source.shape[0]
    wanted = source.dtype.itemsize * source.shape[0]
    for size, chunk in zip(source.shape[2:], source.chunk[2:], strict=True):
        touched *= min(size, -(-min(size, READ) // chunk) * chunk)
        wanted *= min(size, READ)
    return touched > cache_bytes and touched > WASTE * wanted


def chunk_bytes(source: Source, chunk: Index) -> int:
    """Bytes of a chunk of that shape, decoded."""
    return math.prod(chunk) * source.dtype.itemsize


def is_heavy(source: Source) -> bool:
    """Whether an image that lives in memory would fill that of every process that it is sent to."""
    if isinstance(source, MappedSource):
        return False
    if isinstance(source, ArraySource):
        return source.array.nbytes > HEAVY
    if isinstance(source, ZarrSource):
        return isinstance(source.array.store, MemoryStore) and source.array.nbytes > HEAVY
    return isinstance(source, DaskSource) and _pickled(source.array) > HEAVY


def _pickled(array: Any) -> int:
    """Bytes that the graph of a dask array travels in; as good as endless where it cannot travel."""
    try:
        return len(cloudpickle.dumps(array))
    except Exception:  # whatever is in the caller's graph
        return 1 << 62


def chunk_of(source: Source) -> Index:
    """Chunks of the copy: such that a chunk of the source, if it is large, is a whole number of them."""
    y, x = (min(size, _side(chunk)) for size, chunk in zip(source.shape[2:], source.chunk[2:], strict=True))
    return source.chunk[0], 1, y, x


def _side(chunk: int) -> int:
    if chunk < SIDE:
        return chunk * max(1, SIDE // 2 // chunk)
    side = largest_divisor(chunk, SIDE, least=128)
    return side if side <= SIDE else SIDE


def place() -> Path:
    """Where a folder of a copy can be made."""
    return Path(tempfile.gettempdir(), f"{PREFIX}{secrets.token_hex(8)}")


class Scratch:
    """The folder of a copy; removed with this object, or when its process ends."""

    def __init__(self, needed: int, at: Path | None = None) -> None:
        self.path = at or place()
        root = self.path.parent
        _sweep(root)
        free = shutil.disk_usage(root).free
        if needed > free:
            raise ValueError(
                f"a copy of the image in smaller chunks takes up to {needed / 1e9:.1f} GB, and {root} has "
                f"{free / 1e9:.1f} GB left: set TMPDIR to a folder with room, or store the image in tiles"
            )
        making = self.path.with_name(f".{self.path.name}")  # which nobody sweeps before it is locked
        making.mkdir(0o700)
        owner = (making / OWNER).open("w")
        with suppress(OSError):  # of a file system without locks, on which nothing is swept
            _lock(owner)
        making.rename(self.path)
        self.remove = weakref.finalize(self, _remove, self.path, owner, os.getpid())


def _lock(owner: IO[str]) -> None:
    """Raises BlockingIOError where another has it, OSError where there are no locks."""
    fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove(path: Path, owner: IO[str], process: int) -> None:
    owner.close()  # first: in a folder over the network, a file that is open cannot be removed
    if os.getpid() == process:  # not in a fork of the process that made it
        shutil.rmtree(path, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Removes what processes left that were killed."""
    for path in root.glob(f"{PREFIX}*"):
        with suppress(OSError):  # it is locked, or not ours
            if path.lstat().st_uid == os.getuid():
                with (path / OWNER).open("w") as owner:
                    _lock(owner)
                shutil.rmtree(path, ignore_errors=True)


def copy(source: Source, what: str, at: Path) -> Scratch:
    """Writes the copy, announced; memory stays at one row of chunks, or less where a chunk can be decoded in pieces."""
    size = math.prod(source.shape) * source.dtype.itemsize
    scratch = Scratch(size, at)
    y, x = source.chunk[2:]
    if is_heavy(source):
        why = "is in memory, where the workers cannot see it"
    else:
        why = f"is stored in pieces of {y} x {x} pixels, each of which would be decoded again for every tile"
    log.warning(
        "%s %s: copying it once to %s (%.1f GB before compression; removed at the end)",
        what, why, scratch.path, size / 1e9,
    )  # fmt: skip
    try:
        _write(source, scratch.path)
    except BaseException:
        scratch.remove()
        raise
    return scratch


def _write(source: Source, folder: Path) -> None:
    array = zarr.create_array(
        str(folder / "image"), shape=source.shape, chunks=chunk_of(source), dtype=source.dtype, fill_value=0,
        compressors=BloscCodec(cname="lz4", clevel=1, shuffle="shuffle"),
        attributes={name: getattr(source.metadata, name) for name in KEPT},
    )  # fmt: skip
    n_c, n_z, _, n_x = source.chunk
    counts = [-(-n // c) for n, c in zip(source.shape, source.chunk, strict=True)]
    for c, z, x in product(range(counts[0]), range(counts[1]), range(counts[3])):
        row = 0
        for block in _gathered(_column(source, c, z, x, counts[2]), array.chunks[2]):
            stop = row + block.shape[2]
            array[c * n_c : c * n_c + block.shape[0], z * n_z : z * n_z + block.shape[1], row:stop,
                  x * n_x : x * n_x + block.shape[3]] = block  # fmt: skip
            row = stop


def _column(source: Source, c: int, z: int, x: int, count: int) -> Iterator[np.ndarray]:
    """All that one column of chunks holds, in blocks from the top down."""
    for y in range(count):
        pieces = _pieces(source, (c, z, y, x))
        if pieces is None:
            yield source.decode((c, z, y, x))
        else:
            yield from pieces


def _pieces(source: Source, at: Index) -> Iterator[np.ndarray] | None:
    """A large chunk in blocks from the top down; None where it is decoded at once."""
    large = chunk_bytes(source, source.chunk) > LARGE
    return source.stream(at) if large and isinstance(source, Streamed) else None


def _gathered(blocks: Iterator[np.ndarray], height: int) -> Iterator[np.ndarray]:
    """The same rows in blocks of that height, the last shorter, so that each chunk of the copy is written once."""
    held: list[np.ndarray] = []
    rows = 0
    for block in blocks:
        start = 0
        while start < block.shape[2]:
            part = block[:, :, start : start + height - rows]
            held.append(part)
            rows += part.shape[2]
            start += part.shape[2]
            if rows == height:
                yield np.concatenate(held, axis=2) if len(held) > 1 else held[0]
                held, rows = [], 0
    if held:
        yield np.concatenate(held, axis=2)


@dataclass(frozen=True)
class Copy:
    """A copy that another process made, with the metadata of what it copies."""

    folder: Path
    metadata: Metadata | None = None
    """None: what the copy itself keeps of them."""

    def exists(self) -> bool:
        return self.folder.exists()

    def open(self) -> ZarrSource:
        """Raises ValueError where it is not seen."""
        name = self.metadata.name if self.metadata else ""
        if not self.exists():
            raise ValueError(
                f"{name or 'the image'} was copied to {self.folder}, which is not seen here: "
                "store it in tiles (python -m pipeline.convert), or set TMPDIR to a folder that all nodes share"
            )
        array: Any = zarr.open_array(str(self.folder / "image"), mode="r")
        theirs = self.metadata or Metadata(**{name: array.attrs[name] for name in KEPT})
        metadata = replace(theirs)
        source = ZarrSource(array, None, "CZYX", metadata, str(self.folder))
        metadata.axes, metadata.volumetric = theirs.axes, theirs.volumetric
        return source
