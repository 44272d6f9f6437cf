"""What commands and jobs share: one-line errors, exit statuses, progress on a terminal or in a log, the report."""

from __future__ import annotations

import argparse
import atexit
import faulthandler
import gc
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from pipeline.printing import outlive_the_log

LOG_EVERY = 10.0
GRACE = 30.0
"""Seconds that a command may take to end when told to; then it says where it stands, and is ended."""

NEEDED = {
    "PIL", "backports", "cloudpickle", "dask", "distributed", "google_crc32c", "imagecodecs", "numcodecs", "numpy",
    "pydantic", "ray", "rich", "safetensors", "tensorboardX", "tifffile", "torch", "yaml", "zarr",
}  # fmt: skip
"""Modules of the packages that this one is installed with; what else is missing is a mistake of ours."""

_again: str | None = None
"""What the command that runs must be given without to go on where it is cut short; None: nothing is kept of it."""
_replaces = False
"""Whether it replaces an output, so that it must be given without that once there is something of the new one."""


class Parser(argparse.ArgumentParser):
    """Argument errors are one line and status 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._negative_number_matcher = re.compile(r"-[\d.]")  # -1,-2 and -1GB are values too, and never options

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see --help)", file=sys.stderr)
        raise SystemExit(2)


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command: 2 for what the user can mend, 1 for the rest, 130 and 143 after SIGINT and SIGTERM."""
    global _again, _replaces
    _again, _replaces = None, False
    outlive_the_log()

    def ended(*_: Any) -> NoReturn:
        with suppress(OSError):
            os.write(2, f"ended{_continues()}\n".encode())
        faulthandler.dump_traceback_later(GRACE, exit=True)  # what is interrupted anywhere may be held up anywhere
        raise SystemExit(143)

    # NumPy's BLAS, of which little is asked, would come with threads, and what has threads cannot fork workers
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # importing torch makes half a million objects, none of them garbage: not looked through meanwhile, nor at the end
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    signal.signal(signal.SIGTERM, ended)
    try:
        _check_working_directory()
        status = main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print(f"interrupted{_continues()}", file=sys.stderr)
        status = 130
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        print(f"error: {sys.executable} has no {error.name}: activate the environment that this package was installed "
              "into (. .venv/bin/activate), or install it into this one (pip install .)", file=sys.stderr)  # fmt: skip
        status = 2
    except (ValueError, OSError, MemoryError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        status = 2
    except RuntimeError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        status = 1
    sys.stdout.flush()
    raise SystemExit(status)


def _check_working_directory() -> None:
    """Raises ValueError where it was removed: libraries would be looked for in it, and not be found."""
    try:
        os.getcwd()
    except OSError as error:
        raise ValueError(f"the working directory: {error.strerror}: change to one that is there") from None


def resumable(overwrite: bool = False) -> None:
    """From now on the command is one that the same command continues: one with `overwrite` until a tile is done."""
    global _again, _replaces
    _again, _replaces = "", overwrite


def _begun() -> None:
    global _again
    if _replaces:
        _again = " without overwrite"


def _continues() -> str:
    """What is said of the command where it is cut short."""
    return "" if _again is None else f": the same command{_again} continues"


def one_line(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "out of memory: give fewer --workers, or begin anew with a smaller --memory and --overwrite"
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def progress(label: str) -> Iterator[Callable[[Any], None]]:
    """A function that shows a Progress: a bar on a terminal, else a line at once and every 10 seconds."""
    if not sys.stderr.isatty():
        last = [-LOG_EVERY]

        def log(p: Any) -> None:
            _begun()
            if time.monotonic() - last[0] >= LOG_EVERY:
                last[0] = time.monotonic()
                print(f"{label}: {_text(p)}", file=sys.stderr, flush=True)

        yield log
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}", markup=False),  # a name may hold braces and brackets
        BarColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task(label, total=None, text="")

        def show(p: Any) -> None:
            _begun()
            bar.update(task, total=p.tiles, completed=p.tried, text=_text(p))

        yield show


def _text(p: Any) -> str:
    rate = p.pixels / 1e6 / max(p.seconds, 1e-9)
    left = f"{p.left:.0f} s left" if p.tried < p.tiles else "now the pyramid"
    failed = f", {p.failed} failed" if p.failed else ""
    lost = f", {p.lost} images failed" if p.lost else ""
    return f"{p.done} of {p.tiles} tiles, {rate:.1f} MP/s, {left}{failed}{lost}"


def predict(images: list[str], output: str, net: Any, *, folder: bool, verify: bool, given: dict[str, Any]) -> int:
    """Predict, say how it went, and return the exit status. `folder`: one output an image, in the folder `output`.

    Raises RuntimeError where tiles or images failed.
    """
    resumable(given.get("overwrite", False))
    from pipeline import api

    if given.get("engine", "local") == "local":
        given = given | {"template": api.template()}  # before there are threads: progress on a terminal has one
    return _many(images, output, net, verify, given) if folder else _one(images[0], output, net, verify, given)


def _one(image: str, output: str, net: Any, verify: bool, given: dict[str, Any]) -> int:
    from pipeline import api

    began = time.monotonic()
    try:
        with progress(Path(output).name) as report:
            result = api.predict(image, net, output, report=report, **given)
    except api.TilesFailed as error:
        print(f"{output}: unfinished after {time.monotonic() - began:.1f} s{_continues()}")
        raise RuntimeError(str(error)) from error
    plan = result.plan
    if result.resumed == plan.units:
        print(f"{output}: finished already, nothing to do")
    else:
        before = f", {result.resumed} of {plan.units} units were done before" if result.resumed else ""
        print(f"{output}: {plan.tiles} tiles, {plan.kind}, {time.monotonic() - began:.1f} s{before}")
    return 0 if not verify or _verified(output, image, net) else 1


def _many(images: list[str], output: str, net: Any, verify: bool, given: dict[str, Any]) -> int:
    from pipeline import api

    began, failed = time.monotonic(), ""
    with progress(Path(output).name) as report:
        try:
            results = api.predict(images, net, output, report=report, **given)
        except api.TilesFailed as error:
            results, failed = error.results, str(error)
    done = [r for r in results if not r.failures]
    print(f"{output}: {len(done)} of {len(images)} images, {time.monotonic() - began:.1f} s")
    sound = not verify or all([_verified(r.path, None, net) for r in done])
    if failed:
        raise RuntimeError(failed)
    return 0 if sound else 1


def _verified(output: str, image: str | None, net: Any) -> bool:
    from pipeline import api

    return is_sound(output, api.verify(output, image, net))


def is_sound(output: str, found: Any) -> bool:
    """Say what verify found, the places first that are off; whether there are none."""
    for place in found.places:
        print(place)
    verdict = "sound" if found.ok else "NOT SOUND"
    print(
        f"{output}: {verdict}: {found.windows} windows, {found.shards} shards, max difference "
        f"{found.max_difference:g} ({found.where})"
    )
    return bool(found.ok)


def train(job: Any) -> int:
    """Train, say how it goes and went, and return the exit status."""
    resumable()
    from pipeline import api

    began, last = time.monotonic(), [-LOG_EVERY]

    def look(line: dict[str, Any]) -> None:
        if "batch" in line:
            print(f"{Path(job.run).name}: batch: auto is {line['batch']} samples, {line['together']} together on each "
                  f"worker, in {line['megabytes']} MB", file=sys.stderr, flush=True)  # fmt: skip
        elif time.monotonic() - last[0] >= LOG_EVERY:
            last[0] = time.monotonic()
            loss = "no labels" if line["loss"] is None else f"loss {line['loss']:.4f}"
            print(f"{Path(job.run).name}: step {line['step']} of {job.steps}, {loss}", file=sys.stderr, flush=True)

    result = api.train(job, look=look)
    if result.already:
        print(f"{result.path}: finished already, nothing to do")
        return 0
    before = f", {result.resumed} of {job.steps} steps were done before" if result.resumed else ""
    score = f", mean IoU {result.metrics['mean_iou']:.3f}" if result.metrics.get("mean_iou") is not None else ""
    if (test := result.metrics.get("test")) and test["mean_iou"] is not None:
        score += f", of the test {test['mean_iou']:.3f}" if score else f", mean IoU of the test {test['mean_iou']:.3f}"
    print(f"{result.path}: {job.steps} steps{score}, {time.monotonic() - began:.1f} s{before}")
    return 0
