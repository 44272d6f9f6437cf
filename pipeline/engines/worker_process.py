"""The program that a worker process of the local engine runs: one function, called with one unit after another.

It is started by its file name, never imported by the process that it serves. What it needs (sys.path, the function)
comes over a socket, so the caller's main module is not run again and needs no guard.
"""

from __future__ import annotations

import atexit
import gc
import os
import pickle
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
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
    sys.path[:] = pickle.loads(connection.recv_bytes())
    import cloudpickle

    try:
        work = cloudpickle.loads(connection.recv_bytes())()
    except BaseException as error:
        connection.send_bytes(pack_error("broken", error))
        return
    connection.send_bytes(pickle.dumps(("ready", None)))
    while message := connection.recv_bytes():
        connection.send_bytes(answer(work, pickle.loads(message)))


def main(parent: int, socket: int, lifeline: int) -> None:
    """Serves the parent. Ctrl-C reaches the whole process group, but it is the parent who decides what it means."""
    gc.set_threshold(100_000)  # as `pipeline.commands.run` does: it is up, and ended, a quarter sooner
    atexit.register(gc.freeze)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=die_with, args=(parent, lifeline), daemon=True).start()
    try:
        serve(Connection(socket))
    except (EOFError, ConnectionError):
        sys.exit(1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
