"""Workers that take a step together: a problem that one of them meets ends all, and none waits for it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch.distributed as dist
from torch import nn

from pipeline.jobfile import validated
from pipeline.training.group import Group
from pipeline.training.loop import scores, train
from pipeline.training.run_folder import RunFolder
from pipeline.training.validation import Validation
from pipeline.training_job import TrainJob
from pipeline.training_task import task_of
from tests.training.test_training import job
from tests.training.test_validation import made, network

WORLD = 2


def joined(folder: Path, runs: Sequence[Callable[[Group], object]], rank: int) -> list[str]:
    """What each of `runs` returns to a worker, or the ValueError that it raises."""
    dist.init_process_group("gloo", f"file://{folder}/meet", timedelta(seconds=20), WORLD, rank)
    found = []
    for run in runs:
        try:
            found.append(str(run(Group())))
        except ValueError as error:
            found.append(f"ValueError: {error}")
    return found


def on_workers(folder: Path, *runs: Callable[[Group], object]) -> list[list[str]]:
    """For each of `runs` what the workers, each in a process of its own, have of it."""
    with ProcessPoolExecutor(WORLD, multiprocessing.get_context("spawn")) as pool:
        return [list(found) for found in zip(*pool.map(partial(joined, folder, runs), range(WORLD)), strict=True)]


def mean_iou(held: Validation, module: nn.Module, group: Group) -> float | None:
    return scores(held, module, group).mean_iou


def own(ranks: set[int], group: Group) -> int:
    """A number that each worker makes, but for those with a problem."""

    def make() -> int:
        if group.rank in ranks:
            raise ValueError(f"worker {group.rank}")
        return 10 + group.rank

    return group.each(make)


def test_a_file_that_a_worker_cannot_read_ends_all(tmp_path: Path) -> None:
    """A held-out image that is damaged, a label that is not seen, and an image to train on that is not."""
    module, held = network("unet"), []
    for name in ("whole", "cut", "gone"):
        (tmp_path / name).mkdir()
        held.append(made(tmp_path / name, module))
    assert held[1].tiles[-1][0] == 2  # which the second worker reads
    image, label = tmp_path / "cut" / "2.npy", tmp_path / "gone" / "2_label.npy"
    image.write_bytes(image.read_bytes()[:2000])
    label.unlink()
    task = task_of(validated(TrainJob, job(tmp_path, steps=1, batch="image", workers=2)))
    RunFolder(task.folder).begin({})
    for pair in task.pairs:
        Path(pair.image).unlink()
    alone = str(mean_iou(held[0], module, Group()))
    runs = *(partial(mean_iou, one, module) for one in held), partial(train, task)
    whole, cut, gone, trained = on_workers(tmp_path, *runs)
    assert whole == [alone] * WORLD
    assert cut[0] == cut[1] and cut[0].startswith(f"ValueError: {image}")
    assert gone == [f"ValueError: no such file: {label}"] * WORLD
    assert trained == [f"ValueError: step 1: no such file: {task.pairs[0].image}"] * WORLD


def test_all_workers_raise_what_the_first_with_a_problem_met(tmp_path: Path) -> None:
    none, first, second, both = on_workers(tmp_path, *(partial(own, ranks) for ranks in (set(), {0}, {1}, {0, 1})))
    assert none == ["10", "11"]
    assert first == both == ["ValueError: worker 0"] * WORLD and second == ["ValueError: worker 1"] * WORLD
