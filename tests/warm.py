"""A `python` that has imported PyTorch and this package before it is asked for: what runs is a fork of a server.

For commands that run to their end in tests that are not about starting: each is a process of its own, with its own
arguments, environment, folder, standard streams and exit status, and without the seconds that it would import for.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import marshal
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

MODULES = ["pipeline.api", "pipeline.checking", "pipeline.jobfile", "pipeline.config"]
CLIENT = """
import marshal, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect(sys.argv[1])
asked = marshal.dumps((sys.argv[2:], os.getcwd(), dict(os.environ)))
socket.send_fds(server, [len(asked).to_bytes(4, "little")], [0, 1, 2])
server.sendall(asked)
status = int(server.recv(16) or b"1")
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@functools.cache
def python() -> str:
    """The path of the program. Its server ends with this process."""
    folder = tempfile.TemporaryDirectory(prefix="warm-", dir="/tmp")  # the path of a socket must be short
    server = subprocess.Popen(
        [sys.executable, __file__, f"{folder.name}/socket"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdin is not None and server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    atexit.register(lambda: (server.communicate(), folder.cleanup()))
    program, client = (Path(folder.name) / name for name in ("python", "client.py"))
    client.write_text(CLIENT)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{client}" "{folder.name}/socket" "$@"\n')
    program.chmod(0o755)
    return str(program)


def serve(address: str) -> list[str]:
    """Forks a program for each client until standard input is closed; returns in those alone: the words given."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    while True:
        if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:
            os._exit(0)
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return become(client)
        client.close()


def become(client: socket.socket) -> list[str]:
    """Tells the client how a fork of this process ended, in which it returns, with what the program is to find."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, *_ = socket.recv_fds(client, 4, 3)
    asked = client.makefile("rb").read(int.from_bytes(size, "little"))
    words, folder, environment = marshal.loads(asked)
    if pid := os.fork():
        if client in select.select([os.pidfd_open(pid), client], [], [])[0]:  # which was killed
            os.kill(pid, signal.SIGKILL)
        with suppress(BrokenPipeError):
            client.sendall(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os._exit(0)
    client.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return list(words)


def run(words: list[str]) -> None:
    """What Python does with its command line."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = ["", *filter(None, paths)]
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).absolute().parent)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()
    run(serve(sys.argv[1]))
