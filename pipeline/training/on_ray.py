"""Training on the workers of a Ray cluster, through Ray Train: it places them, and starts all anew when one dies.

What a new attempt begins from is the run folder's last checkpoint, which every attempt and every later command finds
in the same way; Ray's own checkpoints are not used, as they come no faster than its controller asks for them.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import uuid4

from pipeline.storage.disk import OutputError
from pipeline.training.group import Group
from pipeline.training.loop import train
from pipeline.training.run_folder import CHECKPOINTS
from pipeline.training.task import Task

DEATHS = 8
"""Deaths of workers that a run survives."""
REFUSED = "refused.txt"
"""Beside the checkpoints: what the workers found that the user can mend, which no new attempt would change."""
PLACED = 180.0
"""Seconds in which the workers must have found room, which nodes that are added on demand take long to give."""
SOON = 10.0
"""The same where fewer would do. For up to 20 seconds Ray counts on the room of a node that it has lost."""
NOTICE = 2.0
"""Seconds between two looks at which nodes are about to go."""
LOOK = 0.5
"""Seconds between two looks at how far the run is."""


def train_on_ray(
    task: Task, workers: int | tuple[int, int], *, gpus: bool = False, look: Callable[[], None] = lambda: None
) -> None:
    """Trains with so many workers of one CPU each, and a GPU if `gpus`, in the cluster that this process has joined.

    workers: a number, or (least, most) of which there are as many as the cluster has room for: fewer go on where some
    were lost, and more from the last checkpoint once there is room. `look` is called now and then meanwhile. The folder
    must be one that every node sees.
    Raises ValueError for what the user can mend, RuntimeError where workers die too often.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    placed = SOON if isinstance(workers, tuple) else PLACED
    # Its watcher of nodes that go, an actor of its own, would see what each worker sees by `notice`.
    settings = {"WORKER_GROUP_START_TIMEOUT_S": placed, "HEALTH_CHECK_INTERVAL_S": 0.5, "ENABLE_PREEMPTION_WATCHER": 0}
    for name, value in settings.items():
        os.environ.setdefault(f"RAY_TRAIN_{name}", str(value))
    checkpoints = Path(task.folder) / CHECKPOINTS
    (checkpoints / REFUSED).unlink(missing_ok=True)
    for left in checkpoints.glob("ray-*"):
        shutil.rmtree(left, ignore_errors=True)
    name = f"ray-{uuid4().hex}"
    trainer = TorchTrainer(
        partial(work, task),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name=name,
            storage_path=str(checkpoints),
            failure_config=FailureConfig(max_failures=DEATHS, controller_failure_limit=int(DEATHS * PLACED / placed)),
        ),
    )
    try:
        _fitted(trainer.fit, look)
    finally:
        shutil.rmtree(checkpoints / name, ignore_errors=True)
    if (checkpoints / REFUSED).exists():
        raise ValueError((checkpoints / REFUSED).read_text())


def work(task: Task) -> None:
    """What each worker runs."""
    from ray import get_runtime_context
    from ray.train.torch import get_device

    group, refused = Group(str(get_device())), Path(task.folder) / CHECKPOINTS / REFUSED
    if any(group.gather(refused.exists())):  # in an attempt that was the first worker's alone to end
        return
    try:
        nodes = set(group.gather(get_runtime_context().get_node_id()))
        train(task, group, leaving=notice(nodes))
    except ValueError as error:  # on all workers; raised, it would be tried again
        if group.rank == 0:
            refused.write_text(str(error), errors="backslashreplace")
        if isinstance(error, OutputError):  # on the first alone, for which the others would wait: Ray begins anew
            raise


def notice(nodes: set[str]) -> Callable[[], bool]:
    """What tells whether one of these nodes is about to be taken away, as spot instances are; it asks now and then."""
    import ray

    asked, found = time.monotonic(), False

    def leaving() -> bool:
        nonlocal asked, found
        if time.monotonic() - asked > NOTICE:
            asked, found = time.monotonic(), not nodes.isdisjoint(ray._private.state.state.get_draining_nodes())
        return found

    return leaving


def _fitted(fit: Callable[[], object], look: Callable[[], None]) -> None:
    """Runs `fit` in a thread, where Ray leaves signals to us, which end the main thread and so the run."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            fit()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(LOOK)
        look()
    if raised:
        raise RuntimeError(" ".join(str(raised[0]).split())) from raised[0]
