"""A bounded memory of decoded chunks, so that a halo is not decoded twice."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from pipeline.storage.source import Index


class ChunkCache:
    """The chunks used last, at most `limit` bytes of them; those that no neighbour needs are forgotten first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._wanted: OrderedDict[Index, np.ndarray] = OrderedDict()
        self._spent: OrderedDict[Index, np.ndarray] = OrderedDict()

    def get(self, at: Index) -> np.ndarray | None:
        chunk = self._wanted.get(at)
        if chunk is not None:
            self._wanted.move_to_end(at)
            return chunk
        chunk = self._spent.pop(at, None)
        if chunk is not None:
            self._wanted[at] = chunk
        return chunk

    def put(self, at: Index, chunk: np.ndarray) -> None:
        """Keeps the chunk, unless it is larger than the whole cache."""
        if chunk.nbytes > self.limit or at in self._wanted or at in self._spent:
            return
        self._wanted[at] = chunk
        self.size += chunk.nbytes
        self._shrink()

    def spend(self, at: Index) -> None:
        """Says that no neighbouring read is likely to need the chunk."""
        chunk = self._wanted.pop(at, None)
        if chunk is not None:
            self._spent[at] = chunk

    def resize(self, limit: int) -> None:
        self.limit = limit
        self._shrink()

    def clear(self) -> None:
        self._wanted.clear()
        self._spent.clear()
        self.size = 0

    def _shrink(self) -> None:
        while self.size > self.limit:
            _, chunk = (self._spent or self._wanted).popitem(last=False)
            self.size -= chunk.nbytes
