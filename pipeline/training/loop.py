"""The training loop, the same in this process and on every worker of a cluster."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pipeline.network.builtin import build
from pipeline.network.folder import save_network
from pipeline.network.loading import load_network
from pipeline.training.fitting import fit
from pipeline.training.gradient import Read, Sums, batch_gradient
from pipeline.training.group import Group
from pipeline.training.metrics import Metrics, metrics
from pipeline.training.passes import passes
from pipeline.training.reading import Reader
from pipeline.training.run_folder import RunFolder
from pipeline.training.sampling import Sampler, dealt
from pipeline.training.statistics import Statistics
from pipeline.training.task import Task
from pipeline.training.validation import Validation

SECONDS = 60.0
"""Between checkpoints where no number of steps is asked for: what a death costs at most."""
HURRY = 5.0
"""The same while a worker is about to be taken away."""
VALIDATIONS = (10, 20)
"""At least, and at most, so many in a run, where its epochs are longer, or shorter."""

State = dict[str, Any]


def train(
    task: Task, group: Group, look: Callable[[], None] = lambda: None, leaving: Callable[[], bool] = lambda: False
) -> None:
    """Trains from the last checkpoint on to the last step, and writes the network folder; every worker runs this.

    `look` is called after every step, and `leaving` by the first worker: whether one is about to be taken away, until
    when checkpoints come fast. Raises ValueError, on all workers, for what the user can mend.
    """
    torch.set_num_threads(1)
    folder, first = RunFolder(task.folder), group.rank == 0
    with folder.held() if first else nullcontext():
        state = group.share(group.each(lambda: (folder.latest() or begin(task)) if first else None))
        group.each(lambda: folder.rewind(state["step"]) if first else None)
        task = decided(task, state, folder, group)
        module = network(task, state["module"], group.device)
        average = None if task.ema is None else network(task, state["average"] or state["module"], group.device)
        optimizer = optimizer_of(module, task.optimizer)
        if state["optimizer"] is not None:
            optimizer.load_state_dict(state["optimizer"])
        sampler, reader, statistics = task.sampler(), task.reader(), Statistics(module)
        validation = None if task.validation is None else replace(task.validation, device=group.device)
        best: State | None = state["best"]
        saved = time.monotonic()

        for step in range(state["step"] + 1, task.steps + 1):
            began = time.monotonic()
            if statistics.norms and task.freeze_norm is not None and step > task.freeze_norm:
                statistics = frozen(module)
            rate = task.optimizer["lr"] * task.schedule.factor(step, task.steps)
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate
            sums = gradient(task, module, sampler, reader, statistics, step, group)
            if task.clip is not None:
                nn.utils.clip_grad_norm_(module.parameters(), task.clip)
            if sums.weight > 0:  # a step without a label moves nothing, momentum included
                optimizer.step()
            if average is not None and task.ema is not None:
                follow(average, module, kept_of(task.ema, step))
            if first:
                spent = round(time.monotonic() - began, 4)
                told = {"loss": sums.value(task.loss), "lr": rate, "seconds": spent, "pixels": sums.pixels}
                folder.log(step=step, **told, workers=group.world)
            if validation is not None and (step % validate_every(task, sampler) == 0 or step == task.steps):
                best = validate(validation, average or module, best, step, folder, group)
            if first and (step == task.steps or is_due(task, step, saved, leaving())):
                folder.save(state_of(task, step, module, average, optimizer, best))
                saved = time.monotonic()
            look()
        finish(task, folder, average or module, best, group)


def gradient(
    task: Task, module: nn.Module, sampler: Sampler, reader: Reader, statistics: Statistics, step: int, group: Group
) -> Sums:
    """Puts the gradient of the step's batch into the parameters, the same on all workers.

    Raises ValueError, on all workers, where one met a problem, or loss or gradient are no numbers any more.
    """
    grouped = bool(statistics.norms)  # which see all of a pass, so it is to be the same on any number of workers
    samples = dealt(sampler.step(step - 1), group.rank, group.world, task.together if grouped else 1)
    kept = sampler.kept if task.keep < 1 else None

    def reads() -> Iterable[Read]:
        found = reader.reads(samples)
        return found if task.augment is None else task.augment.views(found, task.field)

    statistics.begin()
    with passes(module, statistics, mixed=task.precision == "bfloat16", recompute=task.checkpoint_activations):
        sums = batch_gradient(module, reads, task.loss, group.add, kept=kept, keep=task.keep,
                              together=task.together, grouped=grouped)  # fmt: skip
    statistics.end(group.add)
    if sums.failed:
        raise ValueError(f"step {step}: {next(problem for problem in group.gather(sums.problem) if problem)}")
    if not math.isfinite(loss := sums.value(task.loss) or 0.0):
        raise ValueError(f"step {step}: the loss is {loss}: lower optimizer.lr, or look at normalise")
    finite = [p.grad.isfinite().all() for p in module.parameters() if p.grad is not None]
    if finite and not torch.stack(finite).all():  # asked once, as a GPU would be waited for each time
        raise ValueError(f"step {step}: the gradient is not finite, though the loss is: look for pixels beyond "
                         "float32, also where labels are ignored, or lower optimizer.lr")  # fmt: skip
    return sums


def begin(task: Task) -> State:
    """The state before the first step: weights of the network to start from, or random ones from the seed."""
    if task.start is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)
            module = build(task.architecture, task.arguments)
    else:
        module = load_network(task.start).module
    state = {"step": 0, "module": module.state_dict(), "average": None, "optimizer": None, "best": None}
    return {**state, "data": task.data, "passes": None}


def decided(task: Task, state: State, folder: RunFolder, group: Group) -> Task:
    """The task with its batch in numbers: of batch "auto" those of the run's beginning, which the log says.

    Raises ValueError, on all workers, where not even one sample fits the memory.
    """
    if task.batch != "auto":
        return task
    found = state.get("passes")
    if found is None:
        found = group.share(group.each(lambda: tried(task, state, folder, group) if group.rank == 0 else None))
    return replace(task, **found)


def tried(task: Task, state: State, folder: RunFolder, group: Group) -> dict[str, int]:
    """What fits the memory here, in numbers, which the log says. Raises ValueError where not even one sample does."""
    module = network(task, state["module"], group.device)
    if task.freeze_norm == 0:
        frozen(module)
    together, used = fit(task, module, group.device, group.world)
    found = {"batch": together * group.world, "together": together}
    folder.log(step=0, **found, megabytes=round(used / 1e6))
    return found


def network(task: Task, weights: Mapping[str, Any], device: str) -> nn.Module:
    """The module with those weights, in training mode."""
    module = build(task.architecture, task.arguments, dict(task.normalise))  # type: ignore[arg-type]
    module.to(device, torch.float64 if task.precision == "float64" else torch.float32)
    module.load_state_dict(weights)  # not before: into float32 it would round float64
    return module.train()


def frozen(module: nn.Module) -> Statistics:
    """Has the module's batch norm keep its statistics from now on: there are none left to move."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
    return Statistics(module)


def optimizer_of(module: nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimiser of these settings: name, lr, weight_decay, and momentum for sgd."""
    parameters, given = list(module.parameters()), {"lr": settings["lr"], "weight_decay": settings["weight_decay"]}
    if settings["name"] == "sgd":
        return torch.optim.SGD(parameters, momentum=settings["momentum"], **given)
    kind = torch.optim.Adam if settings["name"] == "adam" else torch.optim.AdamW
    return kind(parameters, **given)


def kept_of(ema: float, step: int) -> float:
    """How much of the running mean a step keeps: less at first, or the random weights of the beginning would stay."""
    return min(ema, (1 + step) / (10 + step))


def follow(average: nn.Module, module: nn.Module, keep: float) -> None:
    """Moves the running mean of the weights towards the module's; counters are copied."""
    with torch.no_grad():
        for mean, value in zip(average.state_dict().values(), module.state_dict().values(), strict=True):
            mean.copy_(torch.lerp(value, mean, keep) if mean.is_floating_point() else value)


def validate_every(task: Task, sampler: Sampler) -> int:
    """Steps from one validation to the next: an epoch, or more where it is short, or fewer where it is long."""
    most, least = (math.ceil(task.steps / times) for times in VALIDATIONS)
    return max(least, min(most, math.ceil(len(sampler) / sampler.batch)))


def is_due(task: Task, step: int, saved: float, leaving: bool) -> bool:
    if task.checkpoint_every is not None and step % task.checkpoint_every == 0:
        return True
    limit = HURRY if leaving else SECONDS if task.checkpoint_every is None else math.inf
    return time.monotonic() - saved > limit


def validate(
    validation: Validation, module: nn.Module, best: State | None, step: int, folder: RunFolder, group: Group
) -> State | None:
    """Scores the held-out images, and keeps the weights where it is the best."""
    found = scores(validation, module, group)
    score = -1.0 if found.mean_iou is None else found.mean_iou
    if group.rank == 0:
        folder.log(step=step, validation=found.to_json())
        if best is None or score > best["score"]:
            best = {"score": score, "step": step, "module": copy.deepcopy(module.state_dict())}
    return best


def scores(held: Validation, module: nn.Module, group: Group) -> Metrics:
    """Of held-out images, of which each worker predicts a share.

    Raises ValueError, on all workers, where one meets an image or a label that cannot be read.
    """
    matrix = torch.from_numpy(group.each(lambda: held.confusion(module, group.rank, group.world)))
    group.add(matrix)
    return metrics(matrix.sum(dim=0).numpy())


def state_of(
    task: Task,
    step: int,
    module: nn.Module,
    average: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    best: State | None,
) -> State:
    return {
        "step": step,
        "module": module.state_dict(),
        "average": None if average is None else average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": best,
        "data": task.data,
        "passes": {"batch": task.batch, "together": task.together},
    }


def finish(task: Task, folder: RunFolder, module: nn.Module, best: State | None, group: Group) -> None:
    """Writes the network and its test: the best by validation, or the last where nothing is held out."""
    tested = None
    if task.test is not None:
        best = group.share(best)  # which the first worker alone knows to the end
    if best is not None:
        module.load_state_dict(best["module"])
    if task.test is not None:
        tested = scores(replace(task.test, device=group.device), module, group).to_json()
    if group.rank > 0:
        return
    step = task.steps if best is None else best["step"]
    if tested is not None:
        folder.log(step=step, test=tested)
    validated = next((line["validation"] for line in reversed(folder.lines())
                      if line["step"] == step and "validation" in line), None)  # fmt: skip
    found = {"validation": validated, "test": tested}
    trained = {"step": step} | {name: values for name, values in found.items() if values}
    passed = {"batch": task.batch, "together": task.together}
    card = {**task.card, "training": {**task.card.get("training", {}), **passed, **trained}}
    if task.normalise:
        card["normalise"] = dict(task.normalise)
    save_network(folder.path, task.architecture, task.arguments, module, **card)
