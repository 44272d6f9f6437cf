"""What tests of engines share: a log that workers write to, and waiting for what processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

SMALL = {"object_store_memory": 100_000_000, "include_dashboard": False, "include_log_monitor": False}
"""A node of a Ray cluster that takes no more than a test needs."""


def never(error: BaseException) -> bool:
    """No error is fatal."""
    return False


def log(folder: Path, line: object) -> None:
    """Appends one line; atomic over processes."""
    with (folder / "log").open("a") as file:
        file.write(f"{line}\n")


def logged(folder: Path) -> list[str]:
    path = folder / "log"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def wait_for(condition: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


def alive(pid: int | str) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
