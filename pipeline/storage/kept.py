"""What is opened by number and used for a while, of which few are open at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """The things used last stay open, at most so many; each is closed when another needs its place, or at the end.

    An image that is only forgotten keeps its file and its chunks until the garbage collector comes by.
    """

    def __init__(self, most: int, open: Callable[[int], T], close: Callable[[T], None]) -> None:
        self._most, self._open, self._close = most, open, close
        self._things: OrderedDict[int, T] = OrderedDict()

    def __getitem__(self, number: int) -> T:
        if number not in self._things:
            while len(self._things) >= self._most:
                self._close(self._things.popitem(last=False)[1])
            self._things[number] = self._open(number)
        self._things.move_to_end(number)
        return self._things[number]

    def close(self) -> None:
        """Closes all; what is asked for afterwards is opened anew."""
        while self._things:
            self._close(self._things.popitem()[1])

    def __del__(self) -> None:
        self.close()
