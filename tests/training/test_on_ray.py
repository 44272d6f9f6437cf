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
from pipeline.jobfile import validated
from pipeline.network.loading import load_network
from pipeline.training import loop, on_ray
from pipeline.training.group import Group
from pipeline.training.run_folder import RunFolder
from pipeline.training_job import TrainJob
from pipeline.training_task import task_of
from tests.training.test_training import ROOT, draw, job, weights

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(600)]

CLOSE = 1e-6


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of images and of a run of 20 steps in one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    draw(folder / "images", count=5)  # three to train on, one to validate, and one to test
    pipeline.train(asked(folder))
    return folder


def asked(folder: Path, **given: Any) -> dict[str, Any]:
    """Batch norm, a validation image and fewer tiles in some steps than workers: all that workers have to agree on."""
    made = job(folder)
    data = {**made["data"], "validation": {"fraction": 0.2}, "test": {"fraction": 0.2}}
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
    alone = load_network(undisturbed / "run").card["training"]
    assert result.metrics["test"] == alone["test"] and result.metrics["step"] == alone["step"]


@pytest.mark.nightly  # that all workers raise what one of them met is tested without Ray
def test_a_loss_that_is_no_number_ends_a_run_on_workers_with_its_line(cluster: Any, tmp_path: Path) -> None:
    made = job(tmp_path, workers=2, optimizer={"name": "sgd", "lr": 1e9})
    with pytest.raises(ValueError, match=r"^step \d+: the loss is (nan|inf)"):
        pipeline.train(made)
    with pytest.raises(ValueError, match=r"^workers=9: the cluster holds 2 of one CPU each$"):
        pipeline.train(job(tmp_path, workers=9, run=str(tmp_path / "other")))


def test_where_the_system_knows_no_affinity(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.delattr(os, "sched_getaffinity")
    with pytest.raises(ValueError, match=r"^workers=9: the cluster holds 2 of one CPU each$"):
        pipeline.train(job(tmp_path, workers=9))


# in this order: what a killed driver had asked for counts as taken for three minutes, where a run takes what is free
RARE = [pytest.param(what, marks=pytest.mark.nightly) for what in ("node", "driver")]


@pytest.mark.parametrize("what", ["worker", *RARE])
def test_killed_at_a_random_step(what: str, cluster: Any, undisturbed: Path, tmp_path: Path) -> None:
    """A worker's death costs the steps since the last checkpoint; after the driver's, the same command goes on.

    Where a node dies with its worker, the others go on without.
    """
    chance = random.Random(what)
    run, file = tmp_path / "run", tmp_path / "job.yaml"
    node = cluster.add_node(num_cpus=1, object_store_memory=100_000_000) if what == "node" else None
    workers = {"worker": [1, 2], "node": [1, 3]}.get(what, 2)
    file.write_text(yaml.safe_dump(asked(undisturbed, run=str(run), workers=workers)))
    session = os.path.basename(cluster.head_node.get_session_dir_path())
    if node:  # an elastic run begins with what is free, which Ray's coordinator of training counts every 20 seconds
        time.sleep(21)
    driver = begin(file, cluster.address)
    at = chance.randint(4, 16)
    until(lambda: driver.poll() is not None or steps_of(run)[-1:] >= [at])
    assert driver.poll() is None, driver.communicate()
    if what == "worker":
        os.kill(chance.choice(training_workers(session)), signal.SIGKILL)
    elif node:
        cluster.remove_node(node, allow_graceful=False)
    else:
        driver.kill()
        driver.communicate()
        driver = begin(file, cluster.address)
    out, err = driver.communicate(timeout=400)
    assert driver.returncode == 0, err[-2000:]
    if what == "driver":
        assert "steps were done before" in out
    if node:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["workers"] for line in lines if "loss" in line][::19] == [3, 2]
    check(run, undisturbed)


class Busy:
    pass


def test_a_node_that_is_about_to_go_is_noticed(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    monkeypatch.setattr(on_ray, "NOTICE", 0.1)
    node = cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    try:
        here = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        busy = ray.remote(num_cpus=1)(Busy).options(scheduling_strategy=here).remote()  # idle, it would go at once
        ray.get(busy.__ray_ready__.remote())
        its, others = on_ray.notice({node.node_id}), on_ray.notice({cluster.head_node.node_id})
        time.sleep(0.2)
        assert not its() and not others()
        in_an_hour = int(1000 * time.time()) + 3_600_000
        client = ray._private.worker.global_worker.gcs_client
        assert client.drain_node(node.node_id, DRAIN_NODE_REASON_PREEMPTION, "spot", in_an_hour)[0]
        until(its, 20)
        time.sleep(0.2)
        assert not others()
    finally:
        cluster.remove_node(node, allow_graceful=False)


def test_checkpoints_come_fast_while_a_worker_is_about_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(validated(TrainJob, job(tmp_path, checkpoint_every=5)))
    folder, done = RunFolder(task.folder), 0
    folder.begin({})
    seen: list[int] = []

    def look() -> None:
        nonlocal done
        done += 1
        state = folder.latest()
        seen.append(0 if state is None else state["step"])

    monkeypatch.setattr(loop, "HURRY", 0.0)
    loop.train(task, Group(), look, lambda: done in (1, 2))
    assert seen == [0, 2, 3, 3, 5, 6]
