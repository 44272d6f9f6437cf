"""A run on Ray whose actors, node and driver are killed at random times ends with the bytes of one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from tests.engines.watching import SMALL, wait_for

ROOT = Path(__file__).parents[2]
SEEDS = [*range(3), *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(3, 23))]

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(600)]


def infer(image: Path, output: Path, *options: str, address: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.infer", str(image), "-o", str(output), "--tile", "64,64", *options],
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def shards(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.glob("*/c/**/*") if path.is_file()}


def done(output: Path) -> Counter[int]:
    """How often each unit stands in the ledger."""
    path = output / "ledger" / "ledger.txt"
    lines = path.read_text().split("\n")[1:-1] if path.exists() else []
    return Counter(int(line.split()[0]) for line in lines)


def processes(title: str, within: str) -> list[int]:
    """Processes of that title, each started by one in whose command line stands `within`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if title in (folder / "cmdline").read_text():
                parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
                if within in Path(f"/proc/{parent}/cmdline").read_text():
                    found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "image.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (640, 720, 3), np.uint8)
    tifffile.imwrite(path, pixels, tile=(128, 128), compression="zlib")
    return path


@pytest.fixture(scope="module")
def undisturbed(image: Path) -> dict[str, bytes]:
    output = image.with_name("undisturbed.zarr")
    process = infer(image, output, "--workers", "2")
    assert process.wait(120) == 0
    assert len(shards(output)) > 100
    return shards(output)


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_random_times(
    seed: int, image: Path, undisturbed: dict[str, bytes], cluster: Any, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    output = tmp_path / "o.zarr"
    session = os.path.basename(cluster.head_node.get_session_dir_path())
    node = cluster.add_node(num_cpus=1, **SMALL)
    driver = infer(image, output, "--engine", "ray", "--workers", "3", address=cluster.address)
    killed = []
    for what in chance.sample(["actor", "node", "actor"], 3):
        assert wait_for(lambda: driver.poll() is not None or done(output), 200)
        time.sleep(chance.uniform(0, 1.5))
        if what == "node" and node is not None:
            cluster.remove_node(node, allow_graceful=False)
            node = None
        elif actors := processes("ray::Hand", session):
            os.kill(chance.choice(actors), signal.SIGKILL)
        killed.append((what, len(done(output))))
    if seed % 3:
        time.sleep(chance.uniform(0, 2))
        driver.kill()
    _, said = driver.communicate(timeout=240)
    before = done(output)
    if driver.returncode == -signal.SIGKILL:  # any number of workers goes on; one might wait for the dead node
        driver = infer(image, output, "--engine", "ray", "--workers", "2", address=cluster.address)
        _, said = driver.communicate(timeout=240)
    assert driver.returncode == 0, f"after {killed}: {said[-2000:]}"
    assert shards(output) == undisturbed
    assert set(done(output).values()) == {1} and before <= done(output), "what was done was done again"
