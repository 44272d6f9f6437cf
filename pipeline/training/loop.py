"""The training loop, the same in this process and on every worker of a cluster."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from pipeline.network.builtin import build
from pipeline.network.folder import save_network
from pipeline.network.loading import load_network
from pipeline.tiling.geometry import ReceptiveField
from pipeline.training.gradient import Sums, accumulate, reduce
from pipeline.training.group import Group
from pipeline.training.loss import CrossEntropy
from pipeline.training.metrics import metrics
from pipeline.training.pairs import Pair
from pipeline.training.reading import Reader
from pipeline.training.run_folder import RunFolder
from pipeline.training.sampling import Kind, Sampler, cut
from pipeline.training.statistics import Statistics
from pipeline.training.validation import Validation

SECONDS = 60.0
"""Between checkpoints where no number of steps is asked for: what a death costs at most."""
VALIDATIONS = 20
"""At most so many in a run, where its epochs are shorter."""
STACK = 64
"""Patches of one shape that go through the network together."""

State = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """All that a worker needs to train; it pickles small."""

    folder: str
    architecture: str
    arguments: Mapping[str, Any]
    normalise: Mapping[str, Any]
    start: str | None
    """A network folder or a built-in whose weights to start from; None: random ones."""
    card: Mapping[str, Any]
    """What the resulting network's card says beside that."""
    field: ReceptiveField
    pairs: Sequence[Pair]
    validation: Validation | None
    channels: int
    classes: int
    ignore: int | None
    binary: bool
    kind: Kind
    core: tuple[int, int]
    keep: float
    batch: int | Literal["image"]
    loss: CrossEntropy
    optimizer: Mapping[str, Any]
    steps: int
    precision: str
    seed: int
    freeze_norm: bool = False
    clip: float | None = None
    checkpoint_every: int | None = None

    def sampler(self) -> Sampler:
        cores = [cut(pair.size, self.field, self.kind, self.core, pair.region) for pair in self.pairs]
        return Sampler(cores, self.batch, keep=self.keep, seed=self.seed)

    def reader(self) -> Reader:
        how = {"channels": self.channels, "classes": self.classes, "ignore": self.ignore, "binary": self.binary}
        return Reader(self.pairs, **how)  # type: ignore[arg-type]


def train(task: Task, group: Group, look: Callable[[], None] = lambda: None) -> None:
    """Trains from the last checkpoint on to the last step, and writes the network folder; every worker runs this.

    `look` is called after every step.

    Raises ValueError, on all workers, for what the user can mend.
    """
    torch.set_num_threads(1)
    folder, first = RunFolder(task.folder), group.rank == 0
    with folder.held() if first else nullcontext():
        state = group.share((folder.latest() or begin(task)) if first else None)
        module = network(task, state["module"], group.device)
        optimizer = optimizer_of(module, task.optimizer)
        if state["optimizer"] is not None:
            optimizer.load_state_dict(state["optimizer"])
        sampler = task.sampler()
        reader = Reader(
            task.pairs, channels=task.channels, classes=task.classes, ignore=task.ignore, binary=task.binary
        )
        statistics = Statistics(module)
        kept = sampler.kept if task.keep < 1 else None
        together = STACK if task.kind == "patches" and not statistics.norms else 1
        validation = None if task.validation is None else replace(task.validation, device=group.device)
        best: State | None = state["best"]
        if first:
            folder.rewind(state["step"])
        saved = time.monotonic()

        for step in range(state["step"] + 1, task.steps + 1):
            began = time.monotonic()
            reads = reader.reads(sampler.step(step - 1)[group.rank :: group.world])
            optimizer.zero_grad()
            statistics.begin()
            try:
                sums = accumulate(module, reads, task.loss, kept=kept, keep=task.keep, together=together)
            except ValueError as error:  # a file that cannot be read, a label that is none: no other try would help
                sums = Sums(problem=str(error))
            sums = reduce(module, sums, group.add)
            statistics.end(group.add)
            check(sums, step, group)
            if task.clip is not None:
                nn.utils.clip_grad_norm_(module.parameters(), task.clip)
            if sums.weight > 0:  # a step without a label moves nothing, momentum included
                optimizer.step()
            if first:
                mean = sums.loss / sums.weight if sums.weight else None
                rate = optimizer.param_groups[0]["lr"]
                spent = round(time.monotonic() - began, 4)
                folder.log(step=step, loss=mean, lr=rate, seconds=spent, pixels=sums.pixels)
            if validation is not None and (step % validate_every(task, sampler) == 0 or step == task.steps):
                best = validate(validation, module, best, step, folder, group)
            if first and (step == task.steps or is_due(task, step, saved)):
                folder.save(state_of(step, module, optimizer, best))
                saved = time.monotonic()
            look()
        if first:
            finish(task, folder, module, best)


def begin(task: Task) -> State:
    """The state before the first step: weights of the network to start from, or random ones from the seed."""
    if task.start is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)
            module = build(task.architecture, task.arguments)
    else:
        module = load_network(task.start).module
    return {"step": 0, "module": module.state_dict(), "optimizer": None, "best": None}


def network(task: Task, weights: Mapping[str, Any], device: str) -> nn.Module:
    """The module with those weights, in training mode; its batch norm in eval mode where it is frozen."""
    module = build(task.architecture, task.arguments, dict(task.normalise))  # type: ignore[arg-type]
    module.load_state_dict(weights)
    module = module.to(device, torch.float64 if task.precision == "float64" else torch.float32).train()
    for part in module.modules():
        if task.freeze_norm and isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
    return module


def optimizer_of(module: nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimiser of these settings: name, lr, weight_decay, and momentum for sgd."""
    parameters, given = list(module.parameters()), {"lr": settings["lr"], "weight_decay": settings["weight_decay"]}
    if settings["name"] == "sgd":
        return torch.optim.SGD(parameters, momentum=settings["momentum"], **given)
    kind = torch.optim.Adam if settings["name"] == "adam" else torch.optim.AdamW
    return kind(parameters, **given)


def check(sums: Sums, step: int, group: Group) -> None:
    """Raises ValueError, on all workers, where one of them met a problem or the loss is no number any more."""
    if sums.failed:
        raise ValueError(next(problem for problem in group.gather(sums.problem) if problem))
    if not math.isfinite(sums.loss):
        raise ValueError(f"step {step}: the loss is {sums.loss}: lower optimizer.lr, or look at normalise")


def validate_every(task: Task, sampler: Sampler) -> int:
    """Steps from one validation to the next: an epoch, or more where it is short."""
    return max(math.ceil(len(sampler) / sampler.batch), math.ceil(task.steps / VALIDATIONS))


def is_due(task: Task, step: int, saved: float) -> bool:
    if task.checkpoint_every is not None:
        return step % task.checkpoint_every == 0
    return time.monotonic() - saved > SECONDS


def validate(
    validation: Validation, module: nn.Module, best: State | None, step: int, folder: RunFolder, group: Group
) -> State | None:
    """Scores the held-out images, of which each worker predicts a share, and keeps the weights where it is the best."""
    matrix = torch.from_numpy(validation.confusion(module, group.rank, group.world))
    group.add(matrix)
    found = metrics(matrix.sum(dim=0).numpy())
    score = -1.0 if found.mean_iou is None else found.mean_iou
    if group.rank == 0:
        folder.log(step=step, validation=found.to_json())
        if best is None or score > best["score"]:
            best = {"score": score, "step": step, "module": copy.deepcopy(module.state_dict())}
    return best


def state_of(step: int, module: nn.Module, optimizer: torch.optim.Optimizer, best: State | None) -> State:
    return {"step": step, "module": module.state_dict(), "optimizer": optimizer.state_dict(), "best": best}


def finish(task: Task, folder: RunFolder, module: nn.Module, best: State | None) -> None:
    """Writes the network: the best by validation, or the last where nothing is held out."""
    if best is not None:
        module.load_state_dict(best["module"])
    step = task.steps if best is None else best["step"]
    scores = next((line["validation"] for line in reversed(folder.lines())
                   if line["step"] == step and "validation" in line), None)  # fmt: skip
    trained = {"step": step, "validation": scores} if scores else {"step": step}
    card = {**task.card, "training": {**task.card.get("training", {}), **trained}}
    if task.normalise:
        card["normalise"] = dict(task.normalise)
    save_network(folder.path, task.architecture, task.arguments, module, **card)
