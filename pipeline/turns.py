"""Images of a call in turn: each is begun shortly before its first tile is needed, and ended when its last is done.

    waiting  --- begin --->  open, of which there are few  --- end --->  a result
                             lock and ledger are held

So it makes no difference to memory and open files whether they are ten or ten thousand.
"""

from __future__ import annotations

import resource
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from pipeline import previewing
from pipeline.ledgers import Held
from pipeline.stitching.ledger import Ledger
from pipeline.storage.output import Output, open_output
from pipeline.storage.scratch import Scratch
from pipeline.tiling.plan import Plan
from pipeline.worker import Item

MOST = 256
"""Images that are open at a time, at most: enough for the workers of a cluster, whose images may be of one tile."""
FIRST = 16
"""Images that are begun before any worker is there."""
ENOUGH = 4096
"""Tiles of the open images, from which on no other is begun until all levels of these are done. So few images are
unfinished at a time, and the workers, of which each waits for others' last tiles once in so many, hardly ever wait."""
SHARE = 4
"""One image in this many files that the process may have open: lock and ledger are two, and others need some."""


@dataclass
class Result:
    """A finished output, or an unfinished one with the failures that are in its way."""

    path: str
    """As it was given."""
    place: str
    """The same path or URL, as it is valid in any working directory."""
    plan: Plan
    resumed: int = 0
    """Units that an earlier run had done."""
    failures: list[str] = field(default_factory=list)

    @property
    def array(self) -> Any:
        """The finest level, a zarr array."""
        return open_output(self.place).arrays[0]

    @property
    def dask(self) -> Any:
        """The finest level, a dask array whose chunks are the shards."""
        import dask.array as da

        return da.from_array(self.array, chunks=self.plan.layout.shards[0])


@dataclass
class Run:
    """One image on its way into one output."""

    output: Output
    plan: Plan
    ledger: Ledger
    lock: Held | None = None
    """Held where the ledger does not hold it itself."""
    copy: Scratch | None = None
    """Of the image, where workers read that."""
    resumed: int = 0
    """Units that were done when this run began."""
    failures: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.ledger.count == self.plan.units

    @property
    def settled(self) -> bool:
        """Finished, and no preview is left to draw."""
        return self.finished and not previewing.is_left(self.output)

    def missing(self, units: range) -> list[int]:
        return [unit for unit in units if not self.ledger.done(unit)]

    def items(self, number: int, level: int) -> Iterator[Item]:
        """What is missing of a level, of image `number`; an image of one tile is one item.

        Nothing where tiles failed, since shards would be built on what is not there.
        """
        if self.failures or level >= len(self.plan.stages):
            return
        if self.plan.tiles == 1:
            missing = self.missing(range(self.plan.units))
            if level == 0 and missing:
                yield number, missing[0], self.plan.units
            return
        for unit in self.missing(self.plan.stages[level]):
            yield number, unit, unit + 1

    def close(self) -> None:
        """Lets go of ledger, lock and copy, in this order, also where one of them raises."""
        with ExitStack() as stack:
            if self.copy is not None:
                stack.callback(self.copy.remove)
            if self.lock is not None:
                stack.callback(self.lock.release)
            stack.callback(self.ledger.close)

    def check(self) -> None:
        """Forget units of which a shard is missing or of another length, so that they are done again."""
        lost, lengths = [], self.output.lengths()
        for unit, records in self.ledger:
            level, region = self.plan.region_of(unit)
            if self.output.check(level, region, records, lengths):
                lost.append(unit)
        self.ledger.forget(lost)
        self.resumed = self.ledger.count


class Turns:
    """The images of a call, by number."""

    def __init__(self, count: int, begin: Callable[[int], Run], most: int | None = None) -> None:
        """`begin` makes the run of an image; ValueError and OSError are that image's alone."""
        self.waiting, self._begin, self.most = deque(range(count)), begin, most or most_open()
        self.open: dict[int, Run] = {}
        self.results: dict[int, Result] = {}
        self.lost: dict[int, Exception] = {}
        """Why an image could not be begun."""
        self.begun = self.tiles = self.done = 0
        """Images that were begun, their tiles, and those of them that are done."""

    @property
    def expected(self) -> int:
        """Tiles of all images, if those to come have as many as those that were begun."""
        return self.tiles + len(self.waiting) * self.tiles // max(1, self.begun)

    def begin(self, most: int) -> Iterator[int]:
        """Begins images until `most` are open, or tiles enough; the numbers of those on which something is to do."""
        while self.waiting and len(self.open) < most and sum(run.plan.tiles for run in self.open.values()) < ENOUGH:
            number = self.waiting.popleft()
            try:
                run = self._begin(number)
            except (ValueError, OSError) as error:
                self.lost[number] = error
                continue
            self.open[number] = run
            self.begun += 1
            self.tiles += run.plan.tiles
            self.done += run.plan.tiles - len(run.missing(range(run.plan.tiles)))
            if run.settled:
                self.end(number)
            else:
                yield number

    def look_ahead(self) -> None:
        """Begins the first images: what workers need is told by these, and none is open where nothing is left to do."""
        for _ in self.begin(min(FIRST, self.most)):
            pass

    def end(self, number: int) -> None:
        """Lets go of all that the run of an image holds."""
        run = self.open.pop(number)
        run.close()
        place = run.output.location
        self.results[number] = Result(str(place), place.everywhere(), run.plan, run.resumed, run.failures)

    def close(self) -> None:
        """Ends what is open, also where not all is done."""
        with ExitStack() as stack:  # so that one that cannot be ended is in no other's way
            for number in list(self.open):
                stack.callback(self.end, number)

    def stages(self) -> Iterator[Iterator[Item]]:
        """Tiles of images, until enough are open; then their pyramids level by level, then previews; then of others.

        Images of one tile are ended meanwhile by who hears that they are done, so they are seldom many.
        """
        while self.waiting or self.open:
            yield self._tiles()
            for level in range(1, max((len(run.plan.stages) for run in self.open.values()), default=0)):
                yield (item for number in list(self.open) for item in self.open[number].items(number, level))
            yield ((number, run.plan.units, run.plan.units) for number, run in list(self.open.items())
                   if run.finished and previewing.is_left(run.output))  # fmt: skip
            self.close()

    def _tiles(self) -> Iterator[Item]:
        for number in list(self.open):
            yield from self.open[number].items(number, 0)
        for number in self.begin(self.most):
            yield from self.open[number].items(number, 0)


def most_open() -> int:
    """Images that this process may have open at a time."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if files == resource.RLIM_INFINITY else max(1, min(MOST, files // SHARE))
