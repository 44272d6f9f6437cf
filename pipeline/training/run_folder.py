"""The folder of a training run: its job, checkpoints and log, and in the end the network.

job.yaml                 what was asked for, all keys, paths absolute
metrics.jsonl            one line a step, one a validation, one of the test, and first what batch: auto came to
checkpoints/STEP.pt      the last two; each is complete or not there
lock, checkpoints/lock   held while a command, and its first worker, go on with the run
network.json, weights.safetensors      once the run is finished
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

JOB, LOG, CHECKPOINTS, CARD = "job.yaml", "metrics.jsonl", "checkpoints", "network.json"
PARTIAL_JOB = f"{JOB}.partial"
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
        if (self.path / JOB).is_file():
            self._compare(settings)
        elif self.path.is_file() or any(path.name != PARTIAL_JOB for path in self.path.rglob("*") if not path.is_dir()):
            raise ValueError(f"run {self.path}: there is something else already: give another folder")

    def begin(self, settings: dict[str, Any]) -> None:
        """Makes the folder for a job of these settings, or finds that it is there for the same one; see `check`."""
        self.check(settings)
        if not (self.path / JOB).is_file():  # nothing is there, or what a beginning leaves that was killed
            self.path.mkdir(parents=True, exist_ok=True)
            _replace(self.path / JOB, yaml.safe_dump(settings, sort_keys=False).encode())
        (self.path / CHECKPOINTS).mkdir(exist_ok=True)

    def _compare(self, settings: dict[str, Any]) -> None:
        """Raises ValueError, which names the key, where the folder was begun with other settings."""
        stored, asked = (flat(job) for job in (yaml.safe_load((self.path / JOB).read_text()), settings))
        for key in (*asked, *stored):
            was, now = (
                None if job.get(key) is False else job.get(key) for job in (stored, asked)
            )  # false is off: none
            if key.split(".")[0] not in FREE and repr(was) != repr(now):  # of which True and 1 are two
                raise ValueError(
                    f"run {self.path} was begun with {key}={stored.get(key)!r}, not {asked.get(key)!r}: "
                    "give another run, or remove that folder"
                )

    @contextmanager
    def driven(self) -> Iterator[None]:
        """No other command trains here meanwhile. Raises ValueError where one does."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self._holding(self.path / "lock", 0))
            except TimeoutError as error:
                raise ValueError(f"{error}: wait for it, or end it") from None
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other worker writes here meanwhile. Raises TimeoutError if one still does after a while."""
        with self._holding(self.path / CHECKPOINTS / "lock", PATIENCE):
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
        """Writes a checkpoint, whose `step` is the number of steps that were done, and removes old ones."""
        path = self.path / CHECKPOINTS / f"{state['step']:08d}.pt"
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        for old in self._checkpoints()[:-KEPT]:
            old.unlink()

    def latest(self) -> dict[str, Any] | None:
        """The last checkpoint, on the CPU."""
        paths = self._checkpoints()
        return torch.load(paths[-1], map_location="cpu", weights_only=True) if paths else None

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / CHECKPOINTS).glob("*.pt"))

    @property
    def finished(self) -> bool:
        return (self.path / CARD).is_file()

    # The log

    def log(self, **line: Any) -> None:
        with (self.path / LOG).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def rewind(self, step: int) -> None:
        """Drops the lines of steps beyond this one, of a test, and one that was cut off: they are written again."""
        lines = [line for line in self.lines() if 0 < step >= line["step"] and "test" not in line]
        _replace(self.path / LOG, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def lines(self) -> list[dict[str, Any]]:
        return self.lines_from(BEGINNING)[0]

    def lines_from(self, place: Place) -> tuple[list[dict[str, Any]], Place]:
        """The complete lines from that place on, and where they end; all of them where the log was rewound since."""
        path = self.path / LOG
        if not path.is_file():
            return [], BEGINNING
        with path.open("rb") as file:
            number = os.fstat(file.fileno()).st_ino
            start = place[1] if place[0] == number else 0
            file.seek(start)
            *complete, rest = (content := file.read()).split(b"\n")
        return [json.loads(line) for line in complete], (number, start + len(content) - len(rest))


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def flat(settings: Any, name: str = "") -> dict[str, Any]:
    """{"a.b.0": value} of what is nested."""
    inner = settings.items() if isinstance(settings, dict) else enumerate(settings)
    found: dict[str, Any] = {}
    for key, value in inner:
        full = f"{name}.{key}" if name else str(key)
        found |= flat(value, full) if isinstance(value, dict | list) else {full: value}
    return found
