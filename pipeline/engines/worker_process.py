"""The program behind the local engine's workers: a template process, and the workers that are forks of it.

    caller  --- "fork" --->  template: has imported what all need, has one thread, computes nothing
       ^                        | fork
       +---- units, results --- worker: one function, called with one unit after another

It is started by its file name, or in a fork of the caller from before that had threads. What it needs (sys.path, the
function) comes over a socket, so the caller's main module is not run again and needs no guard.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import pickle
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any

PARENT_CHECK = 0.3
"""Seconds between two looks at whether the parent still lives, where its end of the lifeline does not tell."""


def die_with(parent: int, lifeline: int) -> None:
    """Ends this process, whatever it is doing, as soon as the process `parent` is gone.

    The parent holds the only writing end of the lifeline, so the kernel closes it however the parent ends; its id is
    watched too, for a fork of the parent may have inherited that end.
    """
    while os.getppid() == parent:
        if select.select([lifeline], [], [], PARENT_CHECK)[0]:
            break
    os._exit(1)


def pack_error(kind: str, error: BaseException) -> bytes:
    """(kind, (class name, text, the exception)), which always arrives: what cannot travel is replaced by its text."""
    import cloudpickle

    name = type(error).__name__
    text = " ".join(str(error).split()) or name
    error.add_note("".join(traceback.format_exception(error)).rstrip())
    error.__traceback__ = error.__cause__ = error.__context__ = None
    try:
        packed = cloudpickle.dumps(error)
        pickle.loads(packed)
    except Exception:  # whatever its own reduce or __init__ raises
        stand_in = (ValueError if isinstance(error, ValueError) else RuntimeError)(f"{name}: {text}")
        for note in error.__notes__:
            stand_in.add_note(note)
        packed = cloudpickle.dumps(stand_in)
    return pickle.dumps((kind, (name, text, packed)))


def answer(work: Callable[[Any], Any], unit: Any) -> bytes:
    """What becomes of one unit: ("done", its packed result) or ("error", ...)."""
    import cloudpickle

    try:
        return pickle.dumps(("done", cloudpickle.dumps(work(unit))))
    except BaseException as error:
        return pack_error("error", error)


def serve(connection: Connection) -> None:
    """Answers each unit until told to stop or left alone."""
    import cloudpickle

    try:
        work = cloudpickle.loads(connection.recv_bytes())()
    except BaseException as error:
        connection.send_bytes(pack_error("broken", error))
        return
    connection.send_bytes(pickle.dumps(("ready", None)))
    while message := connection.recv_bytes():
        connection.send_bytes(answer(work, pickle.loads(message)))


def ended(pid: int, options: int = os.WNOHANG) -> int | None:
    """How a worker ended, a signal as its negative number; None while it runs. To be asked until it says so once."""
    found, status = os.waitpid(pid, options)
    return os.waitstatus_to_exitcode(status) if found else None


def bury(pid: int) -> int | None:
    """How a worker ended, by SIGKILL where nothing had ended it before."""
    os.kill(pid, signal.SIGKILL)
    return ended(pid, 0)


ORDERS: dict[str, Callable[..., Any]] = {"ended": ended, "signal": os.kill, "bury": bury}
"""What the caller asks of the template beside forks; a worker's id is its own until the caller knows that it ended."""


def fork_workers(caller: Connection, parent: int, lifeline: int) -> tuple[int, int]:
    """Obeys the caller while it lives, and never returns here, but in each worker: its number, and its socket."""
    sources: list[Any] = [caller, lifeline]
    with suppress(EOFError, ConnectionError):
        while os.getppid() == parent:
            ready = select.select(sources, [], [], PARENT_CHECK)[0]
            if lifeline in ready:
                break
            if not ready:
                continue
            order, *arguments = caller.recv()
            if order != "fork":
                caller.send(ORDERS[order](*arguments))
                continue
            handle = recv_handle(caller)
            pid = os.fork()
            if pid == 0:
                return arguments[0], handle
            os.close(handle)
            caller.send(pid)
    os._exit(0)


def main(parent: int, socket: int, lifeline: int) -> None:
    """Is the template; in its forks, serves. Ctrl-C reaches the whole group, but it is the parent who decides."""
    gc.set_threshold(100_000)  # as `pipeline.commands.run` does: it is up, and ended, a quarter sooner
    atexit.register(gc.freeze)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as a caller may do, it would leave no word of the dead
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    template, caller = os.getpid(), Connection(socket)
    try:
        sys.path[:], modules = caller.recv()
        for module in modules:
            with suppress(Exception):  # a worker's own start says it to the caller
                importlib.import_module(module)
        gc.freeze()  # no fork's collection writes to the pages that all share
        number, handle = fork_workers(caller, parent, lifeline)
        caller.close()
        os.environ["PIPELINE_WORKER"] = str(number)
        threading.Thread(target=die_with, args=(template, lifeline), daemon=True).start()
        serve(Connection(handle))
    except (EOFError, ConnectionError):
        sys.exit(1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
