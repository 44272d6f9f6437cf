"""What a run says of itself, and how many workers there are where nobody says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pipeline
from pipeline import running, worker

MB = 1_000_000


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
