"""A training run, from its job to the network folder and the report: where it is trained, and how it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.engines.machine import usable_cpus
from pipeline.network.loading import choose_device, load_network
from pipeline.network.names import CARD
from pipeline.reporting.examples import find_examples
from pipeline.reporting.report import REPORT, write_report
from pipeline.reporting.sampling_map import sampling_maps
from pipeline.reporting.tracking import Tracking, require
from pipeline.storage.location import is_url
from pipeline.training.group import Group
from pipeline.training.loop import train
from pipeline.training.run_folder import BEGINNING, RunFolder, flat
from pipeline.training.task import Task
from pipeline.training_job import TrainJob
from pipeline.training_task import task_of


@dataclass(frozen=True)
class Trained:
    """A finished training run."""

    path: str
    """The network folder."""
    metrics: dict[str, Any]
    """`step` of the weights, `loss` of the last step, the scores by validation, and as `test` those of a test."""
    resumed: int = 0
    """Steps that earlier runs had done."""
    already: bool = False
    """Whether nothing was left to do, the report included."""


@torch.random.fork_rng(devices=[])
def train_job(job: TrainJob, look: Callable[[dict[str, Any]], None]) -> Trained:
    """Trains as the job says, from where an earlier run of it ended; `look` is given the log's last line now and then,
    and first what batch: auto came to.


    Raises ValueError for what the user can mend, RuntimeError where workers die too often.
    """
    if is_url(job.run):
        raise ValueError(f"run {job.run}: give a folder that every worker sees, not a URL")
    folder = RunFolder(job.run)
    settings = job.model_dump(mode="json")
    if job.mlflow:
        require()
    folder.check(settings)  # said before anything is read
    if folder.finished and (folder.path / REPORT).is_file():
        return replace(_trained(folder, job.steps), already=True)
    task = task_of(job)
    with folder.driven():  # not before: a job with a mistake is to be mended under the same name
        folder.begin(settings)
        return _go_on(job, task, folder, look)


def _go_on(job: TrainJob, task: Task, folder: RunFolder, look: Callable[[dict[str, Any]], None]) -> Trained:
    """Trains from the last checkpoint to the end, and writes the report."""
    state = folder.latest()
    if state is not None and state["data"] != task.data:
        raise ValueError(f"run {job.run} was begun with other images or labels than there are now: give another run")
    before = job.steps if folder.finished else 0 if state is None else int(state["step"])
    with ExitStack() as stack:
        board = tracking = None
        if job.tensorboard:
            from pipeline.reporting.tensorboard import Board

            board = Board(folder.path)
        if job.mlflow:
            settings = flat(job.model_dump(mode="json", exclude={"mlflow"}))
            tracking = stack.enter_context(Tracking(folder.path, job.mlflow, settings))
        shown = BEGINNING

        def report() -> None:
            nonlocal shown
            lines, shown = folder.lines_from(shown)
            if board is not None:
                board.add(lines)
            if tracking is not None:
                tracking.add(lines)
            for line in [line for line in lines if "batch" in line] + [line for line in lines if "loss" in line][-1:]:
                look(line)

        if not folder.finished:
            _train(task, job.workers, report)
        report()  # what came last, a test among it
        task = replace(task, **passes_done(folder))
        held = task.validation
        best, worst = ([], []) if held is None else find_examples(held, load_network(job.run).module)
        if board is not None:
            board.show({"best": best, "worst": worst}, job.steps)
            board.close()
        written = write_report(folder.path, best, worst, sampling_maps(task))
        if tracking is not None:
            tracking.keep([written, folder.path / CARD])
    return _trained(folder, before)


def _train(task: Task, workers: int | tuple[int, int], report: Callable[[], None]) -> None:
    """In this process, or on so many workers."""
    if workers == 0:
        _train_here(task, report)
    else:
        _train_on_ray(task, workers, report)


def _train_here(task: Task, report: Callable[[], None]) -> None:
    """In this process, whose torch threads are as before afterwards."""
    threads = torch.get_num_threads()
    try:
        train(task, Group(choose_device("auto")), report)
    finally:
        torch.set_num_threads(threads)


def _train_on_ray(task: Task, workers: int | tuple[int, int], report: Callable[[], None]) -> None:
    """In the Ray cluster that is there, or in one of our own."""
    from pipeline.engines.ray_cluster import connected, no_room, view
    from pipeline.training.on_ray import train_on_ray

    least, most = workers if isinstance(workers, tuple) else (workers, workers)
    with connected(None, min(most, max(least, usable_cpus()))):
        import ray

        gpus = ray.cluster_resources().get("GPU", 0) >= least
        needs = {"CPU": 1.0, "GPU": float(gpus)}
        seen = view(needs)
        if not seen.held and not seen.grows:
            raise no_room(needs)
        if seen.held < least and not seen.grows:
            raise ValueError(f"workers={workers}: the cluster holds {seen.held} of one CPU each")
        train_on_ray(task, workers, gpus=gpus, look=report)


def passes_done(folder: RunFolder) -> dict[str, Any]:
    """What a finished run's batch came to."""
    training = load_network(str(folder.path)).card["training"]
    return {"batch": training["batch"], "together": training["together"]}


def _trained(folder: RunFolder, before: int) -> Trained:
    """What the card and the log say."""
    card, lines = load_network(str(folder.path)).card, folder.lines()
    trained: Mapping[str, Any] = card["training"]
    loss = next((line["loss"] for line in reversed(lines) if "loss" in line), None)  # whatever became of the log
    return Trained(str(folder.path), {"step": trained["step"], "loss": loss,
                                      **(trained.get("validation") or {}),
                                      **({"test": trained["test"]} if "test" in trained else {})}, before)  # fmt: skip
