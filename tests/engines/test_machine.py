"""How many CPUs this process may use, whatever the system says of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.engines import machine


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [(None, 3), ("max 100000", 3), ("200000 100000", 2), ("50000 100000", 1), ("900000 100000", 3), ("broken", 3)],
)
@pytest.mark.parametrize("knows_affinity", [True, False])  # macOS does not
def test_affinity_and_quota_bound_the_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, cpus: int, knows_affinity: bool
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8 if knows_affinity else 3)
    if knows_affinity:
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 4, 5}, raising=False)
    else:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(machine, "QUOTA", tmp_path / "cpu.max")
    assert machine.usable_cpus() == cpus
