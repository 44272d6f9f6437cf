"""What a run says of itself, and how many workers there are where nobody says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pipeline
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


def test_time_left_is_told_by_what_this_call_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier call did took none of this one's seconds."""
    monkeypatch.setattr(running, "REPORT_EVERY", 0.0)
    image, seen = np.zeros((1, 80, 80), np.uint8), []

    def run(stop: int) -> None:
        def report(progress: running.Progress) -> None:
            seen.append(progress)
            if progress.done == stop:
                raise KeyboardInterrupt

        net = torch.nn.Conv2d(1, 2, 1).eval()
        pipeline.predict(image, net, tmp_path / "o.zarr", tile=(16, 16), workers=1, report=report)

    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        run(stop=20)
    torch.manual_seed(0)
    run(stop=0)
    again = seen[20]
    assert (again.done, again.made, again.pixels, again.tiles) == (21, 1, 256, 25)
    assert again.left == pytest.approx(4 * again.seconds)
