"""A job from its file to the network that results: trained here, gone on with, refused, and used for inference."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image

import pipeline
from pipeline import commands
from pipeline.jobfile import validated
from pipeline.network.loading import load_network
from pipeline.training.group import Group
from pipeline.training.loop import begin, gradient, validate_every
from pipeline.training.loop import network as network_of
from pipeline.training.run_folder import RunFolder
from pipeline.training.statistics import Statistics
from pipeline.training.task import Schedule
from pipeline.training_job import TrainJob
from pipeline.training_task import task_of
from tests import warm

ROOT = Path(__file__).parents[2]


def draw(folder: Path, count: int = 3, size: int = 72) -> None:
    """Bright discs on a dark ground, with the class of each pixel; a few labels are 255, for ignored."""
    folder.mkdir(exist_ok=True)
    y, x = np.mgrid[:size, : size + 8]
    for number in range(count):
        random = np.random.default_rng(number)
        label = np.zeros(y.shape, np.uint8)
        for _ in range(6):
            cy, cx, r = random.integers(0, size), random.integers(0, size), random.integers(5, 12)
            label[(y - cy) ** 2 + (x - cx) ** 2 < r**2] = 1
        image = random.integers(0, 90, (*y.shape, 3)) + 120 * label[..., None]
        label[random.random(y.shape) < 0.05] = 255
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png")
        Image.fromarray(label).save(folder / f"{number}_label.png")


def job(folder: Path, **given: Any) -> dict[str, Any]:
    if not (folder / "images").exists():
        draw(folder / "images")
    images = f"{folder}/images/{{name}}.png"
    return {
        "run": str(folder / "run"),
        "network": {"architecture": "unet", "base": 4, "depth": 2, "norm": "none", "channels": 3, "classes": 2},
        "data": {"train": [{"image": images, "label": images.replace(".png", "_label.png")}], "ignore": 255},
        "normalise": {"scale": 1 / 255, "mean": 0.5, "std": 0.25},
        "sampling": {"kind": "tiles", "core": 32},
        "batch": 4,
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        "steps": 6,
        "workers": 0,
        **given,
    }


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [warm.python(), *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )


def weights(folder: str | Path) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in load_network(folder).module.state_dict().values()])


def test_what_was_trained_predicts(tmp_path: Path) -> None:
    """The command as it is typed, the network folder that results, and inference with it."""
    data = {**job(tmp_path)["data"], "validation": {"fraction": 0.3}, "test": {"fraction": 0.3}}
    asked = job(tmp_path, steps=40, data=data, optimizer={"name": "adam", "lr": 0.01})
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(asked))
    done = command("-m", "pipeline.train", str(tmp_path / "job.yaml"))
    assert done.returncode == 0, done.stderr
    assert "run: 40 steps, mean IoU 0." in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 41))
    assert steps[-1]["loss"] < 0.5 * steps[0]["loss"] and all(line["pixels"] > 0 for line in steps)
    scores = [line["validation"]["mean_iou"] for line in lines if "validation" in line]
    card = json.loads((tmp_path / "run" / "network.json").read_text())
    assert card["training"]["validation"]["mean_iou"] == max(scores) > 0.6
    assert sorted(card["data"][part][0] for part in ("train", "validation", "test")) == ["0", "1", "2"]
    assert card["normalise"]["mean"] == 0.5
    assert [line["test"] for line in lines if "test" in line] == [card["training"]["test"]]
    assert f"of the test {card['training']['test']['mean_iou']:.3f}" in done.stdout
    assert "Test: confusion matrix" in (tmp_path / "run" / "report.html").read_text()
    again = command(str(ROOT / "jobs" / "train.py"), str(tmp_path / "job.yaml"), "workers=1")
    assert again.returncode == 0 and "finished already, nothing to do" in again.stdout
    image, output = tmp_path / "images" / "0.png", tmp_path / "o.zarr"
    done = command(
        "-m", "pipeline.infer", str(image), "-o", str(output), "--network", str(tmp_path / "run"), "--workers", "1"
    )
    assert done.returncode == 0, done.stderr
    label = np.asarray(Image.open(tmp_path / "images" / "0_label.png"))
    found = np.asarray(pipeline.predict(str(image), tmp_path / "run", output, workers=1).array)
    assert (found == label)[label != 255].mean() > 0.9


@pytest.mark.parametrize("given", [{}, {"precision": "float64", "ema": 0.5}])
def test_from_python_as_a_dict_and_gone_on_with_bit_for_bit(tmp_path: Path, given: dict[str, Any]) -> None:
    """A run that ended half way goes on as if it had not, momentum, mean and order of the samples included."""
    whole = pipeline.train(job(tmp_path, run=str(tmp_path / "whole"), checkpoint_every=2, **given))
    assert whole.path == str(tmp_path / "whole") and whole.metrics["step"] == 6 and whole.metrics["loss"] > 0
    half = tmp_path / "half"
    pipeline.train(job(tmp_path, run=str(half), checkpoint_every=2, **given))
    for name in ("network.json", "weights.safetensors", "checkpoints/00000006.pt"):
        (half / name).unlink()
    with (half / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    again = pipeline.train(job(tmp_path, run=str(half), checkpoint_every=3, **given))
    assert again.resumed == 4
    assert torch.equal(weights(half), weights(whole.path))
    losses = [[json.loads(line)["loss"] for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
              for run in (half, whole.path)]  # fmt: skip
    assert losses[0] == losses[1] and len(losses[0]) == 6


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_says_that_the_same_command_continues(tmp_path: Path, number: int, status: int) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job(tmp_path, steps=10**6)))
    words = [sys.executable, "-m", "pipeline.train", str(tmp_path / "job.yaml")]
    # started in the background, a process is born deaf to SIGINT
    process = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # fmt: skip
    log, end = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 200
    while not log.exists() or log.read_text().count("\n") < 3:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status and said.rstrip().endswith("the same command continues")


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_weights_are_stored_in_the_precision_of_training(tmp_path: Path, precision: str) -> None:
    result = pipeline.train(job(tmp_path, precision=precision, steps=1))
    assert weights(result.path).dtype == getattr(torch, precision)


def test_another_job_under_the_same_name_is_refused_by_key(tmp_path: Path) -> None:
    pipeline.train(job(tmp_path, steps=1))
    for key, value, said in (
        ("seed", 3, "seed=0, not 3"),
        ("steps", 2, "steps=1, not 2"),
        ("optimizer", {"name": "sgd", "lr": 0.2, "momentum": 0.9}, "optimizer.lr=0.1, not 0.2"),
    ):
        with pytest.raises(ValueError, match=rf"run .*run was begun with {said}: give another run"):
            pipeline.train(job(tmp_path, **{"steps": 1, key: value}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="there is something else already"):
        pipeline.train(job(tmp_path, run=str(tmp_path / "other")))
    assert os.listdir(tmp_path / "other") == ["thesis.txt"]
    with pytest.raises(ValueError, match="there is something else already"):
        pipeline.train(job(tmp_path, run=str(tmp_path / "other" / "thesis.txt")))


def test_other_data_under_the_same_job_are_refused(tmp_path: Path) -> None:
    pipeline.train(job(tmp_path, steps=2, checkpoint_every=1))
    for name in ("network.json", "checkpoints/00000002.pt"):
        (tmp_path / "run" / name).unlink()
    draw(tmp_path / "images", count=4)
    with pytest.raises(ValueError, match="was begun with other images or labels than there are now"):
        pipeline.train(job(tmp_path, steps=2, checkpoint_every=1))


@pytest.mark.parametrize("what", ["0.png", "0_label.png", "nothing"])
def test_other_pixels_and_other_labels_under_the_same_names_are_refused(tmp_path: Path, what: str) -> None:
    """Also where they are of the same size, and as many of each class; not a copy of the same."""
    made = job(tmp_path, steps=2, checkpoint_every=1)
    (Path(pipeline.train(made).path) / "network.json").unlink()  # as if it had been killed just before
    for file in (tmp_path / "images").iterdir():
        file.write_bytes(file.read_bytes())
    if what == "nothing":
        assert pipeline.train(made).resumed == 2
        return
    file = tmp_path / "images" / what
    Image.fromarray(np.asarray(Image.open(file))[::-1]).save(file)
    with pytest.raises(ValueError, match="was begun with other images or labels than there are now"):
        pipeline.train(made)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_other_held_out_data_are_refused_too(tmp_path: Path, part: str) -> None:
    """The best weights are found by scores of the same images, and a test is of those that it was begun with."""
    draw(tmp_path / "held", count=1)
    held = [{"image": f"{tmp_path}/held/{{name}}.png", "label": f"{tmp_path}/held/{{name}}_label.png"}]
    made = job(tmp_path, steps=2, checkpoint_every=1, data={**job(tmp_path)["data"], part: held})
    (Path(pipeline.train(made).path) / "network.json").unlink()  # as if it had been killed just before
    draw(tmp_path / "held", count=2)
    with pytest.raises(ValueError, match="was begun with other images or labels than there are now"):
        pipeline.train(made)


def test_what_does_not_fit_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    group = {"architecture": "unet", "norm": "group", "base": 4}
    unread = {"train": [{"image": str(tmp_path / "none.png"), "label": str(tmp_path / "none_label.png")}]}
    for given, said in (
        ({"sampling": {"core": 30}}, "sampling.core=30 .* the nearest are 28 and 32"),
        ({"class_weights": [1, 2, 3]}, "class_weights=.* tells 2 classes apart"),
        ({"class_weights": [0, 0]}, r"^class_weights=\[0.0, 0.0\]: what is labelled has weight 0, so nothing would be"),
        ({"network": group}, "sampling.kind=tiles: .* not local"),
        (
            {"network": group, "sampling": {"kind": "whole"}, "data": {**unread, "validation": {"fraction": 0.3}}},
            "^data.validation: the network is not local, so it cannot be scored tile by tile: leave it out$",
        ),
        (
            {"network": group, "sampling": {"kind": "whole"}, "data": {**unread, "test": {"fraction": 0.3}}},
            "^data.test: the network is not local",
        ),
        ({"run": "s3://bucket/run"}, "not a URL"),
        ({"batch": "some"}, "batch"),
    ):
        with pytest.raises(ValueError, match=said):
            pipeline.train(job(tmp_path, **given))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["1", "P"])
def test_masks_of_one_bit_and_of_palettes_are_the_classes_that_they_were_saved_as(tmp_path: Path, mode: str) -> None:
    """As Pillow saves arrays of bool, and Pascal VOC its classes."""
    made, masks = job(tmp_path), tmp_path / "images"
    before = task_of(validated(TrainJob, made)).card["data"]["labelled"]
    for file in masks.glob("*_label.png"):
        mask = Image.fromarray(np.asarray(Image.open(file)) == 1)
        if mode == "P":
            mask = Image.fromarray(np.asarray(mask).astype(np.uint8), "L").convert("P")
            mask.putpalette([9, 9, 9, 200, 0, 0])
        mask.save(file)
    ground, foreground = task_of(validated(TrainJob, made)).card["data"]["labelled"]
    assert foreground >= before[1] > 0 and ground + foreground == 3 * 72 * 80


def test_a_class_without_any_label_is_said_once_and_one_without_weight_is_not_trained_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = {"architecture": "unet", "base": 4, "depth": 2, "norm": "none", "channels": 3, "classes": 4}
    task_of(validated(TrainJob, job(tmp_path)))
    assert not caplog.messages
    task_of(validated(TrainJob, job(tmp_path, network=network)))
    assert caplog.messages == ["nothing that is trained on is labelled 2 or 3: the network cannot learn it; see "
                               "data.ignore and data.binary if it should be there"]  # fmt: skip
    with pytest.raises(ValueError, match=r"^class_weights=\[0.0, 0.0, 1.0, 1.0\]: what is labelled has weight 0"):
        task_of(validated(TrainJob, job(tmp_path, network=network, class_weights=[0, 0, 1, 1])))


def test_a_mistake_takes_no_folder_that_was_made_for_the_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=r"sampling\.core=30"):
        pipeline.train(job(tmp_path, steps=1, sampling={"core": 30}))
    assert not any((tmp_path / "run").iterdir())
    assert pipeline.train(job(tmp_path, steps=1)).metrics["step"] == 1


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^step \d+: the loss is (nan|inf): lower optimizer.lr"):
        pipeline.train(job(tmp_path, optimizer={"name": "sgd", "lr": 1e9}))


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (np.nan, np.float32, r"0\.tif: nan at row 64, column 72 cannot be trained on"),
        (-np.inf, np.float16, r"0\.tif: -inf at row 64, column 72 cannot be trained on"),
        (1e300, np.float64, "the gradient is not finite, though the loss is: look for pixels beyond float32"),
    ],
)
def test_pixels_that_are_no_numbers_end_the_run_though_their_labels_are_ignored(
    tmp_path: Path, value: float, dtype: type[np.generic], said: str
) -> None:
    """No output that has a loss depends on them, but 0 times them is in the gradient; nothing is written of it."""
    draw(tmp_path / "images", count=1)
    image = np.array(Image.open(tmp_path / "images" / "0.png")).astype(dtype)
    label = np.array(Image.open(tmp_path / "images" / "0_label.png"))
    image[64:, 72:], label[24:, 32:] = value, 255
    tifffile.imwrite(tmp_path / "images" / "0.tif", image, photometric="rgb")
    Image.fromarray(label).save(tmp_path / "images" / "0_label.png")
    data = {**job(tmp_path)["data"], "train": [{"image": f"{tmp_path}/images/0.tif",
                                                "label": f"{tmp_path}/images/0_label.png"}]}  # fmt: skip
    given = {"data": data, "sampling": {"kind": "whole"}, "batch": 1, "checkpoint_every": 1, "clip": 1.0}
    with pytest.raises(ValueError, match=rf"^step 1: .*{said}"):
        pipeline.train(job(tmp_path, **given))
    assert not any((tmp_path / "run" / "checkpoints").glob("*.pt"))


def test_an_image_too_small_for_batch_norm_alone_ends_the_run_with_what_to_do(tmp_path: Path) -> None:
    """Read as 16 x 16 pixels it is a single one at the bottom of the network; two of it share a pass."""
    draw(tmp_path / "images", count=1, size=12)
    for file in (tmp_path / "images").iterdir():
        Image.open(file).crop((0, 0, 12, 12)).save(file)
    network = {"architecture": "unet", "base": 2, "depth": 4, "norm": "batch"}
    made = job(tmp_path, network=network, batch=1)
    with pytest.raises(ValueError, match=r"^step 1: 16 x 16 pixels, alone in .*: give larger images, a larger batch"):
        pipeline.train(made)
    assert pipeline.train(job(tmp_path, run=f"{tmp_path}/b", network=network, batch=2, steps=1)).metrics["step"] == 1


@pytest.mark.parametrize(
    "given",
    [
        {"sampling": {"kind": "whole"}, "batch": 1},
        {"sampling": {"kind": "patches"}, "batch": 5},
        {"batch": "image", "sampling": {"kind": "tiles", "core": 32, "loss_keep": 0.5}},
        {"optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}, "class_weights": [1, 3], "clip": 0.5},
        {"ema": 0.5, "schedule": {"name": "cosine", "warmup": 1}},
        {"network": {"architecture": "fcn", "variant": 32, "widths": [2, 2, 2, 2, 2], "head": 4}},
        {"network": {"architecture": "unet", "base": 4, "depth": 1, "norm": "batch", "classes": 1}},
    ],
)
def test_kinds_optimisers_and_architectures_train(tmp_path: Path, given: dict[str, Any]) -> None:
    result = pipeline.train(job(tmp_path, **{"steps": 3, **given}))
    assert result.metrics["step"] == 3 and np.isfinite(result.metrics["loss"])


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_training_starts_from_the_weights_of_a_network_folder(tmp_path: Path, precision: str) -> None:
    """All their digits: so small a rate moves nothing."""
    first = pipeline.train(job(tmp_path, precision=precision, steps=2))
    asked = job(tmp_path, run=str(tmp_path / "second"), network=first.path, precision=precision, steps=1,
                optimizer={"lr": 1e-30})  # fmt: skip
    del asked["normalise"]
    assert torch.equal(weights(pipeline.train(asked).path), weights(first.path))
    with pytest.raises(ValueError, match="has its own normalisation"):
        pipeline.train(job(tmp_path, run=str(tmp_path / "third"), network=first.path))


def test_names_of_classes_outlast_further_training(tmp_path: Path) -> None:
    made = job(tmp_path, network="nuclei", steps=1)
    del made["normalise"]
    assert load_network(pipeline.train(made).path).card["class_names"] == ["background", "nucleus"]


def test_the_learning_rate_over_a_run(tmp_path: Path) -> None:
    assert [Schedule(None, 3).factor(step, 8) for step in range(1, 6)] == [0.25, 0.5, 0.75, 1, 1]
    cosine = [Schedule("cosine").factor(step, 4) for step in range(1, 5)]
    assert np.allclose(cosine, [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])
    assert np.allclose([Schedule("poly", 2).factor(step, 4) for step in range(1, 5)], [1 / 3, 2 / 3, 1, 0.5**0.9])
    pipeline.train(job(tmp_path, steps=4, schedule={"name": "cosine"}))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.allclose([line["lr"] for line in lines], np.multiply(cosine, 0.1))


def test_the_mean_of_the_weights_is_what_results_and_goes_on(tmp_path: Path) -> None:
    """Against the weights after each step, of runs that ended there; the first steps keep less of the beginning."""
    each = [weights(pipeline.train(job(tmp_path, run=str(tmp_path / f"{n}"), steps=n)).path) for n in (1, 2, 3)]
    start = torch.cat([p.flatten() for p in begin(task_of(validated(TrainJob, job(tmp_path))))["module"].values()])
    run = pipeline.train(job(tmp_path, steps=3, ema=0.28, checkpoint_every=1)).path
    expected = start
    for kept, after in zip((2 / 11, 3 / 12, 0.28), each, strict=True):
        expected = kept * expected + (1 - kept) * after
    found = weights(run)
    assert torch.allclose(found, expected, atol=1e-6)
    for name in ("network.json", "checkpoints/00000003.pt"):
        (Path(run) / name).unlink()
    assert torch.equal(weights(pipeline.train(job(tmp_path, steps=3, ema=0.28)).path), found)


def test_a_balanced_run_draws_what_is_labelled_alone_and_goes_on_the_same(tmp_path: Path) -> None:
    draw(tmp_path / "images", count=2)
    for number in range(2):
        file = tmp_path / "images" / f"{number}_label.png"
        label = np.array(Image.open(file))
        label[:, 32:] = 255
        Image.fromarray(label).save(file)
    assert len(task_of(validated(TrainJob, job(tmp_path))).sampler()) == 2 * 3
    made = job(tmp_path, sampling={"kind": "tiles", "core": 32, "balanced": True}, steps=4, checkpoint_every=1)
    first = weights(pipeline.train(made).path)
    for name in ("network.json", "checkpoints/00000004.pt"):
        (tmp_path / "run" / name).unlink()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert pipeline.train(made).resumed == 3 and torch.equal(weights(tmp_path / "run"), first)
    assert all(line["pixels"] > 0 for line in lines)


def test_a_run_goes_on_that_was_begun_before_there_was_a_key(tmp_path: Path) -> None:
    path = pipeline.train(job(tmp_path, steps=1)).path
    begun = yaml.safe_load((Path(path) / "job.yaml").read_text())
    assert begun["sampling"].pop("balanced") is False
    (Path(path) / "job.yaml").write_text(yaml.safe_dump(begun))
    assert pipeline.train(job(tmp_path, steps=1)).resumed == 1
    with pytest.raises(ValueError, match=r"begun with sampling\.balanced=None, not True"):
        pipeline.train(job(tmp_path, steps=1, sampling={"kind": "tiles", "core": 32, "balanced": True}))


def test_the_network_that_results_is_tested_once(tmp_path: Path) -> None:
    """The best by validation, not the last; exactly as validation would, and once though the end was interrupted."""
    draw(tmp_path / "images", count=5)
    data = job(tmp_path)["data"]
    made = job(tmp_path, steps=6, data={**data, "validation": {"fraction": 0.2}, "test": {"fraction": 0.2}})
    pipeline.train(made)
    (tmp_path / "run" / "network.json").unlink()
    task, last = task_of(validated(TrainJob, made)), tmp_path / "run" / "checkpoints" / "00000006.pt"
    state, first = torch.load(last), begin(task)["module"]
    torch.save(state | {"best": state["best"] | {"module": first}}, last)
    result = pipeline.train(made)
    assert torch.equal(weights(result.path), torch.cat([tensor.flatten() for tensor in first.values()]))
    card = json.loads((tmp_path / "run" / "network.json").read_text())
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["test"]) for line in log if "test" in line] == [
        (card["training"]["step"], result.metrics["test"])
    ]
    assert task.test is not None and [pair.name for pair in task.test.pairs] == card["data"]["test"]
    matrix = task.test.confusion(load_network(result.path).module).sum(axis=0)
    assert result.metrics["test"]["confusion"] == matrix.tolist()


@pytest.mark.parametrize(
    ("sampling", "steps", "every"),
    [
        ({"kind": "patches"}, 200, 20),  # an epoch has thousands of steps
        ({"kind": "tiles", "core": 32}, 100, 7),  # 27 tiles by 4
        ({"kind": "whole"}, 200, 10),  # an epoch has a single step
    ],
)
def test_what_is_held_out_is_scored_again_and_again(
    tmp_path: Path, sampling: dict[str, Any], steps: int, every: int
) -> None:
    task = task_of(validated(TrainJob, job(tmp_path, sampling=sampling, steps=steps)))
    assert validate_every(task, task.sampler()) == every


def test_a_clipped_gradient_has_that_norm(tmp_path: Path) -> None:
    plain = {"name": "sgd", "lr": 1.0}
    run = pipeline.train(job(tmp_path, steps=1, clip=0.01, optimizer=plain)).path
    start = torch.cat([p.flatten() for p in begin(task_of(validated(TrainJob, job(tmp_path))))["module"].values()])
    assert abs(float((weights(run) - start).norm()) - 0.01) < 1e-4


def test_frozen_batch_norm_keeps_its_statistics_and_another_one_moves_them(tmp_path: Path) -> None:
    network = {"architecture": "unet", "base": 4, "depth": 1, "norm": "batch", "classes": 2}
    for frozen in (True, False):
        run = pipeline.train(job(tmp_path, run=f"{tmp_path}/{frozen}", steps=2, network=network, freeze_norm=frozen))
        state = load_network(run.path).module.state_dict()
        means = [value for key, value in state.items() if key.endswith("running_mean")]
        assert len(means) == 6 and all(bool(mean.any()) != frozen for mean in means)


def test_batch_norm_that_is_frozen_later_keeps_the_statistics_of_the_steps_before(tmp_path: Path) -> None:
    network = {"architecture": "unet", "base": 4, "depth": 1, "norm": "batch", "classes": 2}
    states = {}
    for name, more in {"one": {"steps": 1}, "frozen": {"steps": 3, "freeze_norm": 1}, "moved": {"steps": 3}}.items():
        run = pipeline.train(job(tmp_path, run=f"{tmp_path}/{name}", network=network, **more))
        states[name] = load_network(run.path).module.state_dict()
    buffers = [key for key in states["one"] if "running" in key or "tracked" in key]
    assert all(torch.equal(states["frozen"][key], states["one"][key]) for key in buffers) and len(buffers) == 18
    assert not any(torch.equal(states["moved"][key], states["one"][key]) for key in buffers)
    assert not torch.equal(states["frozen"]["classify.weight"], states["one"]["classify.weight"])


def test_both_passes_of_dice_see_the_same_views_and_keep_the_same_outputs(tmp_path: Path) -> None:
    """A step's gradient against torch's alone, over all tiles at once; batch norm sees each pixel once."""
    network = {"architecture": "unet", "base": 4, "depth": 1, "norm": "batch", "classes": 2}
    augment = {"flip": True, "rotate": True, "contrast": 0.3, "noise": 9}
    sampling = {"kind": "tiles", "core": 32, "loss_keep": 0.5}
    given = {"loss": "dice", "network": network, "augment": augment, "sampling": sampling, "together": 1}
    task = task_of(validated(TrainJob, job(tmp_path, precision="float64", **given)))
    module, plain = (network_of(task, begin(task)["module"], "cpu") for _ in range(2))
    sampler = task.sampler()
    sums = gradient(task, module, sampler, task.reader(), Statistics(module), 1, Group())
    assert task.augment is not None
    p, g = [], []
    for sample, pixels, labels in task.augment.views(task.reader().reads(sampler.step(0)), task.field):
        logits = plain(torch.from_numpy(pixels)[None].double())[0][:, *sample.tile.crop.slices]
        counted = torch.from_numpy((labels >= 0) & sampler.kept(sample))
        p.append(logits.softmax(0)[:, counted])
        g.append(torch.stack([torch.from_numpy(labels)[counted] == k for k in (0, 1)]).double())
    every, true = torch.cat(p, 1), torch.cat(g, 1)
    dice = 1 - (2 * (every * true).sum(1) / (every**2 + true**2).sum(1)).mean()
    dice.backward()
    assert sums.value(task.loss) == pytest.approx(dice.item(), abs=1e-12)
    for one, other in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=0, atol=1e-10)  # type: ignore[arg-type]
    assert int(module.get_buffer("down.0.1.num_batches_tracked")) == 1


def test_nothing_of_the_callers_torch_is_changed(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    pipeline.train(job(tmp_path, steps=1))
    assert torch.get_num_threads() == 2 and torch.equal(torch.get_rng_state(), before)
    torch.set_num_threads(threads)


def test_the_card_names_the_commit_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "commit" not in task_of(validated(TrainJob, job(tmp_path))).card["versions"]
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "images"], ["commit", "-qm", "data"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert task_of(validated(TrainJob, job(tmp_path))).card["versions"]["commit"] == head
    Image.open(tmp_path / "images" / "1.png").rotate(180).save(tmp_path / "images" / "0.png")
    assert task_of(validated(TrainJob, job(tmp_path))).card["versions"]["commit"] == f"{head}+"


def test_a_second_command_for_the_same_run_is_refused(tmp_path: Path) -> None:
    made = job(tmp_path, steps=3)
    folder = RunFolder(made["run"])
    pipeline.train(made)
    (Path(made["run"]) / "network.json").unlink()  # as if it had been killed just before
    with folder.driven(), pytest.raises(ValueError, match=r"run .* is being trained by another process: wait for it"):
        pipeline.train(made)
    assert pipeline.train(made).resumed == 3


@pytest.mark.parametrize("left", ["", "checkpoints/", "checkpoints/lock", "job.yaml.partial"])
def test_a_beginning_that_was_killed_is_made_good(tmp_path: Path, left: str) -> None:
    """Whatever of the folder is there; but nothing that may be somebody's is written over."""
    settings = validated(TrainJob, job(tmp_path)).model_dump(mode="json")
    whole, run = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "run")
    whole.begin(settings)
    (run.path / "checkpoints" if "/" in left else run.path).mkdir(parents=True)
    if left and not left.endswith("/"):
        (run.path / left).write_bytes((whole.path / "job.yaml").read_bytes()[: 100 if "partial" in left else 0])
    run.begin(settings)
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "job.yaml"]
    assert (run.path / "job.yaml").read_bytes() == (whole.path / "job.yaml").read_bytes()
    other = RunFolder(tmp_path / "other")
    (other.path / "checkpoints").mkdir(parents=True)
    (other.path / "checkpoints" / "00000006.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="there is something else already"):
        other.begin(settings)


def test_a_report_that_a_kill_left_out_is_written_by_the_same_command(tmp_path: Path) -> None:
    """And nothing is trained or tested again, though the checkpoints are gone too."""
    data = {**job(tmp_path)["data"], "validation": {"fraction": 0.3}, "test": {"fraction": 0.3}}
    asked = job(tmp_path, data=data, tensorboard=True)
    whole = pipeline.train(asked)
    run = Path(whole.path)
    kept = {name: (run / name).stat().st_mtime_ns for name in ("network.json", "weights.safetensors", "metrics.jsonl")}
    report = (run / "report.html").read_text()
    (run / "report.html").unlink()
    for file in (run / "checkpoints").glob("*.pt"):
        file.unlink()
    again = pipeline.train(asked)
    assert again.metrics == whole.metrics and again.resumed == 6
    assert (run / "report.html").read_text() == report
    assert {name: (run / name).stat().st_mtime_ns for name in kept} == kept


def test_a_command_says_what_it_did_though_all_steps_were_done_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was killed after its last checkpoint is finished, and only the next command finds nothing to do."""
    made = validated(TrainJob, job(tmp_path, steps=3))
    (Path(pipeline.train(made).path) / "network.json").unlink()
    for said in (r"run: 3 steps, \d+\.\d s, 3 of 3 steps were done before$", "run: finished already, nothing to do$"):
        assert commands.train(made) == 0
        assert re.search(said, capsys.readouterr().out.rstrip())


def events(folder: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of all that TensorBoard will show; a picture's value is its height."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in folder.iterdir():
        content, at = file.read_bytes(), 0
        while at < len(content):  # length, its checksum, event, its checksum
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += size + 16
            for value in event.summary.value:
                number = value.image.height if value.HasField("image") else value.simple_value
                found.append((value.tag, event.step, number))
    return found


def test_tensorboard_has_each_step_once_also_of_a_run_that_was_gone_on_with(tmp_path: Path) -> None:
    data = {**job(tmp_path)["data"], "validation": {"fraction": 0.3}, "test": {"fraction": 0.3}}
    asked = job(tmp_path, data=data, checkpoint_every=2)
    run = Path(pipeline.train(asked).path)
    assert not (run / "tensorboard").exists()
    for _ in range(2):
        for name in ("network.json", "checkpoints/00000006.pt"):
            (run / name).unlink()
        pipeline.train({**asked, "tensorboard": True})
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    shown = events(run / "tensorboard")
    losses = [(step, value) for tag, step, value in shown if tag == "training/loss"]
    assert losses == [(line["step"], np.float32(line["loss"])) for line in lines if "loss" in line]
    scores = [line["validation"] for line in lines if "validation" in line]
    for tag, values in {
        "validation/mean_iou": [score["mean_iou"] for score in scores],
        "validation/iou/1": [score["iou"][1] for score in scores],
    }.items():
        assert [value for name, _, value in shown if name == tag] == [np.float32(value) for value in values] != []
    [tested] = [line for line in lines if "test" in line]
    assert [(step, value) for tag, step, value in shown if tag == "test/iou/1"] == [
        (tested["step"], np.float32(tested["test"]["iou"][1]))
    ]
    assert {tag.split("/")[1] for tag, _, _ in shown if tag.startswith("training")} == {"loss", "lr", "seconds"}
    assert [step for tag, step, height in shown if tag.startswith("best/") and height > 50] == [6]
