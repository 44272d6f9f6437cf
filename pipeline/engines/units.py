"""The units of a run on their way: what every engine counts in the same manner, whatever carries them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

Unit = int | tuple[int, ...]
Work = Callable[[Unit], Any]

THREADS = [f"{library}_NUM_THREADS" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")] + ["VECLIB_MAXIMUM_THREADS"]
"""Environment variables that hold a worker's libraries to one thread."""


class Failure(NamedTuple):
    """Why a unit has no result."""

    message: str
    """One line."""
    error: str
    """Class name of the exception; empty where the worker died."""
    died: bool
    """True where the unit's worker died each time that it was tried."""


Outcome = tuple[Unit, Any | Failure]


def describe(error: BaseException) -> tuple[str, str]:
    """(class name, text in one line) of an exception."""
    name = type(error).__name__
    return name, " ".join(str(error).split()) or name


class Units:
    """Asked for shortly before they are needed, tried again where they fail, and each of them ended once."""

    def __init__(self, retries: int, fatal: Callable[[BaseException], bool]) -> None:
        assert retries >= 0
        self.retries, self.fatal = retries, fatal
        self.waiting: deque[Unit] = deque()
        self.tried: Counter[Unit] = Counter()
        """How often a unit that has not ended was tried in vain."""
        self.deaths_at_start = 0
        """Of workers, one after another, before any of them was ready."""

    def refill(self, source: Iterator[Unit], ahead: int) -> bool:
        """Asks for units until `ahead` of them wait; whether any do."""
        while len(self.waiting) < ahead:
            unit = next(source, None)
            if unit is None:
                break
            self.waiting.append(unit)
        return bool(self.waiting)

    def suspect(self) -> bool:
        """Whether the next unit was tried before, and may be what its worker died of."""
        return bool(self.waiting) and self.tried[self.waiting[0]] > 0

    def take(self, most: int = 1) -> list[Unit]:
        """The next units, at most so many; one that was tried before goes alone, so that its end is its own."""
        taken = [self.waiting.popleft()]
        while len(taken) < most and self.waiting and not self.tried[taken[0]] and not self.tried[self.waiting[0]]:
            taken.append(self.waiting.popleft())
        return taken

    def give_back(self, units: Sequence[Unit]) -> None:
        """Units that were taken and not begun, or lost by nobody's fault: they are next, and not charged."""
        self.waiting.extendleft(reversed(units))

    def done(self, unit: Unit, result: Any) -> Outcome:
        self.tried.pop(unit, None)
        return unit, result

    def raised(self, unit: Unit, error: BaseException, name: str, text: str) -> Outcome | None:
        """The unit raised: the error itself where it is fatal, an outcome where it is final, else None for later."""
        if self.fatal(error):
            raise error
        failure = Failure(text, name, died=False)
        return self.done(unit, failure) if isinstance(error, ValueError) else self._again(unit, failure)

    def died(self, units: Sequence[Unit], cause: str) -> Outcome | None:
        """The worker died on one of the units. Which one is not known where they are several: each goes alone then."""
        if len(units) == 1:
            times = self.tried[units[0]] + 1
            return self._again(units[0], Failure(f"its worker died, {times} times ({cause})", "", died=True))
        self.tried.update(units)
        self.waiting.extend(units)
        return None

    def died_at_start(self, cause: str, others: bool) -> bool:
        """A worker died before it was ready: whether there are to be fewer. `others`: some worker is ready.

        Raises RuntimeError where too many do, and no worker is left that could go on.
        """
        self.deaths_at_start += 1
        if self.deaths_at_start <= self.retries:
            return False
        if not others:
            raise RuntimeError(f"workers die at the start, {self.deaths_at_start} times in a row ({cause})")
        return True

    def _again(self, unit: Unit, failure: Failure) -> Outcome | None:
        """Puts the unit behind those that wait, unless it was tried often enough."""
        self.tried[unit] += 1
        if self.tried[unit] > self.retries:
            return self.done(unit, failure)
        self.waiting.append(unit)
        return None
