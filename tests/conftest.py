"""What tests of several parts share: settings of Hypothesis, one Ray cluster, one S3 server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.engines.watching import SMALL

# the same examples each time; no deadline, as a busy machine is no failure
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

# a shell's `make test &` has SIGINT ignored, and what a test starts and interrupts would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

S3_SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""
"""A real S3 server on loopback, moto's, in a process of its own; each test has a bucket of its own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lines are counted in the first case of each test: the others take time to count, and add next to none."""
    seen = set[str]()
    for item in items:
        name = item.nodeid.partition("[")[0]
        if name in seen:
            item.add_marker("no_cover")
        seen.add(name)


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


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """http://127.0.0.1:PORT"""
    server = subprocess.Popen(
        [sys.executable, "-c", S3_SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdin is not None and server.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.stdin.close()
        server.wait(20)


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """s3://NAME, empty; credentials and endpoint in the environment."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"test-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT")).close()
    return f"s3://{name}"
