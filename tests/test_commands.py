"""What a command promises whatever it does: that it ends when it is told to."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from pipeline.commands import NEEDED
from pipeline.engines.units import THREADS

ROOT = Path(__file__).parents[1]

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
for name in sys.argv[1:]:
    with commands.progress(name) as report:
        report(Progress(4, 1, 1, 10, 0, 1.0))
"""


def test_a_terminal_shows_any_name_as_it_is() -> None:
    names = ["b{x}.zarr", "b{}.zarr", "c[red].zarr", "c[/red].zarr", "b\\[.zarr"]
    terminal, inner = pty.openpty()
    try:
        variables = os.environ | {"TERM": "xterm", "COLUMNS": "200"}
        subprocess.run([sys.executable, "-c", SHOWN, *names], stdout=inner, stderr=inner, env=variables, timeout=60)
        said = os.read(terminal, 1 << 16).decode()
    finally:
        os.close(terminal)
        os.close(inner)
    assert [name for name in names if f"{name} " not in said] == [] and "Traceback" not in said
    assert said.count("1 of 4 tiles") >= len(names)


ALONE = """
import os
from pipeline import commands
def main():
    from pipeline import api
    template = api.template()
    print(len(os.listdir("/proc/self/task")), type(template.process).__name__)
    return 0
commands.run(main)
"""


def test_what_a_command_imports_has_one_thread_so_that_workers_are_forks_of_it() -> None:
    """They begin at once, where a program would import everything anew."""
    variables = {name: value for name, value in os.environ.items() if name not in THREADS}
    done = subprocess.run([sys.executable, "-c", ALONE], env=variables, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("1 Fork\n", "")


def test_a_command_that_is_held_up_in_ending_says_where_and_ends() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HELD_UP], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert said.startswith("ended: the same command continues\nTimeout") and "most recent call first" in said


@pytest.mark.parametrize("command", ["infer IMAGE", "train JOB", "verify OUT", "convert IMAGE OUT", "export NET OUT"])
def test_a_python_without_the_dependencies_is_told_in_one_line(command: str) -> None:
    """Such as the one that is found where .venv was not activated."""
    words = [sys.executable, "-S", "-m", *f"pipeline.{command}".split()]
    done = subprocess.run(words, cwd=ROOT, env={}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        rf"error: {sys.executable} has no \w+: .*\. \.venv/bin/activate.*pip install \.\)\n", done.stderr
    )


def test_a_missing_module_that_no_installation_would_bring_is_not_hidden() -> None:
    code = "from pipeline import commands\ndef main():\n    import nothing_of_the_kind\ncommands.run(main)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" in done.stderr and "nothing_of_the_kind" in done.stderr


def test_what_is_known_as_needed_are_the_dependencies() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = {re.split(r"[\[>=;]", line)[0].lower(): ";" in line for line in listed}
    owners = packages_distributions()
    known = {owner.lower() for name in NEEDED for owner in owners.get(name, [])}
    assert {name for name, conditional in wanted.items() if not conditional} <= known <= set(wanted)
