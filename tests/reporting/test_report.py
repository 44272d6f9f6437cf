"""The report of a run: one file that holds its curves, scores, examples and facts, and fetches nothing."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.analysis import Analysis
from pipeline.config import options
from pipeline.network.loading import load_network
from pipeline.planning import plan_image
from pipeline.reporting.examples import GREY, WRONG, draw, find_examples
from pipeline.reporting.report import read_records, write_report
from pipeline.storage.image import open_image
from pipeline.training.finding import find_pairs
from pipeline.training.metrics import metrics
from pipeline.training.pairs import IGNORE
from pipeline.training.validation import Validation


class Bright(nn.Module):
    """Class 1 where the red channel is above 100."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        red = x[:, :1] - 100
        return torch.cat([-red, red], 1)


def held_out(folder: Path) -> Validation:
    """Eight images whose labels are more and more wrong, and one without any of class 1."""
    random = np.random.default_rng(0)
    for number in range(9):
        image = random.integers(0, 256 if number else 90, (40, 48, 3), np.uint8)
        label = (image[..., 0] > 100).astype(np.uint8)
        wrong = random.random(label.shape) < 0.05 * number
        label[wrong] = 1 - label[wrong]
        Image.fromarray(image).save(folder / f"{number}.png")
        Image.fromarray(label).save(folder / f"{number}_label.png")
    asked = options(device="cpu")
    network = load_network(Bright().eval())
    analysis = Analysis(network, options(device="cpu", channels=(0, 1, 2)))
    pattern = (f"{folder}/{{name}}.png", f"{folder}/{{name}}_label.png")
    pairs = find_pairs([pattern], field=analysis.field, channels=3, classes=2).train
    plans = [plan_image(open_image(pair.image), analysis, asked) for pair in pairs]
    return Validation(pairs, plans, 3, 2)


def run_folder(folder: Path) -> Path:
    run = folder / "<run>"
    run.mkdir()
    card = {"name": "<nuclei>", "class_names": ["ground", "nucleus"], "data": {"train": 80}, "commit": "abc123"}
    (run / "network.json").write_text(json.dumps(card))
    records: list[dict[str, object]] = []
    for step in range(1, 201):
        records.append({"step": step, "loss": 1 / step, "lr": 0.1, "seconds": 0.1, "pixels": 1000})
        if step % 50 == 0:
            scores = metrics(np.array([[800 + step, 200 - step], [50, 50 + step]])).to_json()
            records.append({"step": step, "validation": scores})
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


def test_all_is_in_one_file_that_fetches_nothing(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path), *find_examples(held_out(tmp_path), Bright().eval())).read_text()
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert "200 steps" in page and "best mean IoU" in page and "at step 200" in page
    assert "200 000 labelled outputs drawn" in page  # not trained on: with loss_keep only a share of these is
    assert page.count("<svg") == 2 and ">step</text>" in page and ">loss</text>" in page and ">mean IoU</text>" in page
    assert "<th>ground</th>" in page and "<th>nucleus</th>" in page
    assert "1 000<br>" in page and "100.0 %" in page and "250<br>" in page and "83.3 %" in page  # the last matrix
    assert "&lt;nuclei&gt;" in page and "<nuclei>" not in page
    assert "abc123" in page and "data.train" in page


def test_examples_are_the_best_and_the_worst(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path), *find_examples(held_out(tmp_path), Bright().eval())).read_text()
    names = re.findall(r"<figcaption>(\d), rows 0 to 40, columns 0 to 48: mean IoU", page)
    assert names == ["1", "2", "3", "8", "7", "6"]  # 0, all ground, is right everywhere and shows nothing
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert len(pictures) == 6
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).size == (4 * 5 * 48 + 18, 5 * 40)


def test_a_run_without_validation_or_any_step(tmp_path: Path) -> None:
    page = write_report(tmp_path).read_text()
    assert "No step was recorded." in page and "Confusion" not in page and "<svg" not in page
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": null}\n{"step": 2, "loss": 0.5}\n')
    page = write_report(tmp_path).read_text()
    assert page.count("<svg") == 1 and "last loss 0.5" in page


def test_a_report_takes_the_place_of_an_old_one_at_once(tmp_path: Path) -> None:
    """Whoever has the old one open reads it to its end, and a kill leaves one of the two."""
    path = write_report(tmp_path)
    with path.open() as old:
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
        assert "last loss 0.5" in write_report(tmp_path).read_text()
        assert "No step was recorded" in old.read()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.jsonl", "report.html"]


def test_what_a_killed_run_left_is_read(tmp_path: Path) -> None:
    lines = ['{"step": 1, "loss": 3}', '{"step": 2, "loss": 2}', '{"step": 2, "loss": 1}', '{"step": 3, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    steps, validations = read_records(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["loss"]) for r in steps] == [(1, 3), (2, 1)] and validations == []


@pytest.mark.parametrize("side", [4, 300])
def test_panels_show_what_is_wrong_and_what_is_ignored(side: int) -> None:
    truth = np.zeros((side, side), np.int64)
    truth[: side // 2] = IGNORE
    predicted = np.zeros((side, side), np.uint8)
    predicted[:, side // 2 :] = 1
    png = draw(np.full((1, side, side), 7, np.uint16), truth, predicted, classes=2)
    page = np.asarray(Image.open(io.BytesIO(png)))
    assert len(page) == 256
    last = page[:, -256:]
    assert tuple(last[10, 10]) == tuple(last[10, 250]) == GREY
    assert tuple(last[250, 250]) == WRONG and tuple(last[250, 10]) not in (WRONG, GREY)
