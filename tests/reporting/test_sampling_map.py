"""The sampling map: how often parts of images were drawn, in pictures whose size is bounded."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pipeline
from pipeline.jobfile import validated
from pipeline.reporting import sampling_map
from pipeline.reporting.sampling_map import COLOUR, SIDE, sampling_maps
from pipeline.training_job import TrainJob
from pipeline.training_task import task_of
from tests.training.test_training import job

KINDS: list[dict[str, Any]] = [
    {"sampling": {"kind": "tiles", "core": 16}, "batch": 5},
    {"sampling": {"kind": "tiles", "core": [32, 16]}, "batch": "image"},
    {"sampling": {"kind": "whole"}, "batch": 2},
    {"sampling": {"kind": "patches"}, "batch": 50},
]


@pytest.mark.parametrize("given", KINDS)
def test_what_is_said_is_what_the_steps_drew(tmp_path: Path, given: dict[str, Any]) -> None:
    task = task_of(validated(TrainJob, job(tmp_path, steps=7, **given)))
    counts = np.zeros((3, 72, 80))
    for step in range(7):
        for sample in task.sampler().step(step):
            counts[sample.image][sample.tile.core.slices] += 1
    said = [
        re.findall(r"^(\d): (\S+) to (\S+) times, (\S+) on average$", shown.said)[0] for shown in sampling_maps(task)
    ]
    assert [name for name, *_ in said] == ["0", "1", "2"]
    expected = [(of.min(), of.max(), of.mean()) for of in counts]
    assert np.allclose([[float(n) for n in numbers] for _, *numbers in said], expected, rtol=5e-3)


def test_what_was_drawn_most_has_the_most_colour(tmp_path: Path) -> None:
    task = task_of(validated(TrainJob, job(tmp_path, steps=1, batch=4)))
    counts = np.zeros((3, 72, 80), bool)
    for sample in task.sampler().step(0):
        counts[sample.image][sample.tile.core.slices] = True
    for of, shown in zip(counts, sampling_maps(task), strict=True):
        picture = np.asarray(Image.open(io.BytesIO(shown.png))).astype(float)
        assert picture.shape == (72, 80, 3)
        tinted = picture[..., 0] - picture[..., 2] > 0.5 * (COLOUR[0] - COLOUR[2])
        assert (tinted == of).mean() > 0.95


def test_large_images_and_long_runs_are_small_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger than a picture, read or not; of many steps, only some are looked at, and the others counted like them."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((300, 1000, 3), 200, np.uint8)).save(tmp_path / "images" / "0.png")
    Image.fromarray(np.zeros((300, 1000), np.uint8)).save(tmp_path / "images" / "0_label.png")
    task = task_of(validated(TrainJob, job(tmp_path, steps=10**6, sampling={"kind": "whole"}, batch=1)))
    few = task_of(validated(TrainJob, job(tmp_path, steps=1, sampling={"kind": "patches"}, batch=3000)))
    assert sampling_maps(few)[0].said.endswith(" times, 0.01 on average")  # much smaller than a pixel of the picture
    monkeypatch.setattr(sampling_map, "SAMPLES", 100)
    for limit, tint in ((sampling_map.READ, 200), (1000, 255)):
        monkeypatch.setattr(sampling_map, "READ", limit)
        (shown,) = sampling_maps(task)
        assert shown.said == "0: 1e+06 to 1e+06 times, 1e+06 on average"
        picture = np.asarray(Image.open(io.BytesIO(shown.png)))
        assert picture.shape == (SIDE * 300 // 1000, SIDE, 3)
        assert np.abs(picture - (0.25 * tint + 0.75 * COLOUR)).max() < 1


@pytest.mark.parametrize("core", [32, 96])
def test_an_epoch_is_once_everywhere_however_cores_fall_on_the_pixels_of_the_picture(tmp_path: Path, core: int) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((700, 1000, 3), np.uint8)).save(tmp_path / "images" / "0.png")
    Image.fromarray(np.zeros((700, 1000), np.uint8)).save(tmp_path / "images" / "0_label.png")
    made = job(tmp_path, steps=1, sampling={"kind": "tiles", "core": core}, batch="image")
    (shown,) = sampling_maps(task_of(validated(TrainJob, made)))
    assert shown.said == "0: 1 to 1 times, 1 on average"


def test_the_report_of_a_run_holds_it(tmp_path: Path) -> None:
    run = pipeline.train(job(tmp_path, steps=2))
    page = (Path(run.path) / "report.html").read_text()
    assert (
        "<h2>Sampling</h2>" in page and len(re.findall(r"\d: \S+ to \S+ times, \S+ on average</figcaption>", page)) == 3
    )
