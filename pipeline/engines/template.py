"""Worker processes of this machine, as their caller sees them: forks of one template, to which only units travel.

A library as large as PyTorch takes seconds to import and a hundred megabytes; forks of a process that has it start in
milliseconds and share that memory. The caller itself cannot be forked when workers are needed: it may have threads by
then, which a fork would lose. The template is a fork of it from before, or a program that imports everything anew.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any

import cloudpickle

from pipeline.engines import worker_process
from pipeline.engines.units import THREADS, Unit, Work

PROGRAM = Path(worker_process.__file__)
TASKS = Path("/proc/self/task")
"""Holds an entry for each thread of this process, those of libraries too, where the system tells."""
BLOCKED = {signal.SIGINT, signal.SIGTERM}
LEAVE = 10.0
"""Seconds that a worker without work may take to end."""
TERMINATE = 1.0
"""Seconds from SIGTERM to SIGKILL."""
LOOK = 0.01
"""Seconds between two looks at whether a worker that is waited for has ended."""


class Worker:
    """One worker process."""

    def __init__(self, number: int, template: Template) -> None:
        here, there = socket.socketpair()
        with here, there:
            self.template = template
            self.pid = template.fork(number, there.fileno())
            self.connection = Connection(here.detach())
        self.number = number
        self.ready = False
        self.unit: Unit | None = None
        self.code: int | None = None
        """How it ended, a signal as its negative number."""

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

    def ended(self, order: str = "ended") -> bool:
        """Whether it has ended; without its template it ends by itself, and as that one did."""
        if self.code is None and self.pid is not None:
            with suppress(OSError, EOFError):
                self.code = self.template.ask(order, self.pid)
                return self.code is not None
        if self.code is None:
            self.code = self.template.kill()
        return True

    def terminate(self) -> None:
        """Asks it to end."""
        with suppress(OSError, EOFError):
            if not self.ended():
                self.template.ask("signal", self.pid, signal.SIGTERM)

    def end(self, deadline: float) -> None:
        """Waits until it has ended, but not beyond then (of `time.monotonic`): then it is killed."""
        while not self.ended() and time.monotonic() < deadline:
            time.sleep(LOOK)
        self.ended("bury")
        self.connection.close()

    def cause_of_death(self) -> str:
        """How the process ended, in words, or by SIGKILL now; nothing more is heard of it."""
        self.end(deadline=0)
        assert self.code is not None
        if self.code >= 0:
            return f"exit status {self.code}"
        return signal.Signals(-self.code).name + (", perhaps out of memory" if self.code == -signal.SIGKILL else "")


def flush() -> None:
    """Writes what was printed."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def above_standard(file: int) -> int:
    """The same open file under a number that is none of stdin's, stdout's and stderr's, which may be closed here."""
    try:
        return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(file)


class Fork:
    """A fork of this process that runs a function and ends; it is ended, and waited for, as a program is."""

    def __init__(self, run: Callable[[], None]) -> None:
        flush()  # or what is not written yet would be written twice
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self.returncode = 1
            try:
                run()
                self.returncode = 0
            except SystemExit:
                pass
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:  # nothing of the caller's stack is gone through
                flush()
                os._exit(self.returncode)

    def kill(self) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self.returncode is None:
            try:
                self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            except ChildProcessError:  # nothing is known of it where the caller ignores SIGCHLD, as with a program
                self.returncode = 0
        return self.returncode


class Template:
    """The process that workers are forked of. They end within a second of its end, and it ends with the caller.

    It has imported `modules`, which must start no thread. It begins with the first worker, unless it was begun before.
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self.modules = modules
        self.process: subprocess.Popen[bytes] | Fork | None = None
        self.hold: int | None = None
        """The end of the lifeline that is the caller's, while it is open."""
        self.answers = True
        """Whether it has answered all that it was asked: it lives, and nothing interrupted the caller."""

    def begin(self, *, forked: bool = False) -> None:
        """Starts it: as a program that imports everything anew, or as a fork of the caller as it is now."""
        reading, self.hold = os.pipe()
        here, socket_there = socket.socketpair()
        self.connection = Connection(here.detach())
        there, lifeline = above_standard(socket_there.detach()), above_standard(reading)
        # Blocked until they are seen to there: Ctrl-C would print a traceback, and a fork has the caller's handlers.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
        try:
            self.process = (self._fork if forked else self._program)(there, lifeline)
        finally:
            os.close(there)
            os.close(lifeline)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        path = [os.path.abspath(entry) if entry == "" else entry for entry in sys.path]
        with suppress(ConnectionError):
            self.connection.send((path, ["cloudpickle", *self.modules]))

    def _program(self, there: int, lifeline: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", str(PROGRAM), *map(str, (os.getpid(), there, lifeline))]
        environment = os.environ | dict.fromkeys(THREADS, "1")
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, pass_fds=(there, lifeline))

    def _fork(self, there: int, lifeline: int) -> Fork:
        caller = os.getpid()

        def be_template() -> None:
            assert self.hold is not None
            os.close(self.hold)
            self.connection.close()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.environ.update(dict.fromkeys(THREADS, "1"))
            worker_process.main(caller, there, lifeline)

        return Fork(be_template)

    def ask(self, *order: Any, handle: int | None = None) -> Any:
        """What it answers.

        Raises OSError or EOFError where it is dead; after that, or Ctrl-C meanwhile, it is asked nothing more.
        """
        if self.process is None or not self.answers:
            raise EOFError
        self.answers = False
        self.connection.send(order)
        if handle is not None:
            send_handle(self.connection, handle, self.process.pid)
        answer = self.connection.recv()
        self.answers = True
        return answer

    def fork(self, number: int, handle: int) -> int | None:
        """The id of a new worker, which talks to the socket `handle`; None where this process is dead."""
        with suppress(OSError, EOFError):
            pid: int = self.ask("fork", number, handle=handle)
            return pid
        return None

    def kill(self) -> int:
        """Ends it where it still runs; how it ended."""
        assert self.process is not None
        self.process.kill()
        return self.process.wait()

    def close(self) -> None:
        """Ends it, whose workers have ended; for good."""
        self.answers = False
        if self.hold is not None:
            hold, self.hold = self.hold, None
            self.connection.close()
            if self.process is not None:
                self.kill()
            os.close(hold)


def early_template(modules: Sequence[str]) -> Template:
    """One for later: begun now as a fork of the caller, unless that has threads already."""
    template = Template(modules)
    if TASKS.exists() and len(os.listdir(TASKS)) == 1:
        template.begin(forked=True)
    return template


class Forks:
    """The workers of a run: forks of one template, which call `start`."""

    def __init__(self, start: Callable[[], Work], modules: Sequence[str], template: Template | None = None) -> None:
        self.start, self.template = cloudpickle.dumps(start), template or Template(modules)

    def worker(self, number: int) -> Worker:
        """A new worker, which has begun to call `start`."""
        if not self.template.answers:
            dead, self.template = self.template, Template(self.template.modules)
            dead.close()
        if self.template.process is None:
            self.template.begin()
        worker = Worker(number, self.template)
        worker.send(self.start)
        return worker

    def close(self, workers: Sequence[Worker], orderly: bool) -> None:
        """Ends all: those without work by themselves, the rest by SIGTERM and, a second later, SIGKILL."""
        try:
            for worker in workers:
                worker.send(b"") if orderly else worker.terminate()
            deadline = time.monotonic() + (LEAVE if orderly else TERMINATE)
            for worker in workers:
                worker.end(deadline)
        finally:  # workers that Ctrl-C left meanwhile end with it
            self.template.close()
