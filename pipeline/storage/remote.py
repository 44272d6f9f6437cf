"""Images in object stores: TIFF and Zarr read piece by piece, all else fetched to this machine first."""

from __future__ import annotations

import fnmatch
import io
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from pipeline.storage import cloud, scratch
from pipeline.storage.cloud import answering
from pipeline.storage.source import MARKS

BLOCK = 256 << 10
"""Bytes of what is fetched and kept at once of a file's metadata."""
BLOCKS = 64


class RemoteFile(io.RawIOBase):
    """An object as a file that can be read anywhere; small reads, as of metadata, are served from a bounded cache."""

    def __init__(self, url: str) -> None:
        """Raises FileNotFoundError for an object that is not there, StoreError for a store that does not answer."""
        self.url = url
        folder, _, self.key = url.rpartition("/")
        hasty, self.store = cloud.connect(folder, hasty=True), cloud.connect(folder)
        import obstore

        with answering(url):
            meta = obstore.head(hasty, self.key)
        self.size, self.etag = int(meta["size"]), str(meta["e_tag"])
        self._at = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self.key

    def __str__(self) -> str:
        return self.url

    def pread(self, count: int, offset: int) -> bytes:
        """So many bytes from there, fewer at the end of the file; past the cache."""
        import obstore

        stop = min(self.size, offset + count)
        if stop <= offset:
            return b""
        with answering(self.url):
            return bytes(obstore.get_range(self.store, self.key, start=offset, end=stop))

    def readinto(self, buffer: Any) -> int:
        with self._lock:
            wanted = memoryview(buffer).cast("B")
            if len(wanted) > BLOCK:
                piece = self.pread(len(wanted), self._at)
            else:
                first, last = self._at // BLOCK, (self._at + len(wanted) - 1) // BLOCK
                held = b"".join(self._block(number) for number in range(first, last + 1))
                piece = held[self._at - first * BLOCK :][: len(wanted)]
            wanted[: len(piece)] = piece
            self._at += len(piece)
            return len(piece)

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is None:
            block = self._blocks[number] = self.pread(BLOCK, number * BLOCK)
            if len(self._blocks) > BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return block

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = (0, self._at, self.size)[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def read_at(handle: Any, count: int, offset: int) -> bytes:
    """So many bytes from there of a file of tifffile's, wherever it is."""
    file = handle._fh
    return file.pread(count, offset) if isinstance(file, RemoteFile) else os.pread(handle.fileno(), count, offset)


def is_zarr(url: str) -> bool:
    """Whether there is a Zarr array or group below the URL. Raises StoreError where the store does not answer."""
    import obstore

    with answering(url):
        found = obstore.list_with_delimiter(cloud.connect(url, hasty=True))
    return any(meta["path"].rpartition("/")[2] in MARKS for meta in found["objects"])


def matching(pattern: str) -> list[str]:
    """URLs that a pattern like s3://bucket/photos/*.jpg stands for, sorted."""
    import obstore

    folder, _, last = pattern.rpartition("/")
    with answering(pattern):
        found = obstore.list_with_delimiter(cloud.connect(folder, hasty=True))
    names = [path.rstrip("/") for path in (*found["common_prefixes"], *(m["path"] for m in found["objects"]))]
    return [f"{folder}/{name}" for name in fnmatch.filter(sorted(names), last)]


def zarr_store(url: str) -> Any:
    from zarr.storage import ObjectStore

    return ObjectStore(cloud.connect(url), read_only=True)


def fetch(file: RemoteFile) -> tuple[scratch.Scratch, Path]:
    """A copy of the whole object in a folder of this process, which removes it."""
    import obstore

    folder = scratch.Scratch(file.size)
    path = folder.path / file.key
    with answering(file.url), path.open("wb") as copy:
        for block in obstore.get(file.store, file.key).stream(min_chunk_size=1 << 20):
            copy.write(block)
    return folder, path
