"""Training jobs: the keys of a job file, what stands for one that is not given, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.jobfile import load_job, validated
from pipeline.training_job import NewNetwork, Optimizer, Pattern, Sampling, Share, TrainJob

FULL = """
run: runs/nuclei
network: {architecture: unet, base: 16, depth: 4, norm: batch, channels: 3, classes: 2}
data:
  train: [{image: "train/{name}.png", label: "train/{name}_label.png"}]
  validation: {fraction: 0.2}
  ignore: 255
  binary: false
sampling: {kind: tiles, core: 256, loss_keep: 1.0}
batch: 8
loss: cross_entropy
optimizer: {name: sgd, lr: 0.01, momentum: 0.9}
steps: 2000
workers: 2
precision: float32
seed: 0
"""
LEAST: dict[str, Any] = {"run": "/r", "data": {"train": [{"image": "/a.tif", "label": "/b.tif"}]}}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("file", sorted(ROOT.glob("jobs/train*.yaml")), ids=lambda path: path.name)
def test_the_job_files_here_are_valid(file: Path) -> None:
    load_job(TrainJob, file, ["run=/r", "data.train=[{image: /a.tif, label: /b.tif}]"])


def test_a_job_file_says_all_defaults() -> None:
    """What the file that a newcomer opens gives, or has in a comment, is what stands for it where it is not given."""
    file = ROOT / "jobs" / "train.yaml"
    job = load_job(TrainJob, file, ["run=/r", "data.train=[{image: /a.tif, label: /b.tif}]"])
    least = validated(TrainJob, LEAST)
    names = {"network": NewNetwork(**{"base": 16, "depth": 4, "norm": "batch"})}
    assert job == least.model_copy(update=names)
    assert "# run:" in file.read_text() and "# data:" in file.read_text()


def written(folder: Path, text: str) -> Path:
    (folder / "job.yaml").write_text(text)
    return folder / "job.yaml"


def test_every_key_of_a_job_file_arrives_with_its_path(tmp_path: Path) -> None:
    job = load_job(TrainJob, written(tmp_path, FULL), ["optimizer.lr=0.1", "sampling.core=[128, 256]", "workers=0"])
    assert job.run == f"{tmp_path}/runs/nuclei"
    assert isinstance(job.network, NewNetwork) and job.network.architecture == "unet"
    assert job.network.arguments == {"base": 16, "depth": 4, "norm": "batch", "channels": 3, "classes": 2}
    train = Pattern(image=f"{tmp_path}/train/{{name}}.png", label=f"{tmp_path}/train/{{name}}_label.png")
    assert job.data.train == (train,)
    assert job.data.validation == Share(fraction=0.2) and job.data.ignore == 255
    assert job.sampling == Sampling(kind="tiles", core=(128, 256))
    assert job.optimizer == Optimizer(name="sgd", lr=0.1, momentum=0.9)
    assert (job.batch, job.steps, job.workers, job.precision, job.seed) == (8, 2000, 0, "float32", 0)


def test_what_is_not_given_is_the_default_of_the_example_or_off() -> None:
    job = validated(TrainJob, LEAST)
    assert isinstance(job.network, NewNetwork) and job.network.architecture == "unet"
    assert job.data.validation is job.data.test is job.data.ignore is job.normalise is None and not job.data.binary
    assert (job.sampling.kind, job.sampling.core, job.sampling.loss_keep) == ("tiles", 256, 1)
    assert (job.batch, job.loss, job.steps, job.workers, job.seed) == (8, "cross_entropy", 2000, 2, 0)
    assert (job.optimizer.lr, job.optimizer.momentum) == (0.01, 0.9)
    given = validated(TrainJob, LEAST | {"optimizer": {"name": "sgd", "lr": 1}}).optimizer
    assert given.momentum == given.weight_decay == 0


def test_a_network_to_start_from_is_a_path_or_a_name(tmp_path: Path) -> None:
    assert validated(TrainJob, LEAST | {"network": "nuclei"}).network == "builtin:nuclei"
    assert load_job(TrainJob, written(tmp_path, FULL), ["network=/runs/a"]).network == "/runs/a"


def test_validation_may_be_a_list_like_train() -> None:
    held_out = {**LEAST["data"], "validation": [{"image": "/v/{name}.tif", "label": "/v/{name}.png"}]}
    job = validated(TrainJob, LEAST | {"data": held_out})
    assert job.data.validation == (Pattern(image="/v/{name}.tif", label="/v/{name}.png"),)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("run=", "run is missing: give run=..."),
        ("data=", "data is missing"),
        ("data.train=[]", "option data.train=[]: tuple should have at least 1 item"),
        ("data.train=[{image: a}]", "data.train.0.label is missing"),
        ("data.train=[{image: '{name}', label: b, x: c}]", "unknown option 'data.train.0.x'; there are image, label"),
        ("data.train=[{image: '{name}', label: b}]", "b: {name} must be in both or in neither"),
        ("data.train=[{image: '{id}', label: b}]", "{id}: in braces there may only be {name}, and once"),
        ("data.validation={fraction: 1}", "option data.validation.fraction=1: input should be less than 1"),
        ("data.validation={fraction: 0.2, by: row}", "data.validation.by=row: input should be 'image' or 'region'"),
        ("data.validation=[{image: a.png}]", "data.validation.0.label is missing: give data.validation.0.label=..."),
        ("data.test=0.2", "option data.test=0.2: input should be a valid dictionary or instance of Share"),
        ("data.test=[]", "option data.test=[]: tuple should have at least 1 item"),
        ("data.test={fraction: 2}", "option data.test.fraction=2: input should be less than 1"),
        ("data.ignore=black", "option data.ignore=black: input should be a valid integer"),
        ("data.binary=2", "option data.binary=2: input should be a valid boolean"),
        ("sampling.kind=crops", "option sampling.kind=crops: input should be 'whole', 'tiles' or 'patches'"),
        ("sampling.core=0", "option sampling.core=0: input should be greater than or equal to 1"),
        ("sampling.loss_keep=0", "option sampling.loss_keep=0: input should be greater than 0"),
        ("sampling={kind: patches, loss_keep: 0.5}", "sampling.loss_keep=0.5: a patch has a single output"),
        ("sampling.balanced=even", "option sampling.balanced=even: input should be a valid boolean"),
        ("sampling={kind: patches, balanced: true}", "option sampling.balanced=True: draws cores by what is in them"),
        ("sampling.keep=1", "unknown option 'sampling.keep'; did you mean 'loss_keep'?"),
        ("network.classes=0", "option network.classes=0: input should be greater than or equal to 1"),
        ("batch=many", "option batch=many: give a number of samples, image or auto"),
        ("together=0", "option together=0: input should be greater than or equal to 1"),
        ("memory=much", "option memory=much: 'much' is no amount of memory"),
        ("loss=l2", "option loss=l2: input should be 'cross_entropy', 'dice' or 'focal'"),
        ("loss={}", "option loss={}: give a factor to one of cross_entropy, dice and focal at least"),
        ("loss={dise: 1}", "unknown option 'loss.dise'; did you mean 'dice'?"),
        ("loss={dice: 0}", "option loss.dice=0: input should be greater than 0"),
        ("loss={focal: {gamma: -1}}", "option loss.focal.gamma=-1: input should be greater than or equal to 0"),
        ("loss={focal: {alpha: 1}}", "unknown option 'loss.focal.alpha'; there are gamma, weight"),
        ("optimizer.rate=1", "unknown option 'optimizer.rate'; there are lr, momentum, name, weight_decay"),
        ("optimizer.lr=0", "option optimizer.lr=0: input should be greater than 0"),
        ("optimizer.name=adam", "option optimizer.momentum=0.9: is for sgd, not adam"),
        ("steps=0", "option steps=0: input should be greater than or equal to 1"),
        ("workers=-1", "option workers=-1: input should be greater than or equal to 0"),
        ("workers=[4, 1]", "option workers=[4, 1]: give a number, or [least, most] with at least 1"),
        ("workers=[0, 1]", "option workers=[0, 1]: give a number, or [least, most]"),
        ("workers=[1, 2.5]", "option workers=[1, 2.5]: give a number, or [least, most]"),
        ("precision=half", "option precision=half: input should be 'float32', 'float64' or 'bfloat16'"),
        ("seed=x", "option seed=x: input should be a valid integer"),
        (
            "seed=18446744073709551616",
            "option seed=18446744073709551616: input should be less than or equal to 9223372036854775807",
        ),
        ("normalise={std: wide}", "option normalise.std=wide: input should be"),
        ("augment={rotate: 90}", "option augment.rotate=90: input should be a valid boolean"),
        ("augment.brightness=2", "option augment.brightness=2: input should be less than 1"),
        (
            "augment.mirror=true",
            "unknown option 'augment.mirror'; there are brightness, contrast, elastic, flip, noise",
        ),
        ("augment.stain=1", "option augment.stain=1: input should be less than 1"),
        ("augment.elastic=-1", "option augment.elastic=-1: input should be greater than or equal to 0"),
        ("mlflow=here", "option mlflow=here: give true, or a tracking URI such as http://host:5000 or file:///folder"),
        ("freeze_norm=-1", "option freeze_norm=-1: input should be"),
        ("steps=true", "option steps=True: give a number, not true or false"),
        ("batch=true", "option batch=True: give a number, not true or false"),
        ("optimizer.lr=true", "option optimizer.lr=True: give a number, not true or false"),
        ("sampling.core=[true, 4]", "option sampling.core.0=True: give a number, not true or false"),
        ("workers=false", "option workers=False: give a number, not true or false"),
        ("stepps=1", "unknown option 'stepps'; did you mean 'steps'?"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_it(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_job(TrainJob, written(tmp_path, FULL), [override])
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_batch_norm_that_is_frozen_after_no_step_is_frozen() -> None:
    frozen = [validated(TrainJob, LEAST | {"freeze_norm": n}).freeze_norm for n in (0, 1, True, False)]
    assert list(map(repr, frozen)) == ["True", "1", "True", "False"]


def test_what_is_found_is_not_given_too() -> None:
    with pytest.raises(ValueError, match=r"^option together=2: batch: auto finds how many go through the network toge"):
        validated(TrainJob, LEAST | {"batch": "auto", "together": 2})


def test_a_balanced_batch_is_not_an_image() -> None:
    with pytest.raises(ValueError, match=r"^option batch=image: sampling.balanced draws cores one by one: give a num"):
        validated(TrainJob, LEAST | {"batch": "image", "sampling": {"balanced": True}})


def test_a_submitted_job_takes_no_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ValueError, match=r"run=runs/nuclei: in a submitted job give an absolute path or a URL"):
        load_job(TrainJob, written(tmp_path, FULL))
    absolute = "data.train=[{image: '/d/{name}.png', label: '/d/{name}.tif'}]"
    assert load_job(TrainJob, written(tmp_path, FULL), ["run=/r", absolute]).run == "/r"
