"""What commands, jobs and users call: predict, plan, verify, convert, train, export."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import describing, planning, previewing
from pipeline.analysis import Analysis, cache_bytes, one_thread
from pipeline.checking import Report, check_output
from pipeline.config import Options, options
from pipeline.engines.machine import usable_cpus
from pipeline.jobfile import load_job, validated
from pipeline.ledgers import FOLDER, forget_ledger, hold, open_ledger, read_ledger
from pipeline.naming import asked_for, default_output, outputs_asked_for, outputs_within
from pipeline.network.loading import Network, load_network
from pipeline.network.names import resolve
from pipeline.network.receptive_field import receptive_field as derive
from pipeline.running import Place, Progress, default_workers, drive, template
from pipeline.storage.image import Image
from pipeline.storage.location import Inputs, Location, location_of, name_of
from pipeline.storage.output import check_free, create, is_ours, remove_contents
from pipeline.storage.reading import extend_to
from pipeline.storage.reference import Reference, refer
from pipeline.stored import open_stored
from pipeline.tiling.geometry import ReceptiveField
from pipeline.tiling.plan import Plan
from pipeline.training_job import TrainJob
from pipeline.turns import Result, Run, Turns
from pipeline.worker import Job

if TYPE_CHECKING:
    from pipeline.engines.template import Template
    from pipeline.training_run import Trained

__all__ = ["Report", "Result", "TilesFailed", "asked_for", "convert", "default_output", "export", "extend",
           "outputs_asked_for", "plan", "predict", "predict_lazy", "receptive_field", "template", "train",
           "verify"]  # fmt: skip


NAMED = 3
"""Failed tiles of an image that an error names, at most."""


class TilesFailed(RuntimeError):
    """Some tiles or images failed, the rest is done; the same call tries them again.

    `results`: of all images that could be begun; what is missing of one is in its `failures`."""

    def __init__(self, message: str, results: list[Result]) -> None:
        super().__init__(message)
        self.results = results


def predict(
    image: Any,
    net: Any = None,
    output: str | os.PathLike[str] = "",
    *,
    report: Callable[[Progress], None] | None = None,
    template: Template | None = None,
    **given: Any,
) -> Any:
    """See `pipeline.predict`; workers are forks of the template, which ends with the call."""
    asked = options(**given)
    if not os.fspath(output):
        raise ValueError("say where the prediction goes: output='big.zarr'")
    source = resolve(net) if net is None or isinstance(net, str | os.PathLike) else None
    analysis = Analysis(_network(net, asked), asked, source)
    if not isinstance(image, list | tuple):
        return _only(_work([image], [os.fspath(output)], analysis, asked, report, template))
    outputs = _outputs(image, os.fspath(output))
    turns = _work(image, outputs, analysis, asked, report, template)
    named = [image if isinstance(image, str | os.PathLike) else name_of(output)
             for image, output in zip(image, outputs, strict=True)]  # fmt: skip
    return _all(turns, named)


def plan(image: Any, net: Any = None, output: str | os.PathLike[str] = "", **given: Any) -> Plan:
    """See `pipeline.plan`."""
    asked = options(**given)
    analysis = Analysis(_network(net, asked), asked)
    with _refer(image, analysis.channels, asked).open() as opened:
        return planning.plan_image(opened, analysis, asked)


LAZY = {"tile", "memory", "precision", "device", "reach", "channels", "scale", "mean", "std", "key"}
"""Options of `predict` that `predict_lazy` has too."""


def predict_lazy(array: Any, net: Any = None, **given: Any) -> Any:
    """See `pipeline.predict_lazy`."""
    _check_known(given, LAZY, "predict_lazy")
    from pipeline import lazy

    asked = options(**{"device": "cpu", **given})
    return lazy.predict_lazy(array, Analysis(_network(net, asked), asked))


COPY = {"axes", "level", "engine", "workers", "worker_cpus", "worker_gpus", "address", "scheduler", "memory",
        "overwrite"}  # fmt: skip
"""Options of `predict` that `convert` has too."""


def convert(
    image: Any,
    output: str | os.PathLike[str],
    *,
    report: Callable[[Progress], None] | None = None,
    template: Template | None = None,
    **given: Any,
) -> Result:
    """See `pipeline.convert`; workers are forks of the template, which ends with the call."""
    _check_known(given, COPY, "convert")
    asked = options(**given)
    if not os.fspath(output):
        raise ValueError("say where the copy goes: output='big.ome.zarr'")
    return _only(_work([image], [os.fspath(output)], None, asked, report, template))


def verify(output: str | os.PathLike[str], image: Any = None, net: Any = None) -> Report:
    """See `pipeline.verify`."""
    stored = open_stored(output)
    target, plan, asked = stored.output, stored.plan, stored.asked
    image, net = stored.image if image is None else image, stored.network if net is None else net
    for name, value in (("image", image), ("network", net)):
        if value is None and (name == "image" or plan.network is not None):
            raise ValueError(f"{output} was made from a {name} that has no path: give it to verify")
    with refer(image, axes=asked.axes, level=asked.level or 0).open() as opened:
        if opened.identity() != plan.image["identity"]:
            raise ValueError(f"{output} was made from another image than this one")
        network = None
        if plan.network is not None:
            network = _network(net, asked)
            if network.identity != plan.network["identity"]:
                raise ValueError(f"{output} was made with another network than {network.name}")
        with read_ledger(target.location) as ledger, one_thread():
            return check_output(target, plan, ledger, opened, network)


def train(job: Any, *, look: Callable[[dict[str, Any]], None] = lambda line: None) -> Trained:
    """See `pipeline.train`; `look` is given the last line of the log now and then, and first
    what batch: auto came to."""
    if isinstance(job, str | os.PathLike):
        job = load_job(TrainJob, job)
    from pipeline.training_run import train_job  # which predictions need not wait for

    return train_job(job if isinstance(job, TrainJob) else validated(TrainJob, job), look)


def export(net: Any, path: str | os.PathLike[str]) -> str:
    """See `pipeline.export`."""
    from pipeline.network.exporting import export_network

    network = load_network(net)
    if network.channels is None:
        raise ValueError(f"network {network.name}: nothing tells how many channels it takes, so it cannot be traced")
    return str(export_network(network, path, network.channels))


def receptive_field(net: Any, shape: tuple[int, int, int] | None = None) -> ReceptiveField:
    """See `pipeline.receptive_field`."""
    network = load_network(net)
    channels = shape[0] if shape else network.channels
    if channels is None:
        raise ValueError(f"network {network.name}: give shape=(channels, y, x)")
    return derive(network.module, channels, None if shape is None else (shape[1], shape[2]))


def extend(array: np.ndarray, net: Any = None) -> np.ndarray:
    """See `pipeline.extend`."""
    array, network = np.asarray(array), load_network(net)
    field = derive(network.module, network.channels or array.shape[0])
    return extend_to(array, field.extended(array.shape[-2], array.shape[-1]))


def forecasts(images: Sequence[Any], net: Any = None, **given: Any) -> Iterator[tuple[Plan, float]]:
    """The plan of each image, and about how many seconds the network alone takes on its tiles.

    The network is analysed once, and its speed measured once: on a piece that is run here and now.
    """
    asked = options(**given)
    analysis = Analysis(_network(net, asked), asked)
    for image in images:
        with _refer(image, analysis.channels, asked).open() as opened:
            plan = planning.plan_image(opened, analysis, asked)
        pixels = plan.read_amplification * plan.size[0] * plan.size[1] * plan.planes
        workers = asked.workers or default_workers(plan.memory, plan.device)
        if asked.engine == "local" and plan.device == "cpu":
            workers = min(workers, usable_cpus())  # more of them are no faster
        yield plan, analysis.seconds_per_pixel * pixels / workers


def _check_known(given: dict[str, Any], known: set[str], function: str) -> None:
    if unknown := given.keys() - known:
        raise ValueError(f"unknown option {min(unknown)!r}; {function} has {', '.join(sorted(known))}")


def _network(net: Any, asked: Options) -> Network:
    return load_network(net, output=asked.key, scale=asked.scale, mean=asked.mean, std=asked.std)


def _refer(image: Any, channels: int | None, asked: Options) -> Reference:
    return refer(image, axes=asked.axes, level=asked.level or 0, channels=channels, cache_bytes=cache_bytes(asked))


def _begin(
    image: Any,
    reference: Reference,
    output: str,
    analysis: Analysis | None,
    asked: Options,
    inputs: Inputs,
    elsewhere: bool,
) -> Run:
    """Open the image; make its output, or find what an earlier run left of it; close the image.

    All that can be refused is refused before anything is made or removed; from then on the lock is held.
    """
    location = location_of(output)
    with reference.open() as opened, ExitStack() as undo:
        plan, ours = _checked(opened, output, location, analysis, asked, inputs)
        lock = hold(location)
        undo.callback(lock.release)
        there = is_ours(output)
        if there and not asked.overwrite:
            stored = open_stored(output)
            target, plan = stored.output, stored.plan
            planning.check_stored(plan, opened, analysis, asked, output)
            target.restore()
            run = Run(target, plan, open_ledger(location, plan.fingerprint, plan.units, lock), lock)
            undo.callback(run.close)
            run.check()
            if not run.settled:
                run.copy = reference.share(opened, elsewhere=elsewhere)
        else:
            plan = plan or planning.plan_any(opened, analysis, asked)
            if copy := reference.share(opened, elsewhere=elsewhere):  # first, as there may be no room for it
                undo.callback(copy.remove)
            if there:
                forget_ledger(location, lock)
                remove_contents(output, keep=(FOLDER,))
            about = describing.attributes(plan, image, opened, analysis, asked)
            placing = describing.placing(plan, opened, analysis)
            target = create(output, plan.layout, attributes=about, **placing, among_others=ours)
            run = Run(target, plan, open_ledger(location, plan.fingerprint, plan.units, lock), lock, copy)
        undo.pop_all()
    return run


def _checked(
    opened: Image, output: str, location: Location, analysis: Analysis | None, asked: Options, inputs: Inputs
) -> tuple[Plan | None, bool]:
    """The plan of an output that is to be made, and whether one of ours is there; what can be refused is refused."""
    _spare(inputs, location)
    location.check_parent()
    ours = is_ours(output)
    if analysis is not None:
        previewing.check_spared(inputs, location)
        if asked.overwrite or not ours:
            previewing.check_free(location)
    if ours and not asked.overwrite:
        return None, ours
    plan = planning.plan_any(opened, analysis, asked)
    if not is_ours(output):  # asked again: planning takes a while, another run may have begun
        check_free(output, plan.layout)
    return plan, ours


def _spare(inputs: Inputs, output: Location) -> None:
    """Raises ValueError where an image of the call, whose turn may be over or to come, is the output or lies in it."""
    if image := inputs.at(output):
        raise ValueError(f"the output {output} is the image {image} itself: give another name with -o")
    if image := inputs.within(output):
        raise ValueError(f"the image {image} lies in the output {output}: give another name with -o")


def _outputs(images: Sequence[Any], folder: str) -> list[str]:
    """Where the output of each image goes: into the folder, which is made, under a name of its own."""
    within = location_of(folder)
    within.check_parent("outputs")
    if is_ours(folder):
        raise ValueError(f"{folder} is an output, but several images need a folder: give another name")
    within.make()
    return outputs_within(within, images)


def _work(
    images: Sequence[Any],
    outputs: Sequence[str],
    analysis: Analysis | None,
    asked: Options,
    report: Callable[[Progress], None] | None,
    template: Template | None,
) -> Turns:
    """Do what is missing of the images' outputs; what came of each. Nothing of the caller's torch is changed."""
    address = asked.scheduler if asked.engine == "dask" else asked.address
    place = Place(asked.engine, asked.workers, template, asked.worker_cpus, asked.worker_gpus, address)
    channels = analysis.channels if analysis else None
    references, inputs = dict[int, Reference](), Inputs()
    for number, image in enumerate(images):
        with suppress(ValueError):  # which is raised again when its turn comes
            references[number] = _refer(image, channels, asked)
            inputs.add(references[number].source)

    def begin(number: int) -> Run:
        reference = references.get(number) or _refer(images[number], channels, asked)
        return _begin(images[number], reference, outputs[number], analysis, asked, inputs, place.elsewhere)

    job = Job(
        references,
        [location_of(output).everywhere() for output in outputs],
        analysis.network if analysis else None,
        analysis.device if analysis else "cpu",
        analysis.program if analysis else None,
        analysis.folded if analysis else False,
    )
    turns = Turns(len(images), begin)
    try:
        with one_thread():
            turns.look_ahead()
            if turns.open:
                drive(job, turns, place, report=report)
    finally:
        turns.close()
        if template is not None:
            template.close()
    return turns


def _only(turns: Turns) -> Result:
    """What came of the only image. Raises why it could not be begun, or TilesFailed."""
    for error in turns.lost.values():
        raise error
    return _all(turns, [])[0]


def _all(turns: Turns, names: Sequence[Any]) -> list[Result]:
    """What came of the images, in their order. Raises TilesFailed that names those that could not be begun, and why."""
    results = [result for _, result in sorted(turns.results.items())]
    lost = [f"{names[number]}: {_reason(error)}" for number, error in turns.lost.items()]
    failed = [f"{result.path}: {_few(result.failures)}" for result in results if result.failures]
    said = [f"{len(lost)} of {len(names)} images failed: " + "; ".join(lost)] if lost else []
    count = sum(len(result.failures) for result in results)
    said += [f"{count} tiles failed: " + "; ".join(failed)] if failed else []
    if said:
        raise TilesFailed("; ".join(said), results)
    return results


def _few(failures: Sequence[str]) -> str:
    """The first failures of an image, and how many more there are; mostly all have the same cause."""
    more = [f"and {len(failures) - NAMED} more"] if len(failures) > NAMED else []
    return "; ".join([*failures[:NAMED], *more])


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
