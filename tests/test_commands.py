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

import numpy as np
import pytest
import tifffile

from pipeline import infer
from pipeline.commands import NEEDED
from pipeline.engines.units import THREADS
from tests import warm

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
        report(Progress(4, 1, 1, 10, 0, 0, 1.0))
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


def said_by(*words: str, folder: Path) -> str:
    line, variables = [warm.python(), "-m", *words], os.environ | {"COLUMNS": "200"}
    done = subprocess.run(line, cwd=folder, env=variables, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", ["infer", "train", "verify", "convert", "export"])
def test_every_option_and_argument_says_what_it_is(command: str, tmp_path: Path) -> None:
    """Beside its name, or in the next line where that is long."""
    listed = said_by(f"pipeline.{command}", "--help", folder=tmp_path).partition("positional arguments:")[2]
    entries = re.findall(r"^  (\S.*(?:\n {8,}\S.*)*)$", listed, re.MULTILINE)
    assert len(entries) >= 3 and [e for e in entries if not re.search(r"\S(  |\n).*\S", e)] == []


def test_sizes_are_rows_by_columns_and_a_copy_counts_as_a_result_does(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "big.tif", np.zeros((300, 120, 3), np.uint8), photometric="rgb")
    image, network, tiles, *_ = said_by("pipeline.infer", "big.tif", "--dry-run", folder=tmp_path).splitlines()
    assert image == "big.tif: 300 rows x 120 columns, 1 planes" and "rate 1 x 1" in network
    rows, columns = map(int, re.findall(r"^1 tiles of (\d+) x (\d+), ", tiles)[0])
    assert rows >= 300 > columns >= 120
    copied = said_by("pipeline.convert", "big.tif", "c.zarr", "--workers", "1", folder=tmp_path)
    assert copied == "c.zarr: done: 1 tiles, 1 levels\n"
    assert "finished already, nothing to do: 1 tiles, " in said_by(
        "pipeline.convert", "big.tif", "c.zarr", folder=tmp_path
    )


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


PRINTS = """
import logging, sys
from types import SimpleNamespace
from pipeline import commands
def main():
    with commands.progress("o.zarr") as report:
        report(SimpleNamespace(done=1, tried=1, tiles=4, pixels=10, seconds=1.0, left=3.0, failed=0, lost=0))
    logging.warning("noted")
    print("over", flush=True)
    if sys.argv[1] == "2":
        raise ValueError("the image is bad")
    return int(sys.argv[1])
commands.run(main)
"""


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-", ">/dev/full", ">&-", "<&- >&- 2>&-", "2>&1 | true"])
def test_what_cannot_be_printed_neither_ends_a_command_nor_changes_its_status(where: str) -> None:
    script = f"set -o pipefail; {sys.executable} -c '{PRINTS}' $0 {where}"
    ran = [subprocess.run(["bash", "-c", script, str(n)], capture_output=True, text=True, timeout=60) for n in (0, 2)]
    assert [done.returncode for done in ran] == [0, 2]
    assert not any("Traceback" in done.stderr for done in ran)
    if where == ">/dev/full":
        assert "stdout takes no more: No space left on device\n" in ran[0].stderr


NAMES = """
from pipeline import commands
commands.run(lambda: print("r\\u00e9sultat", "n\\udce4tz"))
"""


def test_names_of_files_and_text_of_any_kind_are_printed_whatever_the_encoding() -> None:
    """Of a name its bytes; of what else the encoding cannot hold, its number."""
    variables = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", NAMES], env=variables, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"r\\xe9sultat n\xe4tz\n", b"")


WORKS = """
import sys
from pipeline import commands
from pipeline.engines import local
from pipeline.engines.template import early_template
def main():
    done = list(local.run(lambda: abs, [[-1, -2]], workers=1, own_process=True, template=early_template([])))
    return len(done) - 2
if sys.argv[1] == "command":
    commands.run(main)
print(main())
"""


@pytest.mark.parametrize("way", ["command", "from Python"])
def test_workers_start_where_stdin_is_closed(way: str) -> None:
    script = f"{sys.executable} -c '{WORKS}' '{way}' <&-"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "" if way == "command" else "0\n", "")


def test_a_working_directory_that_is_gone_is_one_line(tmp_path: Path) -> None:
    script = f"mkdir gone && cd gone && rmdir ../gone && {sys.executable} -m pipeline.infer {tmp_path}/a.tif"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (
        2,
        "error: the working directory: No such file or directory: change to one that is there\n",
    )


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--mean", "-1,-2,-3"], (-1.0, -2.0, -3.0)),
        (["--mean", "-.5"], (-0.5,)),
        (["--tile", "-64,-64"], (-64, -64)),
        (["--memory", "-1GB"], "-1GB"),
    ],
)
def test_a_value_may_begin_with_a_minus(words: list[str], found: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["infer", "a.tif", *words])
    assert infer.parse() == {"images": ["a.tif"], words[0][2:]: found}
