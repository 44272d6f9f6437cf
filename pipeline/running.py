"""Drives the engine over the units of started outputs and keeps their ledgers."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from pipeline import previewing
from pipeline.engines import local
from pipeline.engines.units import Failure, Outcome
from pipeline.ledgers import Held
from pipeline.preflight import preflight
from pipeline.stitching.ledger import Ledger
from pipeline.storage.disk import OutputError
from pipeline.storage.image import Image
from pipeline.storage.output import Output
from pipeline.tiling.plan import Plan
from pipeline.worker import INTERPRETER, Item, Job, start

log = logging.getLogger("pipeline")

REPORT_EVERY = 0.2
"""Seconds between reports of progress."""


@dataclass
class Run:
    """One image on its way into one output."""

    image: Image
    output: Output
    plan: Plan
    ledger: Ledger
    lock: Held | None = None
    """Held where the ledger does not hold it itself."""
    resumed: int = 0
    """Units that were done when this run began."""
    failures: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.ledger.count == self.plan.units

    @property
    def settled(self) -> bool:
        """Finished, and no preview is left to draw."""
        return self.finished and not previewing.is_left(self.output)

    def missing(self, units: range) -> list[int]:
        return [unit for unit in units if not self.ledger.done(unit)]

    def close(self) -> None:
        self.ledger.close()
        if self.lock is not None:
            self.lock.release()

    def check(self) -> None:
        """Forget units of which a shard is missing or of another length, so that they are done again."""
        lost, lengths = [], self.output.lengths()
        for unit, records in self.ledger:
            level, region = self.plan.region_of(unit)
            if self.output.check(level, region, records, lengths):
                lost.append(unit)
        self.ledger.forget(lost)
        self.resumed = self.ledger.count


@dataclass
class Progress:
    """What a report of progress says."""

    tiles: int
    done: int
    pixels: int
    failed: int
    seconds: float


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Place:
    """Where the work of a run is done."""

    engine: str = "local"
    workers: int | None = None
    """None: as many as this machine carries, or the cluster holds."""
    own_process: bool = False
    """Local: worker processes also where one worker would do."""
    cpus: float = 1
    gpus: float = 0
    address: str | None = None
    """Ray: what a worker asks for, and the cluster's head. Dask: the scheduler."""


def drive(job: Job, runs: Sequence[Run], place: Place, *, report: Report | None) -> None:
    """Do all missing units of the runs; failures are kept with their run, the rest finishes.

    Raises OutputError where the disk does not take the output; what is done stays done.
    """
    began, last = time.monotonic(), 0.0
    tiles = sum(run.plan.tiles for run in runs)
    done = sum(len(range(run.plan.tiles)) - len(run.missing(range(run.plan.tiles))) for run in runs)
    pixels = 0
    with closing(_results(job, runs, place)) as results:
        for item, result in results:
            number, first, stop = cast(Item, item)
            run = runs[number]
            if isinstance(result, Failure) and first == run.plan.units:
                log.warning("%s is finished, but its preview cannot be drawn: %s", run.output.path, result.message)
            elif isinstance(result, Failure):
                run.failures.append(_named(run, first, result))
            else:
                for unit, records in zip(range(first, stop), result, strict=True):
                    run.ledger.add(unit, records)
            new = len(range(first, min(stop, run.plan.tiles)))
            done += new
            pixels += new * run.plan.core[0] * run.plan.core[1]
            if report is not None and time.monotonic() - last > REPORT_EVERY:
                last = time.monotonic()
                report(Progress(tiles, done, pixels, sum(len(r.failures) for r in runs), last - began))


def _results(job: Job, runs: Sequence[Run], place: Place) -> Generator[Outcome, None, None]:
    """What the engine that was asked for yields."""
    begin = partial(cast(Any, start), job)
    here = place.workers or default_workers(max(run.plan.memory for run in runs), job.device)
    if place.engine == "local":
        yield from local.run(begin, _stages(runs), workers=here, own_process=place.own_process, fatal=_is_fatal)
        return
    if place.engine == "dask":
        from pipeline.engines import on_dask

        yield from on_dask.run(begin, _stages(runs), workers=here, fatal=_is_fatal, scheduler=place.address)
        return
    from pipeline.engines import on_ray

    with closing(preflight(job.images, job.outputs)) as check:
        yield from on_ray.run(
            begin,
            _stages(runs),
            workers=place.workers,
            here=here,
            fatal=_is_fatal,
            name=f"infer {Path(job.outputs[0]).name}" + (f" and {len(runs) - 1} more" if len(runs) > 1 else ""),
            cpus=place.cpus,
            gpus=place.gpus,
            address=place.address,
            check=check,
        )


def _is_fatal(error: BaseException) -> bool:
    return isinstance(error, OutputError | MemoryError)


def _stages(runs: Sequence[Run]) -> Iterator[Iterator[Item]]:
    """Tiles of all images, then their pyramids level by level, then previews; an image of one tile is one item.

    A stage of an image whose tiles failed is left out, since its shards would be built on what is not there.
    """
    deepest = max((len(run.plan.stages) for run in runs), default=0)
    for level in range(deepest):
        yield (item for number, run in enumerate(runs) for item in _items(number, run, level))
    yield ((number, run.plan.units, run.plan.units) for number, run in enumerate(runs)
           if run.finished and previewing.is_left(run.output))  # fmt: skip


def _items(number: int, run: Run, level: int) -> Iterator[Item]:
    if run.failures or level >= len(run.plan.stages):
        return
    if run.plan.tiles == 1:
        missing = run.missing(range(run.plan.units))
        if level == 0 and missing:
            yield number, missing[0], run.plan.units
        return
    for unit in run.missing(run.plan.stages[level]):
        yield number, unit, unit + 1


def _named(run: Run, unit: int, failure: Failure) -> str:
    """One line: which tile failed, where it lies, and why."""
    if unit < run.plan.tiles:
        core = run.plan.grid.tile(unit).core
        place = f"tile {unit} (rows {core.y.start} to {core.y.stop}, columns {core.x.start} to {core.x.stop})"
    else:
        place = f"pyramid shard {unit - run.plan.tiles}"
    return f"{place}: {failure.message}"


def default_workers(memory: int, device: str) -> int:
    """One for each GPU; else as many as CPU affinity and quota and the memory limit of the cgroup allow."""
    if device.startswith("cuda"):
        return max(1, torch.cuda.device_count())
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cpus = min(cpus, max(1, int(quota) // int(period)))
    return max(1, min(cpus, free_memory() // (memory + INTERPRETER)))


def free_memory(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that new processes may take, what files' caches would give back included; all where nothing tells."""
    free = sys.maxsize
    with suppress(OSError, ValueError, KeyError):
        free = _numbers(proc)["MemAvailable:"] * 1024
    with suppress(OSError, ValueError, KeyError):
        limit = int((cgroup / "memory.max").read_text())
        cached = _numbers(cgroup / "memory.stat")["inactive_file"]
        free = min(free, limit - int((cgroup / "memory.current").read_text()) + cached)
    return free


def _numbers(table: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    return {name: int(number) for name, number, *_ in map(str.split, table.read_text().splitlines())}
