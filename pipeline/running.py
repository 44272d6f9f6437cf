"""Drives the engine over the units of started outputs and keeps their ledgers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from pipeline.engines import local
from pipeline.engines.machine import free_memory, usable_cpus
from pipeline.engines.template import Template, early_template
from pipeline.engines.units import Failure, Outcome
from pipeline.preflight import preflight
from pipeline.storage.disk import OutputError
from pipeline.turns import Run, Turns
from pipeline.worker import INTERPRETER, Item, Job, start

log = logging.getLogger("pipeline")

MODULES = [start.__module__]
"""What every worker imports."""

REPORT_EVERY = 0.2
"""Seconds between reports of progress."""


@dataclass
class Progress:
    """What a report of progress says."""

    tiles: int
    """Of all images; those not begun yet are taken to have as many as the others."""
    done: int
    made: int
    """Of those that are done, by this call; the rest was done before."""
    pixels: int
    """Of the tiles that this call made."""
    failed: int
    """Tiles."""
    lost: int
    """Images that could not be begun."""
    seconds: float
    """Since this call began to make tiles."""

    @property
    def tried(self) -> int:
        return self.done + self.failed

    @property
    def left(self) -> float:
        """Seconds that the tiles take that were not tried, at the speed of this call."""
        return (self.tiles - self.tried) * self.seconds / max(1, self.made + self.failed)


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Place:
    """Where the work of a run is done."""

    engine: str = "local"
    workers: int | None = None
    """None: as many as this machine carries, or the cluster holds."""
    template: Template | None = None
    """Local: what worker processes are forked of, also where one would do. None: one worker is the calling process."""
    cpus: float = 1
    gpus: float = 0
    address: str | None = None
    """Ray: what a worker asks for, and the cluster's head. Dask: the scheduler."""

    @property
    def elsewhere(self) -> bool:
        """Whether tiles are done in other processes than this one, as far as can be told now."""
        return self.engine != "local" or self.template is not None or self.workers != 1


def template() -> Template:
    """What workers of a later run will be forked of: to be called before this process has threads."""
    return early_template(MODULES)


def drive(job: Job, turns: Turns, place: Place, *, report: Report | None) -> None:
    """Do all missing units of the images, some of which are begun; failures are kept, the rest finishes.

    Raises OutputError where the disk does not take the output; what is done stays done.
    """
    began, last = time.monotonic(), 0.0
    made = pixels = failed = 0
    with closing(_results(job, turns, place)) as results:
        for item, result in results:
            number, first, stop = cast(Item, item)
            run = turns.open[number]
            tiles = len(range(first, min(stop, run.plan.tiles)))
            if isinstance(result, Failure) and first == run.plan.units:
                log.warning("%s is finished, but its preview cannot be drawn: %s", run.output.path, result.message)
            elif isinstance(result, Failure):
                run.failures.append(_named(run, first, result))
                failed += tiles
            else:
                for unit, records in zip(range(first, stop), result, strict=True):
                    run.ledger.add(unit, records)
                turns.done += tiles
                made += tiles
                pixels += tiles * run.plan.core[0] * run.plan.core[1]
            if run.plan.tiles == 1:  # all of it was one item
                turns.end(number)
            if report is not None and time.monotonic() - last > REPORT_EVERY:
                last = time.monotonic()
                report(Progress(turns.expected, turns.done, made, pixels, failed, len(turns.lost), last - began))


def _results(job: Job, turns: Turns, place: Place) -> Generator[Outcome, None, None]:
    """What the engine that was asked for yields."""
    begin, stages, modules = partial(cast(Any, start), job), turns.stages(), MODULES
    here = place.workers or default_workers(max(run.plan.memory for run in turns.open.values()), job.device)
    if place.engine == "local":
        yield from local.run(begin, stages, workers=here, modules=modules, template=place.template, fatal=_is_fatal)
        return
    if place.engine == "dask":
        from pipeline.engines import on_dask

        yield from on_dask.run(begin, stages, workers=here, modules=modules, fatal=_is_fatal, scheduler=place.address)
        return
    from pipeline.engines import on_ray

    others = f" and {len(job.outputs) - 1} more" if len(job.outputs) > 1 else ""
    seen = [replace(job.images[n], identity=run.plan.image["identity"]) for n, run in turns.open.items()]
    with closing(preflight(seen, [job.outputs[n] for n in turns.open])) as check:
        yield from on_ray.run(
            begin,
            stages,
            workers=place.workers,
            here=here,
            fatal=_is_fatal,
            name=f"infer {Path(job.outputs[0]).name}{others}",
            cpus=place.cpus,
            gpus=place.gpus,
            address=place.address,
            check=check,
        )


def _is_fatal(error: BaseException) -> bool:
    return isinstance(error, OutputError | MemoryError)


def _named(run: Run, unit: int, failure: Failure) -> str:
    """One line: which tile failed, where it lies, and why."""
    if unit < run.plan.tiles:
        core = run.plan.grid.tile(unit).core
        place = f"tile {unit} (rows {core.y.start} to {core.y.stop}, columns {core.x.start} to {core.x.stop})"
    else:
        place = f"pyramid shard {unit - run.plan.tiles}"
    return f"{place}: {failure.message}"


def default_workers(memory: int, device: str) -> int:
    """One for each GPU; else as many as affinity, free memory and the cgroups' limits allow."""
    if device.startswith("cuda"):
        return max(1, torch.cuda.device_count())
    return max(1, min(usable_cpus(), free_memory() // (memory + INTERPRETER)))
