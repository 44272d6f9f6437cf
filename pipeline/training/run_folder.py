"""The folder of a training run: its job, checkpoints and log, and in the end the network.

job.yaml                 what was asked for, all keys, paths absolute
metrics.jsonl            one line a step, one a validation, one of the test, and first what batch: auto came to
checkpoints/STEP.pt      the last two; each is complete or not there
lock, checkpoints/lock   held while a command, and its first worker, go on with the run
network.json, weights.safetensors      once the run is finished

Where there is no checkpoint yet, there is nothing to lose, and the same folder may be begun anew with another job.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pickle
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml

from pipeline.network.names import CARD
from pipeline.storage.disk import writing

log = logging.getLogger("pipeline")

JOB, LOG, CHECKPOINTS = "job.yaml", "metrics.jsonl", "checkpoints"
LOCK, TRACKED = "lock", "mlflow.txt"
"""What is held, and the run's name on MLflow, if it is there."""
BEFORE_JOB = (LOCK, f"{JOB}.partial")
"""Files that are there before the job."""
FREE = ("run", "workers", "checkpoint_every", "checkpoint_activations", "tensorboard", "mlflow", "memory")
"""Keys that do not change what a run results in, and so may differ when it goes on."""
KEPT = 2
Place = tuple[int, int]
"""In the log: the number of the file, which is another one after it was rewound, and a byte."""
BEGINNING: Place = (0, 0)
PATIENCE = 60.0
"""Seconds to wait for the workers of a run whose driver was killed, until they have ended too."""


class RunFolder:
    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def check(self, settings: dict[str, Any]) -> None:
        """Raises ValueError, which names the key, where it was begun with other settings, and for another folder."""
        kept = self.finished or bool(self._checkpoints())
        if not (self.path / JOB).is_file():
            found = [path for path in self.path.rglob("*") if not path.is_dir() and path.name not in BEFORE_JOB]
            if found or self.path.is_file():
                raise ValueError(f"run {self.path}: there is something else already: give another folder")
        elif not (kept or (self.path / CHECKPOINTS / LOCK).is_file()):
            raise ValueError(f"run {self.path}: the {JOB} there is no run's: give another folder, or remove it")
        elif kept and (said := self._difference(settings)):
            raise ValueError(f"run {self.path} was begun with {said}: give another run, or remove that folder")

    def begin(self, settings: dict[str, Any]) -> None:
        """Makes the folder for a job of these settings, or finds that it is there for the same one; see `check`.

        What was begun with others and came to no checkpoint is begun anew.
        """
        self.check(settings)
        (self.path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        with self.held():  # workers of an earlier command may have had something to save yet
            self.check(settings)
            with suppress(FileNotFoundError, ValueError):  # nothing is there, or what a crash left
                if not self._difference(settings):
                    return
            for name in (LOG, TRACKED):
                (self.path / name).unlink(missing_ok=True)
            _replace(self.path / JOB, yaml.safe_dump(settings, sort_keys=False).encode())

    def _difference(self, settings: dict[str, Any]) -> str | None:
        """The first key that was another one when the folder was begun, and the values; None where there is none.

        Raises ValueError, which names the file, for a job that cannot be read.
        """
        path = self.path / JOB
        try:
            stored = yaml.safe_load(path.read_bytes())
        except (yaml.YAMLError, ValueError):
            stored = None
        if not isinstance(stored, dict):
            raise ValueError(f"{path} is no job that can be read: give another run, or remove that folder")
        was, now = ({key: job[key] for key in job if key not in FREE} for job in (stored, settings))
        return _difference(was, now)

    @contextmanager
    def driven(self) -> Iterator[None]:
        """No other command trains here meanwhile. Makes the folder; raises ValueError where another one does."""
        self.path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(self._holding(self.path / LOCK, 0))
            except TimeoutError as error:
                raise ValueError(f"{error}: wait for it, or end it") from None
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other worker writes here meanwhile. Raises TimeoutError if one still does after a while."""
        with self._holding(self.path / CHECKPOINTS / LOCK, PATIENCE):
            yield

    @contextmanager
    def _holding(self, lock: Path, patience: float) -> Iterator[None]:
        """Takes a lock, which goes with the process. Raises TimeoutError where another has it for so many seconds."""
        with lock.open("w") as file:
            end = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise TimeoutError(f"run {self.path} is being trained by another process") from None
                    time.sleep(0.2)
            yield

    # Checkpoints

    def save(self, state: dict[str, Any]) -> None:
        """Writes a checkpoint, whose `step` is the number of steps that were done, and removes old ones.

        Raises ValueError, which names it, where the disk is full.
        """
        path = self.path / CHECKPOINTS / f"{state['step']:08d}.pt"
        partial = path.with_suffix(".partial")
        try:
            with writing(path), partial.open("wb") as file:
                _dump(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        for old in self._checkpoints()[:-KEPT]:
            old.unlink()

    def latest(self) -> dict[str, Any] | None:
        """The last checkpoint that can be read, on the CPU. Raises ValueError where there are some, and none can be."""
        paths = self._checkpoints()
        for path in reversed(paths):
            try:
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                return state
            except (RuntimeError, EOFError, pickle.UnpicklingError):  # cut short, empty, something else
                pass
        if paths:
            raise ValueError(f"{paths[-1]} cannot be read, nor is there another one: remove it to begin anew")
        return None

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / CHECKPOINTS).glob("*.pt"))

    @property
    def finished(self) -> bool:
        return (self.path / CARD).is_file()

    # The log

    def log(self, **line: Any) -> None:
        with writing(self.path / LOG), (self.path / LOG).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def rewind(self, step: int) -> None:
        """Drops what came after this step: lines of later ones, of a test, one that was cut off, later checkpoints.

        The lines are written again, and a later checkpoint is one that could not be read.
        """
        for later in self._checkpoints():
            if int(later.stem) > step:
                log.warning("%s cannot be read: the run goes on from step %s", later, step)
                later.unlink()
        lines = [line for line in self.lines() if 0 < step >= line["step"] and "test" not in line]
        _replace(self.path / LOG, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def lines(self) -> list[dict[str, Any]]:
        return self.lines_from(BEGINNING)[0]

    def lines_from(self, place: Place) -> tuple[list[dict[str, Any]], Place]:
        """The complete lines from that place on, and where they end; all of them where the log was rewound since.

        Raises ValueError, which names the file, for a line that is none of a log.
        """
        path = self.path / LOG
        if not path.is_file():
            return [], BEGINNING
        with path.open("rb") as file:
            number = os.fstat(file.fileno()).st_ino
            start = place[1] if place[0] == number else 0
            file.seek(start)
            *complete, rest = (content := file.read()).split(b"\n")
        return [_line(line, path) for line in complete], (number, start + len(content) - len(rest))


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.partial")
    with writing(path):
        partial.write_bytes(content)
        os.replace(partial, path)


def _dump(state: dict[str, Any], file: BinaryIO) -> None:
    """As torch does, which on a full disk ends in a complaint of its own."""
    try:
        torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _line(text: bytes, path: Path) -> dict[str, Any]:
    with suppress(ValueError):
        line = json.loads(text)
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            return line
    raise ValueError(f"{path} holds what is no line of a log, {text[:60]!r}: remove that line")


def _difference(was: Any, now: Any, key: str = "") -> str | None:
    """Where two settings differ first, as key=value and the other value; None where they do not.

    A key that is not there is off, and a section that is off on one side differs as a whole.
    """
    if isinstance(was, dict) and isinstance(now, dict):
        parts = {name: (was.get(name), now.get(name)) for name in (*now, *was)}
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        parts = dict(enumerate(zip(was, now, strict=True)))
    else:  # of True and 1, which are two, repr tells
        same = repr(None if was is False else was) == repr(None if now is False else now)
        return None if same else f"{key}={was!r}, not {now!r}"
    found = (_difference(*values, f"{key}.{name}" if key else str(name)) for name, values in parts.items())
    return next((said for said in found if said), None)


def flat(settings: Any, name: str = "") -> dict[str, Any]:
    """{"a.b.0": value} of what is nested."""
    inner = settings.items() if isinstance(settings, dict) else enumerate(settings)
    found: dict[str, Any] = {}
    for key, value in inner:
        full = f"{name}.{key}" if name else str(key)
        found |= flat(value, full) if isinstance(value, dict | list) else {full: value}
    return found
