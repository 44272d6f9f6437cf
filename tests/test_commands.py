"""What a command promises whatever it does: that it ends when it is told to."""

from __future__ import annotations

import signal
import subprocess
import sys

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


def test_a_command_that_is_held_up_in_ending_says_where_and_ends() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HELD_UP], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert said.startswith("ended: the same command continues\nTimeout") and "most recent call first" in said
