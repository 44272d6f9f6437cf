"""A folder of an object store that lives in memory: what lease and ledger ask of one, and no more."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence


class MemoryObjects:
    def __init__(self) -> None:
        self.held: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.silent = False
        self.lock = threading.Lock()

    def read(self, key: str) -> bytes:
        return self.read_version(key)[0]

    def read_version(self, key: str) -> tuple[bytes, dict[str, str]]:
        self._answer()
        try:
            return self.held[key]
        except KeyError:
            raise FileNotFoundError(key) from None

    def put_if(self, key: str, content: bytes, version: dict[str, str] | None) -> dict[str, str] | None:
        self._answer()
        with self.lock:
            if self.held.get(key, (b"", None))[1] != version:
                return None
            return self.write(key, content)

    def write(self, key: str, content: bytes) -> dict[str, str]:
        self.held[key] = content, {"e_tag": uuid.uuid4().hex}
        return self.held[key][1]

    def remove(self, key: str) -> None:
        self._answer()
        self.held.pop(key, None)

    def remove_all(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.remove(key)

    def names(self, folder: str = "") -> list[str]:
        self._answer()
        return sorted(self.held)

    def _answer(self) -> None:
        if self.silent:
            raise ValueError("s3://b does not answer")
