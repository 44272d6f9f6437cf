"""A training run on MLflow: its job, the log as it grows, and in the end the report; sent by the driver.

Where MLflow cannot be reached any more, one line says so, and the run goes on without.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.reporting.scalars import FIRST, Scalar, Scalars, as_utf8
from pipeline.training.run_folder import TRACKED

log = logging.getLogger("pipeline")

FOLDER = "mlflow"
"""In the folder of a run: where MLflow keeps it if no other place is given."""
SETTINGS = {
    "ALLOW_FILE_STORE": "true",
    "DISABLE_TELEMETRY": "true",
    "HTTP_REQUEST_MAX_RETRIES": "3",
    "SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Of MLflow, where the environment does not say otherwise: it writes files if asked to, tells nobody else of what is
done, gives up an address where nobody answers after some seconds, not minutes, and leaves the command's output alone.
"""
EVERY = 5.0
"""Seconds between two times that numbers are sent."""
MOST_PARAMETERS, MOST_NUMBERS = 100, 1000
"""That MLflow takes at a time."""


def require() -> None:
    """Raises ValueError where MLflow is not installed."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(f"MLFLOW_{name}", value)
    try:
        import mlflow.tracking  # noqa: F401
    except ImportError:
        raise ValueError("mlflow needs one more package: pip install mlflow-skinny") from None


class Tracking:
    """The run of MLflow that a folder's run is: a new one, or that of an earlier command, of which the rest is sent.

    where: MLflow's tracking URI; True: that of its own environment variable, else a folder in the run's.
    Raises ValueError where MLflow is not installed, or cannot be reached there.
    """

    def __init__(self, folder: Path, where: str | bool, settings: Mapping[str, Any]) -> None:
        require()
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self.folder, self.lost = folder, False
        self.waiting: list[Scalar] = []
        uri = where if isinstance(where, str) else os.environ.get("MLFLOW_TRACKING_URI")
        try:
            self.client = MlflowClient(uri or (folder / FOLDER).absolute().as_uri())
            self.run = self._earlier() or self._begun(settings)
            self.scalars = Scalars({part: self._last(name) for part, name in FIRST.items()})
        except MlflowException as error:
            raise ValueError(f"mlflow: {_line(error)}") from None
        self.sent = time.monotonic()

    def _earlier(self) -> str | None:
        """The run of an earlier command, which goes on; None where there is none at this place."""
        from mlflow.exceptions import MlflowException

        path = self.folder / TRACKED
        if not path.is_file():
            return None
        try:
            self.client.update_run(path.read_text(), status="RUNNING")
        except MlflowException:
            return None
        return path.read_text()

    def _begun(self, settings: Mapping[str, Any]) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "pipeline")
        experiment = self.client.get_experiment_by_name(name)
        number = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
        run: str = self.client.create_run(number, run_name=self.folder.name).info.run_id
        told = [Param(key, as_utf8(str(value))) for key, value in settings.items() if value is not None]
        for at in range(0, len(told), MOST_PARAMETERS):
            self.client.log_batch(run, params=told[at : at + MOST_PARAMETERS])
        (self.folder / TRACKED).write_text(run)
        return run

    def _last(self, name: str) -> int:
        return max((metric.step for metric in self.client.get_metric_history(self.run, name)), default=0)

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Lines of metrics.jsonl."""
        self.waiting += self.scalars.new(lines)
        if time.monotonic() - self.sent > EVERY:
            self._send()

    def _send(self) -> None:
        from mlflow.entities import Metric

        now, numbers, self.waiting = round(time.time() * 1000), self.waiting, []
        told = [Metric(name, value, now, step) for name, value, step in numbers]
        for at in range(0, len(told), MOST_NUMBERS):
            self._try(self.client.log_batch, self.run, told[at : at + MOST_NUMBERS])
        self.sent = time.monotonic()

    def keep(self, files: Sequence[Path]) -> None:
        """Files as artifacts of the run."""
        for file in files:
            self._try(self.client.log_artifact, self.run, str(file))

    def _try(self, send: Callable[..., None], *arguments: Any) -> None:
        if self.lost:
            return
        try:
            send(*arguments)
        except Exception as error:  # whatever it is, it is no reason to end a training
            self.lost = True
            log.warning("mlflow: %s: the run goes on without", _line(error))

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._send()
        ended = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        self._try(self.client.set_terminated, self.run, ended)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
