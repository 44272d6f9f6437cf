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
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle

Unit = int | tuple[int, ...]
Work = Callable[[Unit], Any]

THREADS = [f"{library}_NUM_THREADS" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")] + ["VECLIB_MAXIMUM_THREADS"]
PROGRAM = Path(__file__).with_name("worker_process.py")
POLL = 0.5
"""Seconds after which workers that say nothing are looked at: a death shows at once unless a fork of it lives on."""
LEAVE = 10.0
"""Seconds that a worker without work may take to end."""
TERMINATE = 1.0
"""Seconds from SIGTERM to SIGKILL."""


class Failure(NamedTuple):
    """Why a unit has no result."""

    message: str
    """One line."""
    error: str
    """Class name of the exception; empty where the worker died."""
    died: bool
    """True where the unit's worker died each time that it was tried."""


def run(
    start: Callable[[], Work],
    stages: Iterable[Iterable[Unit]],
    *,
    workers: int,
    retries: int = 2,
    own_process: bool,
    fatal: Callable[[BaseException], bool] = lambda error: False,
) -> Iterator[tuple[Unit, Any | Failure]]:
    """Yields every unit of every stage once, with what `work` returned for it or the Failure that it met.

    `start` is called once in each worker and returns `work`. A stage begins when all units of the previous one were
    yielded; its units are asked for at most two a worker ahead. A unit whose worker died, or that raised anything but
    ValueError, is tried again up to `retries` times. Without `own_process`, one worker is the calling process.

    Closing the iterator (or an exception, or Ctrl-C) ends the workers at once; they also end with this process.

    Raises what `start` raised; what a unit raised where `fatal` says so; RuntimeError where workers die at the start.
    """
    assert workers >= 1 and retries >= 0
    if workers == 1 and not own_process:
        yield from run_here(start, stages, retries, fatal)
        return
    pool = Pool(start, workers, retries, fatal)
    orderly = False
    try:
        for stage in stages:
            yield from pool.run(iter(stage))
        orderly = True
    finally:
        pool.close(orderly)


def run_here(
    start: Callable[[], Work],
    stages: Iterable[Iterable[Unit]],
    retries: int,
    fatal: Callable[[BaseException], bool],
) -> Iterator[tuple[Unit, Any | Failure]]:
    """The same in the calling process, one unit after another."""
    work: Work | None = None
    for stage in stages:
        for unit in stage:
            work = work or start()
            for attempt in range(retries + 1):
                try:
                    result = work(unit)
                    break
                except Exception as error:
                    if fatal(error):
                        raise
                    name = type(error).__name__
                    result = Failure(" ".join(str(error).split()) or name, name, died=False)
                    if isinstance(error, ValueError) or attempt == retries:
                        break
            yield unit, result


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

    def __init__(
        self, start: Callable[[], Work], workers: int, retries: int, fatal: Callable[[BaseException], bool]
    ) -> None:
        path = [os.path.abspath(entry) if entry == "" else entry for entry in sys.path]
        self.greeting = [pickle.dumps(path), cloudpickle.dumps(start)]
        self.size, self.retries, self.fatal = workers, retries, fatal
        self.workers: list[Worker] = []
        self.backlog: deque[Unit] = deque()
        self.failed: Counter[Unit] = Counter()
        self.deaths_at_start = 0
        self.lifeline, self.hold = os.pipe()

    def run(self, units: Iterator[Unit]) -> Iterator[tuple[Unit, Any | Failure]]:
        """One stage: yields until every unit has its result or Failure."""
        while self.refill(units):
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

    def refill(self, units: Iterator[Unit]) -> bool:
        """Asks for units until there is one for each worker; False where nothing is left to do or to wait for."""
        while len(self.backlog) < self.size:
            unit = next(units, None)
            if unit is None:
                break
            self.backlog.append(unit)
        return bool(self.backlog) or any(worker.unit is not None for worker in self.workers)

    def hire(self) -> None:
        """Starts workers while there are units that no worker is free or about to be free for."""
        free = sum(worker.unit is None for worker in self.workers)
        new = []
        for _ in range(min(self.size - len(self.workers), len(self.backlog) - free)):
            number = min(set(range(self.size)) - {worker.number for worker in self.workers})
            self.workers.append(Worker(number, self.lifeline))
            new.append(self.workers[-1])
        for worker in new:  # all are under way before the first is talked to
            for message in self.greeting:
                worker.send(message)

    def hand_out(self) -> None:
        for worker in self.workers:
            if self.backlog and worker.ready and worker.unit is None:
                worker.give(self.backlog.popleft())

    def listen(self, worker: Worker, kind: str, content: Any) -> tuple[Unit, Any | Failure] | None:
        """What a worker's message means for the caller, if anything yet."""
        if kind == "ready":
            worker.ready, self.deaths_at_start = True, 0
            return None
        if kind == "broken":
            raise pickle.loads(content[2])
        unit, worker.unit = worker.unit, None
        assert unit is not None
        if kind == "done":
            self.failed.pop(unit, None)
            return unit, pickle.loads(content)
        name, text, packed = content
        error = pickle.loads(packed)
        if self.fatal(error):
            raise error
        if isinstance(error, ValueError):
            return unit, Failure(text, name, died=False)
        return self.again(unit, Failure(text, name, died=False))

    def again(self, unit: Unit, failure: Failure) -> tuple[Unit, Failure] | None:
        """Puts the unit behind those that wait, unless it was tried often enough."""
        self.failed[unit] += 1
        if self.failed[unit] > self.retries:
            del self.failed[unit]
            return unit, failure
        self.backlog.append(unit)
        return None

    def bury(self, worker: Worker) -> tuple[Unit, Failure] | None:
        """Lets go of a dead worker and charges the unit that it had."""
        self.workers.remove(worker)
        worker.connection.close()
        cause = worker.cause_of_death()
        if not worker.ready:
            self.deaths_at_start += 1
            if self.deaths_at_start > self.retries:
                if not any(other.ready for other in self.workers):
                    raise RuntimeError(f"workers die at the start, {self.deaths_at_start} times in a row ({cause})")
                self.size -= 1  # the machine carries fewer workers than were asked for
        if worker.unit is None:
            return None
        times = self.failed[worker.unit] + 1
        return self.again(worker.unit, Failure(f"its worker died, {times} times ({cause})", "", died=True))

    def close(self, orderly: bool) -> None:
        """Ends all workers: those without work by themselves, the rest by SIGTERM and, a second later, SIGKILL."""
        for worker in self.workers:
            worker.send(b"") if orderly else worker.process.terminate()
        deadline = time.monotonic() + (LEAVE if orderly else TERMINATE)
        for worker in self.workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.connection.close()
        os.close(self.hold)
        os.close(self.lifeline)
        self.workers.clear()
