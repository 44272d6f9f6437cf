"""What this machine gives the calling process.

Of CPUs and memory, a container or a job of a scheduler may have less than the machine: its cgroup, and each that this
one lies in, has a limit of its own, and the least of them counts. Which cgroup that is, /proc/self/cgroup says, by the
path below where cgroups are mounted; a container may see only its own, as the root of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
"""Where version 2 is mounted; or, by the names of their controllers, the hierarchies of version 1."""
OWN = Path("/proc/self/cgroup")
MEMORY = Path("/proc/meminfo")
LIMITS = (("memory.max", "memory.current", "inactive_file"),
          ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))  # fmt: skip
"""Of versions 2 and 1: files of a cgroup's limit and use, and what of memory.stat are files' caches to give back."""


def usable_cpus() -> int:
    """As many as CPU affinity, where the system knows of it, and the cgroups' quotas allow; at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu"):
        for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            with suppress(OSError, ValueError):  # ValueError: max, for no limit
                quota, period = (int(word) for file in files for word in (group / file).read_text().split())
                if quota > 0:
                    cpus = min(cpus, max(1, quota // period))
    return cpus


def free_memory() -> int:
    """Bytes that new processes may take, what files' caches would give back included; all where nothing tells."""
    free = sys.maxsize
    with suppress(OSError, ValueError, KeyError):
        free = _numbers(MEMORY)["MemAvailable:"] * 1024
    for group in _groups("memory"):
        for limit, used, cached in LIMITS:
            with suppress(OSError, ValueError, KeyError):
                left = int((group / limit).read_text()) - int((group / used).read_text())
                free = min(free, left + _numbers(group / "memory.stat")[cached])
    return free


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the cgroups that limit this process by that controller, each below the next; some may not be there."""
    lines = []
    with suppress(OSError):
        lines = OWN.read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        own = PurePosixPath(path.lstrip("/"))
        for part in (own, *own.parents):
            yield (CGROUPS / controller if controllers else CGROUPS) / part


def _numbers(table: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    return {name: int(number) for name, number, *_ in map(str.split, table.read_text().splitlines())}
