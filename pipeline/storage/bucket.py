"""A place in an object store: a prefix, below which each file of an output is an object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from pipeline.storage import cloud
from pipeline.storage.cloud import answering
from pipeline.storage.disk import OutputError
from pipeline.storage.location import Lengths

PARTS = 16 << 20
"""Bytes beyond which an object is sent in parts, which appear together: each must arrive within 30 s."""


class Bucket:
    """Objects whose names begin with the same URL."""

    def __init__(self, url: str, whole: bool = False) -> None:
        self.url = url.rstrip("/")
        self.name = self.url.rpartition("/")[2]
        if not whole and "/" not in self.url.partition("://")[2]:
            raise ValueError(f"{url} is a whole bucket: name a folder in it, such as {self.url}/big.zarr")
        self.store  # a wrong URL and a missing package are said at once  # noqa: B018

    @cached_property
    def store(self) -> Any:
        return cloud.connect(self.url)

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[Any, ...]:
        return Bucket, (self.url,)

    def _at(self, key: str) -> str:
        return f"{self.url}/{key}"

    def read(self, key: str) -> bytes:
        import obstore

        with answering(self._at(key)):
            return bytes(obstore.get(self.store, key).bytes())

    def write(self, key: str, pieces: Sequence[bytes]) -> None:
        """One request, or parts that appear together: an object is there whole or not at all."""
        import obstore

        content = b"".join(pieces)
        with _writing(self._at(key)):
            obstore.put(self.store, key, content, use_multipart=len(content) > PARTS, chunk_size=PARTS // 2)

    def remove(self, key: str) -> None:
        with _writing(self._at(key)):
            names = [f"{key}/{name}" for name, _ in self._listed(key)] + [key] * (self.length(key) is not None)
            self.remove_all(names)

    def length(self, key: str) -> int | None:
        import obstore

        try:
            with answering(self._at(key)):
                return int(obstore.head(self.store, key)["size"])
        except FileNotFoundError:
            return None

    def lengths(self, folder: str) -> Lengths:
        with answering(self._at(folder)):
            return {f"{folder}/{name}": size for name, size in self._listed(folder)}.get

    def _listed(self, folder: str) -> Iterator[tuple[str, int]]:
        """(name below the folder, length) of every object, at any depth."""
        import obstore

        start = len(folder) + 1
        for page in obstore.list(self.store, folder):
            yield from ((meta["path"][start:], meta["size"]) for meta in page)

    def blocks(self, key: str) -> Iterator[bytes]:
        import obstore

        with answering(self._at(key)):
            for block in obstore.get(self.store, key).stream(min_chunk_size=1 << 20):
                yield bytes(block)

    def names(self, folder: str = "") -> list[str]:
        import obstore

        with answering(self._at(folder)):
            found = obstore.list_with_delimiter(self.store, folder or None)
        paths = [*found["common_prefixes"], *(meta["path"] for meta in found["objects"])]
        return sorted({path.rstrip("/").rpartition("/")[2] for path in paths})

    def sweep(self, folders: Sequence[str]) -> None:
        """Nothing: what was not sent whole is not there."""

    def exists(self) -> bool:
        return bool(self.names())

    def check_parent(self, what: str = "output") -> None:
        """Asks for little and waits for little, so that what is wrong with the bucket shows before a run begins."""
        import obstore

        with answering(self.url):
            obstore.list_with_delimiter(cloud.connect(self.url, hasty=True))

    def make(self) -> None:
        """Nothing: folders are but names."""

    def vanish(self) -> None:
        """Nothing: an empty place is none."""

    def everywhere(self) -> str:
        return self.url

    def above(self) -> Bucket:
        return Bucket(self.url.rpartition("/")[0], whole=True)

    def within(self, name: str) -> Bucket:
        return Bucket(self._at(name))

    def zarr_store(self) -> Any:
        from zarr.storage import ObjectStore

        return ObjectStore(self.store, read_only=True)

    # For the lease and the ledger

    def remove_all(self, keys: Sequence[str]) -> None:
        """These objects, a thousand in a request."""
        import obstore

        with _writing(self.url):
            for start in range(0, len(keys), 1000):
                obstore.delete(self.store, list(keys[start : start + 1000]))

    def read_version(self, key: str) -> tuple[bytes, dict[str, str]]:
        """An object and what tells this version of it from others. Raises FileNotFoundError."""
        import obstore

        with answering(self._at(key)):
            result = obstore.get(self.store, key)
            return bytes(result.bytes()), _version(result.meta)

    def put_if(self, key: str, content: bytes, version: dict[str, str] | None) -> dict[str, str] | None:
        """Writes an object if it still has that version, None for not being there; its new version, None if refused."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: Any = "create" if version is None else version
        with answering(self._at(key)):
            try:
                return _version(obstore.put(self.store, key, content, mode=mode))
            except (AlreadyExistsError, PreconditionError):
                return None


@contextmanager
def _writing(url: str) -> Iterator[None]:
    """What stops a run: that no shard can be written."""
    try:
        with answering(url):
            yield
    except (cloud.StoreError, FileNotFoundError) as error:
        raise OutputError(f"cannot write {error}") from error


def _version(result: Any) -> dict[str, str]:
    return {name: result[name] for name in ("e_tag", "version") if result.get(name)}
