"""The Dask engine: the workers of a `distributed` cluster, to which only numbers travel.

    caller          run()                         Dask worker
    stages  ---->   waiting  --- unit --------->  work(unit)
            <----   (unit, result) <--- result -- reads, computes and writes by itself

Each unit is a task for one worker that is named, so that a worker's death is charged here, to what that worker had,
and Dask never hands a unit on by itself. A worker gets its next unit when the result of the last one is here, some
milliseconds later: a result that still lies with a worker when the next unit kills it would be lost too.
"""

from __future__ import annotations

import pickle
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from typing import Any
from uuid import uuid4

import cloudpickle
from distributed import Future, KilledWorker

from pipeline.engines.dask_cluster import Cluster, connected
from pipeline.engines.units import Outcome, Unit, Units, Work
from pipeline.engines.worker_process import answer, pack_error

POLL = 0.5
"""Seconds between two looks at which workers live."""
SOON = 0.05
"""The same while workers are starting."""
PATIENCE = 120.0
"""Seconds that a cluster may be without any worker."""


def run(
    start: Callable[[], Work],
    stages: Iterable[Iterable[Unit]],
    *,
    workers: int,
    retries: int = 2,
    modules: Sequence[str] = (),
    fatal: Callable[[BaseException], bool] = lambda error: False,
    scheduler: str | None = None,
) -> Iterator[Outcome]:
    """Yields every unit of every stage once, with what `work` returned for it or the Failure that it met.

    As in the local engine: `start` is called once in each worker process, a stage begins when all units of the
    previous one were yielded, a unit whose worker died or that raised anything but ValueError is tried again
    `retries` times. Processes that are started here import `modules` once for all.

    Runs on all workers of the cluster at the address `scheduler`, else of the one to which the caller has a client,
    else on `workers` processes that are started and ended here. A worker does one unit at a time, however many
    threads it has.

    Raises ValueError where no scheduler answers; what `start` raised; what a unit raised where `fatal` says so;
    RuntimeError where workers die at the start, or the cluster has none.
    """
    units = Units(retries, fatal)
    with connected(scheduler, workers, modules) as cluster:
        crew = Crew(units, start, cluster)
        try:
            for stage in stages:
                yield from crew.run(iter(stage))
        finally:
            crew.dismiss()


class Hand:
    """One worker, seen from here, with the unit that it has."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.ready = False
        self.unit: Unit | None = None


class Crew:
    """The workers of a run."""

    def __init__(self, units: Units, start: Callable[[], Work], cluster: Cluster) -> None:
        self.units, self.cluster, self.client = units, cluster, cluster.client
        self.hands: dict[str, Hand] = {}
        self.sent: dict[str, tuple[Future, Hand, Unit | None]] = {}
        """Tasks by their keys; without a unit, that which calls `start`."""
        self.heard: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self.name, self.numbers = uuid4().hex[:12], count()
        self.looked = self.manned = time.monotonic()
        self.poll = 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of large graphs: the network is sent once
            self.start = self.client.submit(bytes, cloudpickle.dumps(start), key=f"start-{self.name}", pure=False)

    def run(self, source: Iterator[Unit]) -> Iterator[Outcome]:
        """One stage: yields until every unit has its result or Failure."""
        while self.units.refill(source, self.ahead()) or self.under_way():
            outcomes = self.look()
            self.hand_out()
            with suppress(queue.Empty):
                outcomes.append(self.listen(self.heard.get(timeout=self.poll)))
            self.hand_out()
            yield from (outcome for outcome in outcomes if outcome is not None)

    def under_way(self) -> int:
        """Units that workers have."""
        return sum(hand.unit is not None for hand in self.hands.values())

    def ahead(self) -> int:
        """Units that may wait here: one for each worker that is there or will be."""
        return max(self.cluster.size, len(self.hands))

    def look(self) -> list[Outcome | None]:
        """Greets workers that have come and buries those that died; now and then only, since it asks the scheduler."""
        if time.monotonic() - self.looked < self.poll:
            return []
        more = self.cluster.hire(len(self.units.waiting) + self.under_way())
        addresses = self.cluster.addresses()
        outcomes = [self.bury(hand) for hand in list(self.hands.values()) if hand.address not in addresses]
        for address in sorted(addresses - self.hands.keys()):
            hand = self.hands[address] = Hand(address)
            self.send(hand, None, begin, self.name, self.start)
        self.looked = time.monotonic()
        if addresses:
            self.manned = self.looked
        elif self.looked - self.manned > PATIENCE:
            raise RuntimeError(f"the Dask cluster at {self.client.scheduler.address} has no workers")
        self.poll = SOON if more else POLL
        return outcomes

    def send(self, hand: Hand, unit: Unit | None, function: Callable[..., bytes], *arguments: Any) -> None:
        key = f"{'start' if unit is None else 'unit'}-{self.name}-{next(self.numbers)}"
        future = self.client.submit(function, *arguments, key=key, workers=[hand.address], pure=False)
        self.sent[key] = future, hand, unit
        future.add_done_callback(self.heard.put)

    def hand_out(self) -> None:
        for hand in self.hands.values():
            if self.units.waiting and hand.ready and hand.unit is None:
                (hand.unit,) = self.units.take()
                self.send(hand, hand.unit, do, self.name, hand.unit)

    def listen(self, future: Future) -> Outcome | None:
        """What the end of a task means for the caller, if anything."""
        if future.key not in self.sent:
            return None  # of a worker that was buried
        _, hand, unit = self.sent[future.key]
        try:
            if future.status == "finished":
                kind, content = pickle.loads(future.result(timeout=POLL))
            elif future.status == "error" and not isinstance(future.exception(), KilledWorker):
                kind, content = pickle.loads(pack_error("broken" if unit is None else "error", future.exception()))
            else:
                return self.bury(hand)
        except TimeoutError:  # the result lies with a worker that does not answer: dead, or slow
            if hand.address not in self.cluster.addresses():
                return self.bury(hand)
            self.heard.put(future)
            return None
        del self.sent[future.key]
        if kind == "ready":
            hand.ready, self.units.deaths_at_start = True, 0
            return None
        if kind == "broken":
            raise pickle.loads(content[2])
        assert unit is not None
        hand.unit = None
        if kind == "done":
            return self.units.done(unit, pickle.loads(content))
        name, text, packed = content
        return self.units.raised(unit, pickle.loads(packed), name, text)

    def bury(self, hand: Hand) -> Outcome | None:
        """Lets go of a dead worker and charges the unit that it had."""
        del self.hands[hand.address]
        lost = [key for key, (_, whose, _) in self.sent.items() if whose is hand]
        self.client.cancel([self.sent.pop(key)[0] for key in lost])
        cause = self.cluster.cause_of_death(hand.address)
        if not hand.ready and self.units.died_at_start(cause, any(other.ready for other in self.hands.values())):
            self.cluster.shrink()  # the machine carries fewer workers than were asked for
        return None if hand.unit is None else self.units.died([hand.unit], cause)

    def dismiss(self) -> None:
        """Takes back what was sent, and lets workers forget the run."""
        self.client.cancel([future for future, _, _ in self.sent.values()])
        if self.cluster.stays:
            self.client.run(forget, self.name, workers=list(self.hands), on_error="ignore")


# In the worker -------------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_at_work: dict[str, tuple[ThreadPoolExecutor, Work]] = {}
"""By the run's name, `work` and the one thread that calls it, as torch's number of threads is of a thread, and `work`
need not be safe for several."""


def begin(run: str, start: bytes) -> bytes:
    """Calls `start`, once a process."""
    with _lock:
        if run not in _at_work:
            thread = ThreadPoolExecutor(1)
            try:
                _at_work[run] = thread, thread.submit(cloudpickle.loads(start)).result()
            except BaseException as error:
                return pack_error("broken", error)
    return pickle.dumps(("ready", None))


def do(run: str, unit: Unit) -> bytes:
    thread, work = _at_work[run]
    return thread.submit(answer, work, unit).result()


def forget(run: str) -> None:
    with _lock:
        if run in _at_work:
            _at_work.pop(run)[0].shutdown(wait=False)
