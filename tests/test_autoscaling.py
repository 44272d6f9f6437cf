"""The machine types of cluster.yaml, scaled down to this machine: none, two when there is work, none again.

Ray's own autoscaler decides; only the provider is another, whose machines are further raylets here.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
import zarr

import pipeline
from tests.ray_head import Head, free_ports, prepared, running, until

ROOT = Path(__file__).parents[1]
HEAD = 51 * "f" + "00000"
"""The id that the provider expects of the head."""
FAKE = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
    "RAY_AUTH_MODE": "token",
}

pytestmark = [pytest.mark.nightly, pytest.mark.xdist_group("ray"), pytest.mark.timeout(280)]


def scaled_down(gcs: int) -> dict[str, Any]:
    """cluster.yaml with small machines, which are given back after 4 seconds, and nothing to set up on them."""
    cluster: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    types = cluster["available_node_types"]
    types["ray.head.default"] = types.pop(cluster["head_node_type"])
    for node in types.values():
        node["node_config"] = {}
        if node["max_workers"]:
            node["resources"] = {"CPU": 1, "GPU": 1, "object_store_memory": 80_000_000}
            node.update(max_workers=2, idle_timeout_s=4)
    nothing = [key for key in cluster if key.endswith("_commands")]
    return cluster | {key: [] for key in nothing} | {
        "head_node_type": "ray.head.default", "max_workers": 4, "auth": {}, "docker": {}, "file_mounts": {},
        "provider": {
            "type": "external", "launch_multiple": True, "disable_node_updaters": True, "head_node_id": HEAD,
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{gcs}",
        },
    }  # fmt: skip


def machines(head: Head) -> list[str]:
    """The market of each machine that is there, beside the head."""
    nodes = head.ask("/api/v0/nodes?limit=100&detail=1")["data"]["result"]["result"]
    return [n["labels"]["market-type"] for n in nodes if n["state"] == "ALIVE" and not n["is_head_node"]]


def test_from_no_machine_to_two_and_back(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    tifffile.imwrite(tmp_path / "big.tif", pixels, tile=(128, 128))
    (gcs,) = free_ports(1)
    (tmp_path / "fake.yaml").write_text(yaml.safe_dump(scaled_down(gcs)))
    with prepared(tmp_path, gcs, num_cpus=0, autoscaling_config=tmp_path / "fake.yaml") as head:
        head.variables |= FAKE | {"PYTHONPATH": str(ROOT)}
        started = head.shell("ray get-auth-token --generate > /dev/null; ray start --head --dashboard-host=127.0.0.1")
        assert started.returncode == 0, started.stdout + started.stderr
        assert machines(head) == []
        words = ["--engine=ray", f"--address={head.gcs}", "--workers=2", "--worker-gpus=1", "--device=cpu"]
        infer = subprocess.Popen(
            [sys.executable, "-m", "pipeline.infer", "big.tif", "-o", "big.zarr", "--tile=128,128", *words],
            cwd=tmp_path, env=head.variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        most: list[str] = []
        while running(infer.pid):
            most = max(most, machines(head), key=len)
        output = infer.communicate()[0]
        assert infer.returncode == 0, output
        assert most == ["spot", "spot"], output
        until(lambda: machines(head) == [], 60, "no machine")
    alone = pipeline.predict(tmp_path / "big.tif", output=tmp_path / "alone.zarr", tile=(128, 128), workers=1)
    assert np.array_equal(zarr.open_group(tmp_path / "big.zarr")["0"][:], alone.array[:])
