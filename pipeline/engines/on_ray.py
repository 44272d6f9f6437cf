"""The Ray engine: actors anywhere in a cluster, to which only numbers travel.

    driver          run()                          actor
    stages  ---->   waiting  --- [unit, ...] --->  work(unit) for each
            <----   (unit, result) <--- results -- reads, computes and writes by itself

Where units are small, a call carries as many as take about a second, and a second call waits behind the one that
runs, so the driver's delay costs nothing. A unit that was tried before has an actor to itself, so that its end is its
own. An actor lives once: a dead one is replaced by a new one, wherever Ray finds
room, and each unit that it had is either done again by another or, where it killed one too often, set aside.
"""

from __future__ import annotations

import gc
import math
import os
import pickle
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from uuid import uuid4

import cloudpickle
import ray
from ray.exceptions import RayActorError, RayError

from pipeline.engines.ray_cluster import connected, examine, no_room, preflight, view
from pipeline.engines.units import THREADS, Outcome, Unit, Units, Work
from pipeline.engines.worker_process import answer, pack_error

CALL = 1.0
"""Seconds that a call should take: far more than it costs, and little to do again."""
LARGEST = 256
"""Units in a call at most, which bounds what is asked for ahead and what the driver holds."""
LOOK = 2.0
"""Seconds between two looks at the cluster, and for which nothing need be heard from any worker."""
MORE = 8
"""Workers that a small cluster with an autoscaler is asked for beyond those that it holds."""
NODE_DIED = "its node died"
CAUSES = {
    "running low on memory": "its node ran out of memory",
    "its node has died": NODE_DIED,
    "connection error code": "its process was killed or crashed",
}
"""What a part of Ray's page on a death means."""


def run(
    start: Callable[[], Work],
    stages: Iterable[Iterable[Unit]],
    *,
    workers: int | None,
    here: int = 1,
    retries: int = 2,
    fatal: Callable[[BaseException], bool] = lambda error: False,
    name: str = "pipeline",
    cpus: float = 1,
    gpus: float = 0,
    address: str | None = None,
    check: Callable[[], str | None] | None = None,
) -> Iterator[Outcome]:
    """Yields every unit of every stage once, with what `work` returned for it or the Failure that it met.

    As in the local engine: `start` is called once in each worker, a stage begins when all units of the previous one
    were yielded, a unit whose worker died or that raised anything but ValueError is tried again `retries` times.

    workers: actors of `cpus` and `gpus` each; None is as many as the cluster holds. They work as soon as the first has
    found room, and others join as nodes do. Where no cluster is there, one of `workers`, or `here`, is started and
    stopped afterwards. `check` runs once on each other node and returns what is wrong there, if anything.

    Raises ValueError where no cluster answers, where it can never hold a worker, or where `check` objects; what
    `start` raised; what a unit raised where `fatal` says so; RuntimeError where workers die at the start.
    """
    units = Units(retries, fatal)
    with connected(address, (workers or here) * cpus):
        crew = Crew(units, start, workers, {"CPU": cpus, "GPU": gpus}, name, check)
        try:
            for stage in stages:
                yield from crew.run(iter(stage))
        finally:
            crew.dismiss()


class Hand:
    """What an actor is: it takes `start` once and does units one after another."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name

    def begin(self, start: bytes, check: bytes | None, examined: set[str]) -> tuple[str, bytes]:
        """(node, packed answer): calls `start`, after `check` on a node that was not examined yet."""
        os.environ.update(dict.fromkeys(THREADS, "1"))  # before whatever comes with `start` reads it
        gc.set_threshold(100_000)  # as a local worker does: torch's objects are there to stay
        node = ray.get_runtime_context().get_node_id()
        try:
            if check is not None and node not in examined and (objection := examine(check)):
                raise ValueError(objection)
            self.work = cloudpickle.loads(start)()
        except BaseException as error:
            return node, pack_error("broken", error)
        return node, pickle.dumps(("ready", None))

    def do(self, units: list[Unit]) -> tuple[float, list[bytes]]:
        """(seconds that it took, packed answer for each unit)."""
        began = time.monotonic()
        answers = [answer(self.work, unit) for unit in units]
        return time.monotonic() - began, answers


class Worker:
    """One actor, seen from the driver, with the calls that it was sent, the oldest first."""

    def __init__(self, actor: Any, *begin: Any) -> None:
        self.actor = actor
        self.ready = False
        self.calls: deque[tuple[Any, list[Unit]]] = deque([(actor.begin.remote(*begin), [])])

    @property
    def has(self) -> list[Unit]:
        """Units that it was sent and has not answered for."""
        return [unit for _, units in self.calls for unit in units]

    def give(self, units: list[Unit]) -> None:
        self.calls.append((self.actor.do.remote(units), units))


class Crew:
    """The actors of a run: hired while units wait for one, replaced when they die."""

    def __init__(
        self,
        units: Units,
        start: Callable[[], Work],
        workers: int | None,
        needs: dict[str, float],
        name: str,
        check: Callable[[], str | None] | None,
    ) -> None:
        self.units, self.asked, self.needs, self.name = units, workers, needs, name
        self.workers: list[Worker] = []
        self.hired = 0
        self.limit = sys.maxsize
        """What the cluster was seen not to go beyond."""
        self.look()
        self.check = None if check is None else cloudpickle.dumps(check)
        self.examined = preflight(self.check, needs) if self.check else set[str]()
        self.start = ray.put(cloudpickle.dumps(start))
        self.hand = ray.remote(num_cpus=needs["CPU"], num_gpus=needs["GPU"], max_restarts=0)(Hand)
        self.namespace = f"pipeline-{uuid4().hex}"
        self.batch, self.depth = 1, 1

    def run(self, source: Iterator[Unit]) -> Iterator[Outcome]:
        """One stage: yields until every unit has its result or Failure."""
        while self.units.refill(source, self.size * self.batch) or any(w.ready and w.calls for w in self.workers):
            self.hire()
            self.hand_out()
            for worker in self.heard():
                outcomes = self.listen(worker)
                self.hand_out()
                yield from outcomes

    def look(self) -> None:
        """Sees how many workers there can be now: as many as asked for, else what the cluster holds and may grow to."""
        self.looked = time.monotonic()
        seen = view(self.needs)
        pending = [worker for worker in self.workers if not worker.ready]
        hopeless = seen.refused >= len(pending) > 0 and not seen.coming if seen.grows else True
        if not seen.held and hopeless and len(pending) == self.hired:
            raise no_room(self.needs)
        if seen.refused:
            self.limit = max(seen.held, len(self.workers) - seen.refused, 1)
        more = max(seen.held, MORE) if seen.grows else 0
        self.size = min(self.limit, self.asked or max(seen.held + more, len(self.workers)))
        for worker in pending[: max(0, len(self.workers) - self.size)]:
            self.workers.remove(worker)
            ray.kill(worker.actor)

    def hire(self) -> None:
        """Starts actors while there are units that no actor is free or about to be free for."""
        if time.monotonic() - self.looked > LOOK:
            self.look()
        free = sum(not (worker.ready and worker.calls) for worker in self.workers)
        for _ in range(min(self.size - len(self.workers), len(self.units.waiting) - free)):
            self.hired += 1
            name = f"{self.name} worker {self.hired}"
            actor = self.hand.options(name=name, namespace=self.namespace).remote(name)
            self.workers.append(Worker(actor, self.start, self.check, self.examined))

    def hand_out(self) -> None:
        """Gives each actor a call, and then each a second one; less in each where not enough wait for all."""
        ready = [worker for worker in self.workers if worker.ready]
        for depth in range(1, self.depth + 1):
            for worker in ready:
                if self.units.waiting and len(worker.calls) < depth and not self.must_wait(worker):
                    share = math.ceil(len(self.units.waiting) / len(ready))
                    worker.give(self.units.take(min(self.batch, share)))

    def must_wait(self, worker: Worker) -> bool:
        """Whether the next unit and those that the actor has must not share it: one of them was tried before."""
        return bool(worker.calls) and (self.units.suspect() or any(self.units.tried[unit] for unit in worker.has))

    def heard(self) -> list[Worker]:
        """Actors whose oldest call has ended; some time may pass without any."""
        oldest = {worker.calls[0][0]: worker for worker in self.workers if worker.calls}
        if not oldest:  # the last node is gone, and none has come yet
            time.sleep(LOOK)
            return []
        ended, _ = ray.wait(list(oldest), num_returns=1, timeout=LOOK)
        if ended:
            ended, _ = ray.wait(list(oldest), num_returns=len(oldest), timeout=0)
        return [oldest[reference] for reference in ended]

    def listen(self, worker: Worker) -> list[Outcome]:
        """What the end of an actor's oldest call means for the caller."""
        reference, units = worker.calls[0]
        try:
            result = ray.get(reference)
        except RayError as error:
            return self.bury(worker, error)
        worker.calls.popleft()
        if not worker.ready:
            node, packed = result
            kind, content = pickle.loads(packed)
            if kind == "broken":
                raise pickle.loads(content[2])
            self.examined.add(node)
            worker.ready, self.units.deaths_at_start = True, 0
            return []
        seconds, answers = result
        self.pace(seconds / len(units))
        outcomes = [self.outcome(unit, *pickle.loads(packed)) for unit, packed in zip(units, answers, strict=True)]
        return [outcome for outcome in outcomes if outcome is not None]

    def outcome(self, unit: Unit, kind: str, content: Any) -> Outcome | None:
        if kind == "done":
            return self.units.done(unit, pickle.loads(content))
        name, text, packed = content
        return self.units.raised(unit, pickle.loads(packed), name, text)

    def pace(self, seconds: float) -> None:
        """Fits the next calls to what a unit took."""
        self.batch = min(2 * self.batch, LARGEST, max(1, int(CALL / max(seconds, 1e-6))))
        self.depth = 1 if seconds > CALL / 2 else 2

    def bury(self, worker: Worker, error: RayError) -> list[Outcome]:
        """Lets go of a dead actor and charges what it had, unless its node was drained.

        All that it had: a call may have ended, and its answer have died with the actor that went on to the next.
        """
        self.workers.remove(worker)
        ray.kill(worker.actor)
        cause = cause_of_death(error)
        if isinstance(error, RayActorError) and error.preempted:
            self.units.give_back(worker.has)
            return []
        if not worker.ready:
            others = any(other.ready for other in self.workers)
            if cause != NODE_DIED and self.units.died_at_start(cause, others):
                self.limit = self.size = len(self.workers)  # the cluster carries no more
            return []
        outcome = self.units.died(worker.has, cause)
        return [] if outcome is None else [outcome]

    def dismiss(self) -> None:
        """Ends all actors at once, whatever they do."""
        for worker in self.workers:
            ray.kill(worker.actor)
        self.workers.clear()


def cause_of_death(error: RayError) -> str:
    """Ray's page on the death of an actor, in a few words."""
    text = " ".join(str(error).split())
    for sign, cause in CAUSES.items():
        if sign in text:
            return cause
    return text
