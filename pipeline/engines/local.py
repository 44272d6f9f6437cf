"""The local engine: worker processes on this machine, to which only numbers travel.

    caller          run()                         worker process
    stages  ---->   backlog  --- unit --------->  work(unit)
            <----   (unit, result) <--- result -- reads, computes and writes by itself

A worker has one unit at a time and gets the next before its result is handed on, so no unit ever waits behind
another one while a worker is idle, and a worker's death is charged to exactly the unit that it had.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

from pipeline.engines.template import Forks, Template, Worker
from pipeline.engines.units import Outcome, Unit, Units, Work, describe

POLL = 0.5
"""Seconds after which workers that say nothing are looked at: a death shows at once unless a fork of it lives on."""


def run(
    start: Callable[[], Work],
    stages: Iterable[Iterable[Unit]],
    *,
    workers: int,
    retries: int = 2,
    own_process: bool = False,
    modules: Sequence[str] = (),
    template: Template | None = None,
    fatal: Callable[[BaseException], bool] = lambda error: False,
) -> Iterator[Outcome]:
    """Yields every unit of every stage once, with what `work` returned for it or the Failure that it met.

    `start` is called once in each worker and returns `work`. A stage begins when all units of the previous one were
    yielded; its units are asked for at most two a worker ahead. A unit whose worker died, or that raised anything but
    ValueError, is tried again up to `retries` times. Without `own_process` or `template`, one worker is the calling
    process. `modules` are what every worker imports: that is done once for all; importing them must start no thread.
    `template` has done so already; it ends with the run.

    Closing the iterator (or an exception, or Ctrl-C) ends the workers at once; they also end with this process.

    Raises what `start` raised; what a unit raised where `fatal` says so; RuntimeError where workers die at the start.
    """
    assert workers >= 1
    units = Units(retries, fatal)
    if workers == 1 and not own_process and template is None:
        yield from run_here(start, stages, units)
        return
    pool = Pool(Forks(start, modules, template), workers, units)
    orderly = False
    try:
        for stage in stages:
            yield from pool.run(iter(stage))
        orderly = True
    finally:
        pool.forks.close(pool.workers, orderly)


def run_here(start: Callable[[], Work], stages: Iterable[Iterable[Unit]], units: Units) -> Iterator[Outcome]:
    """The same in the calling process, one unit after another."""
    work: Work | None = None
    for stage in stages:
        source = iter(stage)
        while units.refill(source, 1):
            work = work or start()
            (unit,) = units.take()
            outcome: Outcome | None
            try:
                outcome = units.done(unit, work(unit))
            except Exception as error:
                outcome = units.raised(unit, error, *describe(error))
            if outcome is not None:
                yield outcome


class Pool:
    """Worker processes, started when there is work for them and replaced when they die."""

    def __init__(self, forks: Forks, workers: int, units: Units) -> None:
        self.forks, self.size, self.units = forks, workers, units
        self.workers: list[Worker] = []

    def run(self, source: Iterator[Unit]) -> Iterator[Outcome]:
        """One stage: yields until every unit has its result or Failure."""
        looked = time.monotonic()
        while self.units.refill(source, self.size) or any(worker.unit is not None for worker in self.workers):
            self.hire()
            self.hand_out()
            heard = wait([worker.connection for worker in self.workers], POLL)
            look = time.monotonic() - looked > POLL
            looked = time.monotonic() if look else looked
            for worker in list(self.workers):
                if worker.connection not in heard and not (look and worker.ended()):
                    continue
                message = worker.receive()
                outcome = self.bury(worker) if message is None else self.listen(worker, *message)
                self.hand_out()
                if outcome is not None:
                    yield outcome

    def hire(self) -> None:
        """Starts workers while there are units that no worker is free or about to be free for."""
        free = sum(worker.unit is None for worker in self.workers)
        for _ in range(min(self.size - len(self.workers), len(self.units.waiting) - free)):
            number = min(set(range(self.size)) - {worker.number for worker in self.workers})
            self.workers.append(self.forks.worker(number))

    def hand_out(self) -> None:
        for worker in self.workers:
            if self.units.waiting and worker.ready and worker.unit is None:
                worker.give(*self.units.take())

    def listen(self, worker: Worker, kind: str, content: Any) -> Outcome | None:
        """What a worker's message means for the caller, if anything yet."""
        if kind == "ready":
            worker.ready, self.units.deaths_at_start = True, 0
            return None
        if kind == "broken":
            raise pickle.loads(content[2])
        unit, worker.unit = worker.unit, None
        assert unit is not None
        if kind == "done":
            return self.units.done(unit, pickle.loads(content))
        name, text, packed = content
        return self.units.raised(unit, pickle.loads(packed), name, text)

    def bury(self, worker: Worker) -> Outcome | None:
        """Lets go of a dead worker and charges the unit that it had."""
        self.workers.remove(worker)
        cause = worker.cause_of_death()
        if not worker.ready and self.units.died_at_start(cause, any(other.ready for other in self.workers)):
            self.size -= 1  # the machine carries fewer workers than were asked for
        return None if worker.unit is None else self.units.died([worker.unit], cause)
