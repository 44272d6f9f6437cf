"""The local engine: worker processes on this machine, to which only numbers travel.

    caller          run()                         worker process
    stages  ---->   backlog  --- unit --------->  work(unit)
            <----   (unit, result) <--- result -- reads, computes and writes by itself

A worker has one unit at a time and gets the next before its result is handed on, so no unit ever waits behind
another one while a worker is idle, and a worker's death is charged to exactly the unit that it had.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import cloudpickle

from pipeline.engines.units import THREADS, Outcome, Unit, Units, Work, describe

PROGRAM = Path(__file__).with_name("worker_process.py")
POLL = 0.5
"""Seconds after which workers that say nothing are looked at: a death shows at once unless a fork of it lives on."""
LEAVE = 10.0
"""Seconds that a worker without work may take to end."""
TERMINATE = 1.0
"""Seconds from SIGTERM to SIGKILL."""


def run(
    start: Callable[[], Work],
    stages: Iterable[Iterable[Unit]],
    *,
    workers: int,
    retries: int = 2,
    own_process: bool,
    fatal: Callable[[BaseException], bool] = lambda error: False,
) -> Iterator[Outcome]:
    """Yields every unit of every stage once, with what `work` returned for it or the Failure that it met.

    `start` is called once in each worker and returns `work`. A stage begins when all units of the previous one were
    yielded; its units are asked for at most two a worker ahead. A unit whose worker died, or that raised anything but
    ValueError, is tried again up to `retries` times. Without `own_process`, one worker is the calling process.

    Closing the iterator (or an exception, or Ctrl-C) ends the workers at once; they also end with this process.

    Raises what `start` raised; what a unit raised where `fatal` says so; RuntimeError where workers die at the start.
    """
    assert workers >= 1
    units = Units(retries, fatal)
    if workers == 1 and not own_process:
        yield from run_here(start, stages, units)
        return
    pool = Pool(start, workers, units)
    orderly = False
    try:
        for stage in stages:
            yield from pool.run(iter(stage))
        orderly = True
    finally:
        pool.close(orderly)


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


class Worker:
    """One worker process, seen from the parent."""

    def __init__(self, number: int, lifeline: int) -> None:
        here, there = socket.socketpair()
        with here, there:
            environment = os.environ | dict.fromkeys(THREADS, "1") | {"PIPELINE_WORKER": str(number)}
            command = [sys.executable, "-P", str(PROGRAM), str(os.getpid()), str(there.fileno()), str(lifeline)]
            # Blocked until the program ignores it: Ctrl-C during its start would print a traceback.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, env=environment, pass_fds=(there.fileno(), lifeline)
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self.connection = Connection(here.detach())
        self.number = number
        self.ready = False
        self.unit: Unit | None = None

    def send(self, message: bytes) -> None:
        """Sends; a worker that is gone is noticed when its answer is waited for."""
        with suppress(ConnectionError):
            self.connection.send_bytes(message)

    def give(self, unit: Unit) -> None:
        self.unit = unit
        self.send(pickle.dumps(unit))

    def receive(self) -> tuple[str, Any] | None:
        """Its next message, or None where it is dead."""
        try:
            if self.connection.poll():
                kind, content = pickle.loads(self.connection.recv_bytes())
                return kind, content
        except (EOFError, ConnectionError):
            pass
        return None

    def cause_of_death(self) -> str:
        """How the process ended, in words."""
        self.process.kill()
        code = self.process.wait()
        if code >= 0:
            return f"exit status {code}"
        return signal.Signals(-code).name + (", perhaps out of memory" if code == -signal.SIGKILL else "")


class Pool:
    """Worker processes, started when there is work for them and replaced when they die."""

    def __init__(self, start: Callable[[], Work], workers: int, units: Units) -> None:
        path = [os.path.abspath(entry) if entry == "" else entry for entry in sys.path]
        self.greeting = [pickle.dumps(path), cloudpickle.dumps(start)]
        self.size, self.units = workers, units
        self.workers: list[Worker] = []
        self.lifeline, self.hold = os.pipe()

    def run(self, source: Iterator[Unit]) -> Iterator[Outcome]:
        """One stage: yields until every unit has its result or Failure."""
        while self.units.refill(source, self.size) or any(worker.unit is not None for worker in self.workers):
            self.hire()
            self.hand_out()
            heard = wait([worker.connection for worker in self.workers], POLL)
            for worker in list(self.workers):
                if worker.connection not in heard and worker.process.poll() is None:
                    continue
                message = worker.receive()
                outcome = self.bury(worker) if message is None else self.listen(worker, *message)
                self.hand_out()
                if outcome is not None:
                    yield outcome

    def hire(self) -> None:
        """Starts workers while there are units that no worker is free or about to be free for."""
        free = sum(worker.unit is None for worker in self.workers)
        new = []
        for _ in range(min(self.size - len(self.workers), len(self.units.waiting) - free)):
            number = min(set(range(self.size)) - {worker.number for worker in self.workers})
            self.workers.append(Worker(number, self.lifeline))
            new.append(self.workers[-1])
        for worker in new:  # all are under way before the first is talked to
            for message in self.greeting:
                worker.send(message)

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
        worker.connection.close()
        cause = worker.cause_of_death()
        if not worker.ready and self.units.died_at_start(cause, any(other.ready for other in self.workers)):
            self.size -= 1  # the machine carries fewer workers than were asked for
        return None if worker.unit is None else self.units.died([worker.unit], cause)

    def close(self, orderly: bool) -> None:
        """Ends all workers."""
        end(self.workers, orderly)
        os.close(self.hold)
        os.close(self.lifeline)
        self.workers.clear()


def end(workers: Sequence[Worker], orderly: bool) -> None:
    """Ends those without work by themselves, the rest by SIGTERM and, a second later, SIGKILL."""
    for worker in workers:
        worker.send(b"") if orderly else worker.process.terminate()
    deadline = time.monotonic() + (LEAVE if orderly else TERMINATE)
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        worker.connection.close()
