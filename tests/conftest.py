"""What tests of several parts share: one Ray cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SMALL = {"object_store_memory": 100_000_000, "include_dashboard": False}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A cluster of one node with two CPUs, which this process has joined; nodes can be added and killed.

    Tests that use it are in the xdist group "ray", so that there is one.
    """
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **SMALL})
    session = os.path.basename(cluster.head_node.get_session_dir_path())
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    end = time.monotonic() + 20
    while left := [pid for pid in os.listdir("/proc") if pid.isdigit() and session in _command(pid)]:
        assert time.monotonic() < end, f"processes of the cluster are left: {left}"
        time.sleep(0.1)


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
