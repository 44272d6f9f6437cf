"""From a training job to a task: what is checked and refused before anything is trained, and what workers are told."""

from __future__ import annotations

import logging
import math
import platform
import subprocess
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline import planning
from pipeline.analysis import Analysis
from pipeline.config import options
from pipeline.network.builtin import build
from pipeline.network.loading import Network, load_network
from pipeline.network.normalise import check_normalisation
from pipeline.storage.image import open_image
from pipeline.tiling.geometry import ReceptiveField
from pipeline.training.augmentation import Augmentation
from pipeline.training.finding import find_pairs
from pipeline.training.loss import CrossEntropy, Dice, Focal, Loss, Total
from pipeline.training.pairs import Pair, Split, scored
from pipeline.training.run_folder import FREE
from pipeline.training.sampling import Cores, cut
from pipeline.training.task import Schedule, Task
from pipeline.training.validation import Validation
from pipeline.training_job import NewNetwork, TrainJob

log = logging.getLogger("pipeline")

GHOST = 4
"""Samples by which batch norm normalises together: a small batch's worth, whatever the batch and the workers, which is
known as ghost batch norm (Hoffer et al. 2017, arXiv:1705.08741)."""
STACK = 64
"""Patches that go through the network together."""


def task_of(job: TrainJob) -> Task:
    """All that workers need. Raises ValueError for a network, data or options that do not fit each other."""
    network = network_of(job)
    asked = options(precision=stored(job), device="cpu", mode="blend")
    analysis = Analysis(network, asked)  # in this mode, a network that is not local is no error yet
    core = (job.sampling.core,) * 2 if isinstance(job.sampling.core, int) else job.sampling.core
    augment = augmentation_of(job, analysis.channels)
    field = analysis.field if augment is None else augment.field(analysis.field)
    cut(field.alignment, field, job.sampling.kind, core)
    learns = job.freeze_norm is not True and any(isinstance(part, _BatchNorm) for part in network.module.modules())
    if learns and not job.freeze_norm:
        log.warning("batch norm normalises by the samples of a pass, so a step is not the whole images': give "
                    "freeze_norm: 200 to end that after so many steps, or norm: none")  # fmt: skip
    weights = job.class_weights
    if weights is not None and len(weights) != (named := scored(analysis.classes)):
        raise ValueError(f"class_weights={list(weights)}: the network tells {named} classes apart, give one for each")
    held = [part for part in ("validation", "test") if getattr(job.data, part) is not None]
    if held and not analysis.field.is_local:
        raise ValueError(f"data.{held[0]}: the network is not local, so it cannot be scored tile by tile: leave it out")
    split = split_of(job, analysis, field, core)
    check_classes(labelled(split), weights)
    return Task(
        folder=job.run,
        architecture=network.card["architecture"],
        arguments=network.card["arguments"],
        normalise=network.card.get("normalise") or {},
        start=None if isinstance(job.network, NewNetwork) else job.network,
        card=card_of(job, network, split),
        field=field,
        augment=augment,
        pairs=split.train,
        validation=_scored(job, split.validation, network, analysis),
        test=_scored(job, split.test, network, analysis),
        channels=analysis.channels,
        classes=analysis.classes,
        ignore=job.data.ignore,
        binary=job.data.binary,
        kind=job.sampling.kind,
        core=core,
        keep=job.sampling.loss_keep,
        batch=job.batch,
        together=passes_of(job, learns),
        memory=job.memory,
        loss=loss_of(job, analysis.classes),
        optimizer=job.optimizer.model_dump(),
        steps=job.steps,
        precision=job.precision,
        seed=job.seed,
        cores=split.cores,
        balanced=job.sampling.balanced,
        freeze_norm=None if job.freeze_norm is False else int(job.freeze_norm) - (job.freeze_norm is True),
        clip=job.clip,
        ema=job.ema,
        schedule=Schedule() if job.schedule is None else Schedule(job.schedule.name, job.schedule.warmup),
        checkpoint_every=job.checkpoint_every,
        checkpoint_activations=job.checkpoint_activations,
    )


def passes_of(job: TrainJob, learns: bool) -> int:
    """Samples of one shape that go through the network together, at most.

    Batch norm that learns wants several, by which it normalises; patches are so small that several cost little more
    than one; else one, as memory grows with them and little is gained.
    """
    together = job.together or (GHOST if learns else STACK if job.sampling.kind == "patches" else 1)
    most = job.workers if isinstance(job.workers, int) else job.workers[1]
    if learns and isinstance(job.batch, int):
        samples = max(1, round(job.batch / job.sampling.loss_keep))  # as the sampler has it
        if (busy := math.ceil(samples / together)) < most:
            log.warning("batch=%s: batch norm takes %s samples together, so only %s of %s workers have any to train "
                        "on: give a larger batch, or a smaller together", job.batch, together, busy, most)  # fmt: skip
    return together


def split_of(job: TrainJob, analysis: Analysis, field: ReceptiveField, core: tuple[int, int]) -> Split:
    """The pairs to train on, whose labels are counted by cores, and those held out. Raises ValueError for bad ones."""

    def cores(pair: Pair) -> Cores:
        return cut(pair.size, field, job.sampling.kind, core, pair.region)

    by_core = None if job.sampling.kind == "patches" else cores  # of single outputs, a table would be the labels again
    stained = job.augment is not None and job.augment.stain > 0
    return find_pairs(**job.data.arguments(), field=field, channels=analysis.channels,
                      classes=analysis.classes, seed=job.seed, stained=stained, cores=by_core)  # fmt: skip


def labelled(split: Split) -> list[int]:
    """Outputs of each class that are trained on."""
    return [sum(column) for column in zip(*(pair.counts for pair in split.train), strict=True)]


def check_classes(counts: Sequence[int], weights: Sequence[float] | None) -> None:
    """Warns of classes that are in no label. Raises ValueError where no class that is in one counts."""
    if weights is not None and not any(count and weight for count, weight in zip(counts, weights, strict=True)):
        raise ValueError(f"class_weights={list(weights)}: what is labelled has weight 0, so nothing would be trained: "
                         "give a class that the labels have a weight above 0")  # fmt: skip
    if missing := [number for number, count in enumerate(counts) if not count]:
        log.warning("nothing that is trained on is labelled %s: the network cannot learn it; see data.ignore and "
                    "data.binary if it should be there", " or ".join(map(str, missing)))  # fmt: skip


def augmentation_of(job: TrainJob, channels: int) -> Augmentation | None:
    """The views to train on. Raises ValueError for those of stained tissue where images are not RGB."""
    if job.augment is None:
        return None
    if job.augment.stain and channels != 3:
        raise ValueError(f"augment.stain={job.augment.stain}: is for RGB, and the network takes {channels} channels")
    return Augmentation(**job.augment.model_dump(), seed=job.seed)


def loss_of(job: TrainJob, classes: int) -> Loss:
    """What a network of so many outputs is trained by."""
    given = {job.loss: 1.0} if isinstance(job.loss, str) else job.loss.model_dump(exclude_none=True)
    focal = given.get("focal", 1.0)
    gamma = {"gamma": focal["gamma"]} if isinstance(focal, dict) else {}
    made: dict[str, Loss] = {
        "cross_entropy": CrossEntropy(job.class_weights),
        "dice": Dice(job.class_weights, scored(classes)),
        "focal": Focal(job.class_weights, **gamma),
    }
    factors = {name: factor["weight"] if isinstance(factor, dict) else factor for name, factor in given.items()}
    if [*factors.values()] == [1.0]:
        return made[next(iter(factors))]
    return Total(job.class_weights, [(factor, made[name]) for name, factor in factors.items()])


def stored(job: TrainJob) -> str:
    """The precision of the weights, in which they are validated."""
    return "float32" if job.precision == "bfloat16" else job.precision


def network_of(job: TrainJob) -> Network:
    """What is trained, as it is before the first step but for the weights. Raises ValueError where it is no network."""
    given = {} if job.normalise is None else job.normalise.model_dump(exclude_none=True)
    if isinstance(job.network, NewNetwork):
        normalise = check_normalisation(given, job.network.channels)
        module = build(job.network.architecture, job.network.arguments, normalise)
        card = {"name": job.network.architecture, "architecture": job.network.architecture,
                "arguments": job.network.arguments}  # fmt: skip
        return Network(module, {**load_network(module).card, **card, "normalise": normalise})
    network = load_network(job.network)
    if not network.card.get("architecture"):
        raise ValueError(
            f"network {job.network} cannot be trained: give a network folder, a built-in or an architecture"
        )
    if given and network.card.get("normalise"):
        raise ValueError(f"network {network.name} has its own normalisation, so normalise cannot be given")
    own = network.card.get("normalise") or check_normalisation(given, network.channels)
    return Network(network.module, {**network.card, "normalise": own})


def card_of(job: TrainJob, network: Network, split: Split) -> dict[str, Any]:
    """What the resulting network's card says of where it comes from, and its classes' names if it began with some."""
    import pipeline

    parts = {"train": split.train, "validation": split.validation} | ({"test": split.test} if split.test else {})
    names = {part: [pair.name for pair in pairs] for part, pairs in parts.items()}
    told = job.model_dump(mode="json", exclude={"network", "data", "normalise", *FREE})
    versions = {"pipeline": pipeline.__version__, "torch": torch.__version__, "python": platform.python_version()}
    named = network.card.get("class_names")
    return {
        **({"class_names": named} if named else {}),
        "data": {**names, "labelled": labelled(split)},
        "training": told,
        "versions": versions | ({"commit": commit} if (commit := _commit()) else {}),
    }


def _commit() -> str | None:
    """The git commit of the working directory, with a + where files differ from it; None where there is none."""
    said = []
    for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            said.append(subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=10).stdout)
        except (OSError, subprocess.SubprocessError):
            return None
    return said[0].strip() + ("+" if said[1].strip() else "")


def _scored(job: TrainJob, pairs: tuple[Pair, ...], network: Network, trained: Analysis) -> Validation | None:
    """Held-out pairs with the plan of inference for each; None where there are none."""
    if not pairs:
        return None
    asked = options(precision=stored(job), device="cpu", kind="mask")
    analysis, plans = Analysis(network, asked), []
    for pair in pairs:
        with open_image(pair.image, channels=analysis.channels) as image:
            plans.append(planning.plan_image(image, analysis, asked))
    return Validation(pairs, plans, trained.channels, trained.classes, job.data.ignore, job.data.binary)
