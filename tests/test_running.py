"""How many workers there are where nobody says: what memory is left for them, and a GPU each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline import running, worker

MB = 1_000_000


def test_files_caches_count_as_free_memory(tmp_path: Path) -> None:
    """As the system tells it, and within a container's limit."""
    table, group = tmp_path / "meminfo", tmp_path / "cgroup"
    group.mkdir()
    table.write_text("MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 8000 kB\nHugePages_Total: 0\n")
    assert running.free_memory(table, group) == 8000 * 1024
    (group / "memory.max").write_text("5000000\n")
    (group / "memory.current").write_text("4000000\n")
    (group / "memory.stat").write_text("anon 1000000\ninactive_file 3000000\n")
    assert running.free_memory(table, group) == 4 * MB
    (group / "memory.max").write_text("max\n")
    assert running.free_memory(table, group) == 8000 * 1024
    assert running.free_memory(tmp_path / "none", tmp_path / "none") > 10**15


def test_as_many_workers_as_memory_holds_and_one_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "usable_cpus", lambda: 8)
    monkeypatch.setattr(running, "free_memory", lambda: 2000 * MB)
    assert running.default_workers(200 * MB, "cpu") == 4
    assert running.default_workers(9000 * MB, "cpu") == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert running.default_workers(200 * MB, "cuda") == 3
    monkeypatch.setenv("PIPELINE_WORKER", "4")
    assert worker.own_device("cuda") == "cuda:1" and worker.own_device("cpu") == "cpu"
    monkeypatch.delenv("PIPELINE_WORKER")
    assert worker.own_device("cuda") == "cuda"
