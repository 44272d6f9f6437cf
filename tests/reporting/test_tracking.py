"""A run on MLflow, in a store of files: what stands there is what the log says, once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.reporting.tracking import Tracking
from tests.training.test_training import ROOT, job


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRACKING_URI", "EXPERIMENT_NAME"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)


def run_of(run: Path, uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    [experiment] = [one for one in MlflowClient(uri).search_experiments() if one.name == "pipeline"]
    [found] = MlflowClient(uri).search_runs([experiment.experiment_id])
    assert found.info.run_id == (run / "mlflow.txt").read_text() and found.info.run_name == run.name
    return found


def numbers(uri: str, run: Any, name: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    return [(metric.step, metric.value) for metric in MlflowClient(uri).get_metric_history(run.info.run_id, name)]


def test_a_run_is_on_mlflow_with_its_job_log_and_report(tmp_path: Path) -> None:
    """Each step once, also where the run was killed and gone on with, in the one run of MLflow."""
    data = {**job(tmp_path)["data"], "validation": {"fraction": 0.3}, "test": {"fraction": 0.3}}
    asked = job(tmp_path, data=data, checkpoint_every=2, mlflow=True)
    run = Path(pipeline.train(asked).path)
    uri = (run / "mlflow").as_uri()
    for _ in range(2):
        found = run_of(run, uri)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
        assert numbers(uri, found, "training/loss") == losses and len(losses) == 6
        scores = [(line["step"], line["validation"]["iou"][1]) for line in lines if "validation" in line]
        assert numbers(uri, found, "validation/iou/1") == scores != []
        [tested] = [(line["step"], line["test"]["mean_iou"]) for line in lines if "test" in line]
        assert numbers(uri, found, "test/mean_iou") == [tested]
        parameters = found.data.params
        assert parameters["optimizer.lr"] == "0.1" and parameters["data.train.0.image"] == data["train"][0]["image"]
        assert "mlflow" not in parameters and "clip" not in parameters
        assert found.info.status == "FINISHED"
        kept = Path(found.info.artifact_uri.removeprefix("file://"))
        for name in ("report.html", "network.json"):
            assert (kept / name).read_bytes() == (run / name).read_bytes()
        for name in ("network.json", "report.html", "checkpoints/00000006.pt"):
            (run / name).unlink()
        assert pipeline.train(asked).resumed == 4
    assert "mlflow" not in json.loads((run / "network.json").read_text())["training"]


def test_a_run_that_fails_is_said_to_have_failed(tmp_path: Path) -> None:
    uri = (tmp_path / "store").as_uri()
    with pytest.raises(ValueError, match="the loss is"):
        pipeline.train(job(tmp_path, mlflow=uri, optimizer={"name": "sgd", "lr": 1e9}))
    run = tmp_path / "run"
    assert run_of(run, uri).info.status == "FAILED" and not (run / "mlflow").exists()


def test_many_numbers_and_parameters_go_in_parts(tmp_path: Path) -> None:
    uri = (tmp_path / "store").as_uri()
    with Tracking(tmp_path, uri, {f"key{n}": n for n in range(150)}) as tracking:
        tracking.add({"step": step, "loss": 1 / step, "lr": 0.1} for step in range(1, 701))
    found = run_of(tmp_path, uri)
    assert len(found.data.params) == 150
    assert numbers(uri, found, "training/loss") == [(step, 1 / step) for step in range(1, 701)]


def test_where_mlflow_goes_away_the_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Tracking(tmp_path, (tmp_path / "store").as_uri(), {}) as tracking:
        (tmp_path / "store").rename(tmp_path / "away")
        tracking.add([{"step": 1, "loss": 0.5, "lr": 0.1}])
    [said] = [record.getMessage() for record in caplog.records if record.name == "pipeline"]
    assert said.startswith("mlflow: ") and said.endswith(": the run goes on without") and "\n" not in said


def test_an_address_where_nobody_answers_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError, match=r"^mlflow: .*http://127.0.0.1:9/"):
        pipeline.train(job(tmp_path, mlflow="http://127.0.0.1:9"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nothing://here")
    with pytest.raises(ValueError, match=r"^mlflow: .*nothing"):
        pipeline.train(job(tmp_path, mlflow=True))


def test_without_mlflow_one_line_says_what_to_install(tmp_path: Path) -> None:
    """Before anything is read: the images of this job are not there."""
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "__init__.py").write_text("raise ImportError('not installed')")
    (tmp_path / "job.yaml").write_text("{run: run, data: {train: [{image: none.tif, label: none.png}]}, mlflow: true}")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.train", str(tmp_path / "job.yaml")],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 2
    assert done.stderr == "error: mlflow needs one more package: pip install mlflow-skinny\n"
    assert not (tmp_path / "run").exists()


def test_names_that_are_not_utf8_are_told_everywhere(tmp_path: Path) -> None:
    """Those of an image and of its folder: in the job, the report, on TensorBoard and on MLflow."""
    asked = job(tmp_path, steps=1, tensorboard=True, mlflow=True)
    folder = (tmp_path / "images").rename(os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))
    for kind in (".png", "_label.png"):
        (folder / f"0{kind}").rename(os.fsdecode(bytes(folder) + b"/\xe9t\xe9" + kind.encode()))
    train = [{"image": f"{folder}/{{name}}.png", "label": f"{folder}/{{name}}_label.png"}]
    run = pipeline.train({**asked, "data": {"train": train, "ignore": 255, "validation": {"fraction": 0.7}}})
    assert "\\udce9t\\udce9" in (Path(run.path) / "report.html").read_text()
    params = run_of(Path(run.path), f"{tmp_path.as_uri()}/run/mlflow").data.params
    assert params["data.train.0.image"].endswith("caf\\udce9/{name}.png")
    (Path(run.path) / "report.html").unlink()
    again = pipeline.train({**asked, "data": {"train": train, "ignore": 255, "validation": {"fraction": 0.7}}})
    assert again.metrics == run.metrics
