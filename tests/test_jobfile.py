"""Job files: what is wrong is one line that names it; paths start where they were written."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import BaseModel, ConfigDict

from pipeline.analysis import Analysis
from pipeline.config import InferJob, options
from pipeline.jobfile import DataPath, Text, load_job, validated
from pipeline.network.loading import load_network

ROOT = Path(__file__).parents[1]
REQUIRED = ["image=big.tif", "output=big.zarr"]


class Pair(BaseModel):
    model_config = ConfigDict(extra="forbid")
    image: DataPath
    label: DataPath | None = None


class Optimizer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = "sgd"
    lr: float = 0.1


class Job(BaseModel):
    """A job with settings inside settings, as a training job has."""

    model_config = ConfigDict(extra="forbid")
    data: list[Pair] = []
    optimizer: Optimizer = Optimizer()
    core: int | tuple[int, int] | None = None


def written(folder: Path, text: str) -> Path:
    (folder / "job.yaml").write_text(text)
    return folder / "job.yaml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory is not the job file's."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the driver's machine has a GPU itself")
def test_gpus_are_the_workers_not_the_drivers() -> None:
    """A job for GPUs is begun by a driver on a head that has none."""
    job = load_job(InferJob, ROOT / "jobs" / "infer-gpu.yaml", REQUIRED)
    network = load_network("unet-tiny")
    assert Analysis(network, options(**job.options())).device == "cuda"
    assert Analysis(network, options(**job.options() | {"device": "auto"})).device == "cuda"
    assert Analysis(network, options(**job.options() | {"device": "cpu"})).device == "cpu"
    with pytest.raises(ValueError, match="this machine has no GPU"):
        Analysis(network, options(device="cuda"))


@pytest.mark.parametrize("file", sorted(ROOT.glob("jobs/infer*.yaml")), ids=lambda path: path.name)
def test_the_job_files_here_are_valid(file: Path) -> None:
    load_job(InferJob, file, REQUIRED)


def test_a_job_for_gpus_on_ray_may_be_run_by_another_engine() -> None:
    """What the file asks of Ray is asked of nobody then."""
    file = ROOT / "jobs" / "infer-gpu.yaml"
    given = load_job(InferJob, file, [*REQUIRED, "engine=local", "address=10.0.0.1:6379"]).options()
    assert options(**given).engine == "local"
    assert given.keys().isdisjoint({"worker_cpus", "worker_gpus", "address"})
    assert options(**load_job(InferJob, file, REQUIRED).options()).worker_cpus == 2


def test_paths_start_where_they_were_written(tmp_path: Path) -> None:
    file = written(tmp_path, "image: [a.tif, s3://bucket/b.tif, /data/c.tif]\noutput: results\nnetwork: nuclei")
    job = load_job(InferJob, file)
    assert job.image == (f"{tmp_path}/a.tif", "s3://bucket/b.tif", "/data/c.tif")
    assert (job.output, job.network) == (f"{tmp_path}/results", "builtin:nuclei")
    job = load_job(InferJob, file, ["image=a.tif", "network=net.pt2"])
    assert (job.image, job.network) == (f"{tmp_path}/elsewhere/a.tif", f"{tmp_path}/elsewhere/net.pt2")
    assert job.output == f"{tmp_path}/results"
    assert load_job(Job, written(tmp_path, "data: [{image: a.png}]")).data[0].image == f"{tmp_path}/a.png"


def test_paths_are_spelt_as_the_system_does(tmp_path: Path) -> None:
    """So that files are found by a pattern with a doubled slash; in a URL it stands for something."""
    file = written(tmp_path, "image: ['/data//./{name}.png', s3://bucket//b.tif, a//b.tif]\noutput: /results/")
    job = load_job(InferJob, file)
    assert job.image == ("/data/{name}.png", "s3://bucket//b.tif", f"{tmp_path}/a/b.tif")
    assert job.output == "/results"


def test_from_python_a_path_is_one(tmp_path: Path) -> None:
    job = validated(InferJob, {"image": tmp_path / "a.tif", "output": Path("b.zarr"), "network": Path("nuclei")})
    assert (job.image, job.output) == (f"{tmp_path}/a.tif", f"{tmp_path}/elsewhere/b.zarr")
    assert job.network == f"{tmp_path}/elsewhere/nuclei"


def test_a_network_is_a_name_unless_there_is_such_a_folder(tmp_path: Path) -> None:
    file = written(tmp_path, "{image: a.tif, output: b.zarr, network: mine}")
    assert load_job(InferJob, file).network == "mine"
    (tmp_path / "mine").mkdir()
    assert load_job(InferJob, file).network == f"{tmp_path}/mine"


@pytest.mark.parametrize(
    ("override", "image"),
    [
        ("image=*.tif", "*.tif"),
        ("image={name}.tif", "{name}.tif"),
        ("image=part #1.tif", "part #1.tif"),
        ("image='quoted.tif'", "quoted.tif"),
        ("image=a=b.tif", "a=b.tif"),
        ("image=[a.tif, b.tif]", ["a.tif", "b.tif"]),
        ("image=007", None),
    ],
)
def test_overrides_are_taken_as_they_were_typed(tmp_path: Path, override: str, image: str | list[str] | None) -> None:
    file = written(tmp_path, "output: b.zarr")
    if image is None:  # a number is no path; quotes make it one
        with pytest.raises(ValueError, match="image=7: input should be a valid string"):
            load_job(InferJob, file, [override])
        return
    paths = [image] if isinstance(image, str) else image
    found = load_job(InferJob, file, [override]).image
    assert list([found] if isinstance(found, str) else found) == [f"{tmp_path}/elsewhere/{p}" for p in paths]


def test_overrides_reach_inside_and_take_away(tmp_path: Path) -> None:
    file = written(tmp_path, "optimizer: {name: adam, lr: 1e-3}\ncore: 256")
    assert load_job(Job, file).optimizer == Optimizer(name="adam", lr=0.001)
    job = load_job(Job, file, ["optimizer.lr=0.5", "core="])
    assert (job.optimizer.name, job.optimizer.lr, job.core) == ("adam", 0.5, None)
    assert load_job(Job, written(tmp_path, ""), ["optimizer.lr=2"]).optimizer.lr == 2


def test_numbers_may_be_written_as_on_the_command_line(tmp_path: Path) -> None:
    file = written(tmp_path, "{image: a.tif, output: b.zarr, channels: 0, scale: 0.5}")
    job = load_job(InferJob, file, ["tile=512,256", "mean=1,2,3", "memory=300MB"])
    assert job.options() == {
        "channels": (0,), "scale": (0.5,), "tile": (512, 256), "mean": (1.0, 2.0, 3.0), "memory": 300_000_000,
    }  # fmt: skip


@pytest.mark.parametrize("amount", [math.inf, -math.inf, math.nan, "inf", "1.2.3GB", ".", True, "9" * 400])
def test_what_is_no_amount_of_memory_is_refused(amount: Any) -> None:
    with pytest.raises(ValueError, match=r"^option memory=.* is no amount of memory; write it like 2GB or 300MiB$"):
        options(memory=amount)


@pytest.mark.parametrize(
    ("text", "overrides", "says"),
    [
        ("imge: a.tif", [], "job.yaml: unknown option 'imge'; did you mean 'image'?"),
        ("", ["xyz=1"], "job.yaml: unknown option 'xyz'; there are "),
        ("", [], "job.yaml: image is missing: give image=..."),
        ("workers: zwei", REQUIRED, "job.yaml: option workers=zwei: input should be a valid integer"),
        ("workers: 0", REQUIRED, "job.yaml: option workers=0: input should be greater than or equal to 1"),
        ("kind: masc", REQUIRED, "job.yaml: option kind=masc: input should be 'mask'"),
        ("memory: much", REQUIRED, "job.yaml: option memory=much: 'much' is no amount of memory"),
        ("image: []", ["output=b"], "job.yaml: option image=[]: "),
        ("kind: mask\nkind: logits", [], "job.yaml, line 2: not YAML: 'kind' is given twice"),
        ("kind: [", [], "job.yaml, line 1: not YAML: "),
        ("kind: a\0b", [], "job.yaml: not YAML: unacceptable character #x0000"),
        ("kind: 2024-99-99", [], "job.yaml: not YAML: month must be in 1..12"),
        ("", ["kind=2024-99-99"], "option kind=2024-99-99: input should be 'mask'"),
        ("- a", [], "job.yaml: a job file is lines of key: value"),
        ("kind: mask", ["kind.x=1"], "kind.x=1: kind is 'mask', which has nothing below it"),
        ("", ["tile={y: 1, y: 2}"], "tile={y: 1, y: 2}: not YAML: 'y' is given twice"),
        ("", ["tile=[256, 256"], "tile=[256, 256: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("", ["image=a\0b", "output=b"], "image=a\0b: no path holds a null character"),
        ("", ["big.tif"], "'big.tif' is no override: write key=value, or key.sub=value"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_it(tmp_path: Path, text: str, overrides: list[str], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_job(InferJob, written(tmp_path, text), overrides)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optimizer: {lr: fast}", "option optimizer.lr=fast: input should be a valid number"),
        ("optimizer: {rate: 1}", "unknown option 'optimizer.rate'"),
        ("data: [{image: a}, {label: b}]", "data.1.image is missing"),
        ("core: {}", "option core={}: input should be a valid integer"),
    ],
)
def test_inside_settings_too(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_job(Job, written(tmp_path, text))
    assert says in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml: no such job file"):
        load_job(InferJob, tmp_path / "nothing.yaml")
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"job\.yaml: not a job file"):
        load_job(InferJob, tmp_path / "job.yaml")


@pytest.mark.parametrize("overrides", [REQUIRED, ["image=[/a.tif, b.tif]", "output=/b"], ["image=/a", "output=./b"]])
def test_a_submitted_job_takes_no_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    file = written(tmp_path, "network: nuclei")
    with pytest.raises(ValueError, match="in a submitted job give an absolute path or a URL that every node sees"):
        load_job(InferJob, file, overrides)
    job = load_job(InferJob, file, ["image=/a.tif", "output=s3://bucket/b.zarr"])
    assert (job.image, job.output, job.network) == ("/a.tif", "s3://bucket/b.zarr", "builtin:nuclei")
    with pytest.raises(ValueError, match=r"network=\./net\.pt2: in a submitted job"):
        load_job(InferJob, file, ["image=/a.tif", "output=/b.zarr", "network=./net.pt2"])


def test_a_job_file_is_data_and_runs_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not YAML"):
        load_job(InferJob, written(tmp_path, "image: !!python/object/apply:os.getcwd []"))


def test_a_job_file_says_all_that_it_can_hold() -> None:
    """The file that a newcomer opens names the keys that every job needs, in comments or in fact."""
    text = (ROOT / "jobs" / "infer.yaml").read_text()
    assert set(yaml.safe_load(text)) <= set(InferJob.model_fields)
    assert "# image:" in text and "# output:" in text


def test_text_of_a_job_can_be_pickled() -> None:
    text = pickle.loads(pickle.dumps(Text("a", "/folder")))
    assert text == "a" and text.folder == "/folder"
