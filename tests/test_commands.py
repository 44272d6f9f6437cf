"""What a command promises whatever it does: that it ends when it is told to."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys

import pytest

HELD_UP = """
import atexit, threading, time
from pipeline import commands
commands.GRACE = 1
lock = threading.Lock()
lock.acquire()
atexit.register(lock.acquire)
def main():
    commands.resumable()
    print("up", flush=True)
    time.sleep(100)
commands.run(main)
"""


SHOWN = """
import sys
from pipeline import commands
from pipeline.running import Progress
with commands.progress(sys.argv[1]) as report:
    report(Progress(4, 1, 1, 10, 0, 1.0))
"""


@pytest.mark.parametrize("name", ["b{x}.zarr", "b{}.zarr", "c[red].zarr", "c[/red].zarr", "b\\[.zarr"])
def test_a_terminal_shows_any_name_as_it_is(name: str) -> None:
    terminal, inner = pty.openpty()
    try:
        variables = os.environ | {"TERM": "xterm", "COLUMNS": "200"}
        subprocess.run([sys.executable, "-c", SHOWN, name], stdout=inner, stderr=inner, env=variables, timeout=60)
        said = os.read(terminal, 1 << 16).decode()
    finally:
        os.close(terminal)
        os.close(inner)
    assert name in said and "1 of 4 tiles" in said and "Traceback" not in said


def test_a_command_that_is_held_up_in_ending_says_where_and_ends() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HELD_UP], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert said.startswith("ended: the same command continues\nTimeout") and "most recent call first" in said
