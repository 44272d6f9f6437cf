"""Training on Ray's workers: the same weights for any number of them, and whatever dies on the way."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import pipeline
from tests.training.test_training import ROOT, job, weights

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(600)]

CLOSE = 1e-6


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of images and of a run of 20 steps in one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    pipeline.train(asked(folder))
    return folder


def asked(folder: Path, **given: Any) -> dict[str, Any]:
    """Batch norm, a validation image and fewer tiles in some steps than workers: all that workers have to agree on."""
    made = job(folder)
    data = {**made["data"], "validation": {"fraction": 0.3}}
    network = {**made["network"], "norm": "batch"}
    return {**made, "steps": 20, "data": data, "network": network, "batch": 3, "checkpoint_every": 3, **given}


def steps_of(run: Path) -> list[int]:
    lines = (run / "metrics.jsonl").read_text().split("\n")[:-1] if (run / "metrics.jsonl").exists() else []
    return [json.loads(line)["step"] for line in lines if '"loss"' in line]


def until(condition: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def begin(file: Path, address: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.train", str(file)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def training_workers(session: str) -> list[int]:
    """Processes of Ray Train's workers in that cluster."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if "RayTrainWorker" in (folder / "cmdline").read_text():
                parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
                if session in Path(f"/proc/{parent}/cmdline").read_text():
                    found.append(int(folder.name))
        except OSError:
            continue
    return found


def check(run: Path, undisturbed: Path) -> None:
    assert torch.allclose(weights(run), weights(undisturbed / "run"), rtol=0, atol=CLOSE)
    assert steps_of(run) == list(range(1, 21))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["00000018.pt", "00000020.pt", "lock"]


def test_two_workers_have_the_weights_of_one_process(cluster: Any, undisturbed: Path, tmp_path: Path) -> None:
    result = pipeline.train(asked(undisturbed, run=str(tmp_path / "run"), workers=2))
    check(tmp_path / "run", undisturbed)
    assert result.resumed == 0 and result.metrics["mean_iou"] is not None


def test_a_label_that_is_no_class_ends_a_run_on_workers_with_its_line(cluster: Any, tmp_path: Path) -> None:
    made = job(tmp_path, workers=2, optimizer={"name": "sgd", "lr": 1e9})
    with pytest.raises(ValueError, match=r"^step \d+: the loss is (nan|inf)"):
        pipeline.train(made)
    with pytest.raises(ValueError, match=r"^workers=9: the cluster holds 2 of one CPU each$"):
        pipeline.train(job(tmp_path, workers=9, run=str(tmp_path / "other")))


@pytest.mark.parametrize("what", ["worker", pytest.param("driver", marks=pytest.mark.nightly)])
def test_killed_at_a_random_step(what: str, cluster: Any, undisturbed: Path, tmp_path: Path) -> None:
    """A worker's death costs the steps since the last checkpoint; after the driver's, the same command goes on."""
    chance = random.Random(what)
    run, file = tmp_path / "run", tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(asked(undisturbed, run=str(run), workers=2)))
    session = os.path.basename(cluster.head_node.get_session_dir_path())
    driver = begin(file, cluster.address)
    at = chance.randint(4, 16)
    until(lambda: driver.poll() is not None or steps_of(run)[-1:] >= [at])
    assert driver.poll() is None, driver.communicate()
    if what == "worker":
        os.kill(chance.choice(training_workers(session)), signal.SIGKILL)
    else:
        driver.kill()
        driver.communicate()
        driver = begin(file, cluster.address)
    out, err = driver.communicate(timeout=400)
    assert driver.returncode == 0, err[-2000:]
    if what == "driver":
        assert "steps were done before" in out
    check(run, undisturbed)
