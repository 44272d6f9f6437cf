"""The log of a training run for TensorBoard, written by the driver, which reads the log as it grows."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

from pipeline.reporting.examples import Example

FOLDER = "tensorboard"


class Board:
    """Scalars and pictures in the folder `tensorboard` of a run, written anew: each step is there once."""

    def __init__(self, run: Path) -> None:
        shutil.rmtree(run / FOLDER, ignore_errors=True)
        self.writer = SummaryWriter(str(run / FOLDER))
        self.steps = self.validations = 0

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Lines of metrics.jsonl; those of a step that was done again, after a worker's death, are passed over."""
        for line in lines:
            step = line["step"]
            if "loss" in line and step > self.steps:
                self.steps = step
                self._scalars(step, {f"training/{key}": line.get(key) for key in ("loss", "lr", "seconds")})
            if "validation" in line and step > self.validations:
                self.validations = step
                self._scores("validation", step, line["validation"])
            if "test" in line:
                self._scores("test", step, line["test"])
        self.writer.flush()

    def show(self, examples: Mapping[str, Sequence[Example]], step: int) -> None:
        """The first example of each kind: image, label, prediction and what is wrong, side by side."""
        for kind, found in examples.items():
            for example in found[:1]:
                picture = np.asarray(Image.open(io.BytesIO(example.png)).convert("RGB"))
                self.writer.add_image(f"{kind}/{example.name}", picture, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()

    def _scores(self, part: str, step: int, scores: Mapping[str, Any]) -> None:
        by_class = {f"{part}/iou/{number}": score for number, score in enumerate(scores["iou"])}
        self._scalars(step, {f"{part}/mean_iou": scores["mean_iou"], **by_class})

    def _scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        for name, value in values.items():
            if value is not None:
                self.writer.add_scalar(name, value, step)
