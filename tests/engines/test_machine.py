"""How many CPUs and how much memory this process may use, whatever the system says of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.engines import machine

KB, MB = 1024, 1_000_000


@pytest.fixture(autouse=True)
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a system that says nothing of itself: of a machine with 3 CPUs."""
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN", tmp_path / "own")
    monkeypatch.setattr(machine, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 4, 5}, raising=False)
    return tmp_path


def write(folder: Path, **files: str) -> None:
    """Files of a cgroup; an underscore of a keyword stands for the first dot of a name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [(None, 3), ("max 100000", 3), ("200000 100000", 2), ("50000 100000", 1), ("900000 100000", 3), ("broken", 3)],
)
@pytest.mark.parametrize("knows_affinity", [True, False])  # macOS does not
def test_affinity_and_quota_bound_the_cpus(
    system: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, cpus: int, knows_affinity: bool
) -> None:
    if not knows_affinity:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: 3)
    if quota is not None:
        (system / "own").write_text("0::/\n")
        write(system / "cgroup", cpu_max=quota)
    assert machine.usable_cpus() == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("-1", 3), ("200000", 2), ("50000", 1)])
def test_quotas_of_the_older_cgroups(system: Path, quota: str, cpus: int) -> None:
    (system / "own").write_text("12:pids:/job\n5:cpu,cpuacct:/job\n0::/init.scope\n")
    write(system / "cgroup" / "cpu" / "job", cpu_cfs_quota_us=quota, cpu_cfs_period_us="100000")
    assert machine.usable_cpus() == cpus


def test_a_jobs_quota_counts_where_a_step_of_it_has_none(system: Path) -> None:
    (system / "own").write_text("0::/system.slice/job_7/step_0\n")
    write(system / "cgroup" / "system.slice" / "job_7", cpu_max="200000 100000")
    write(system / "cgroup" / "system.slice" / "job_7" / "step_0", cpu_max="max 100000")
    assert machine.usable_cpus() == 2


def test_files_caches_count_as_free_memory(system: Path) -> None:
    """As the system tells it, and within a container's limit."""
    assert machine.free_memory() > 10**15
    write(system, meminfo="MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 8000 kB\nHugePages_Total: 0")
    assert machine.free_memory() == 8000 * KB
    (system / "own").write_text("0::/\n")
    table = "anon 1000000\ninactive_file 3000000"
    write(system / "cgroup", memory_max="5000000", memory_current="4000000", memory_stat=table)
    assert machine.free_memory() == 4 * MB
    write(system / "cgroup", memory_max="max")
    assert machine.free_memory() == 8000 * KB


NEW, OLD = "0::{}\n", "9:cpuset:/\n4:memory:{}\n0::/\n"


@pytest.mark.parametrize(("own", "limit", "used", "cached"),
                         [(NEW, "max", "current", "inactive_file"),
                          (OLD, "limit_in_bytes", "usage_in_bytes", "total_inactive_file")])  # fmt: skip
def test_the_least_of_a_jobs_limits_counts(system: Path, own: str, limit: str, used: str, cached: str) -> None:
    """As SLURM and systemd set them, for a job, and for a step of it, by which more may be left."""
    top = system / "cgroup" if own == NEW else system / "cgroup" / "memory"
    job, step = top / "slurm" / "job_7", top / "slurm" / "job_7" / "step_0"

    def bounded(folder: Path, most: int, now: int, files: int) -> None:
        table = f"anon 1\ninactive_file 5\ntotal_inactive_file {files}" if own == OLD else f"inactive_file {files}"
        write(folder, **{f"memory_{limit}": f"{most}", f"memory_{used}": f"{now}"}, memory_stat=table)

    (system / "own").write_text(own.format("/slurm/job_7/step_0"))
    bounded(job, 8 * MB, 6 * MB, MB)
    bounded(step, 7 * MB, MB, 0)
    assert machine.free_memory() == 3 * MB
    bounded(step, 7 * MB, 6 * MB, MB)
    assert machine.free_memory() == 2 * MB
    (system / "own").write_text(own.format("/docker/0123"))  # of a container, which sees its own group as the root
    bounded(top, 5 * MB, 4 * MB, 0)
    assert machine.free_memory() == MB
