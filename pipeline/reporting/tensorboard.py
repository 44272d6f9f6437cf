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
from pipeline.reporting.scalars import Scalars, as_utf8

FOLDER = "tensorboard"


class Board:
    """Scalars and pictures in the folder `tensorboard` of a run, written anew: each step is there once."""

    def __init__(self, run: Path) -> None:
        shutil.rmtree(run / FOLDER, ignore_errors=True)
        self.writer = SummaryWriter(str(run / FOLDER))
        self.scalars = Scalars()

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Lines of metrics.jsonl."""
        for name, value, step in self.scalars.new(lines):
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def show(self, examples: Mapping[str, Sequence[Example]], step: int) -> None:
        """The first example of each kind: image, label, prediction and what is wrong, side by side."""
        for kind, found in examples.items():
            for example in found[:1]:
                picture = np.asarray(Image.open(io.BytesIO(example.png)).convert("RGB"))
                self.writer.add_image(as_utf8(f"{kind}/{example.name}"), picture, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()
