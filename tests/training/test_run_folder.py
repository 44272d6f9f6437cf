"""What a run keeps, and what becomes of it where the folder or the disk is not as it should be."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import pipeline
from pipeline.training.run_folder import BEGINNING, RunFolder
from tests.training.test_training import job, weights


def begun(folder: Path, *steps: int, **settings: Any) -> RunFolder:
    """A run of these settings, with checkpoints of these steps."""
    run = RunFolder(folder)
    run.begin(settings)
    for step in steps:
        run.save({"step": step})
    return run


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does, to every file of this process."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_zero_is_something_and_what_is_missing_is_off(tmp_path: Path) -> None:
    """Keys that a run was begun without came later; label 0 that is ignored is no label that is not.

    Batch norm that is frozen is not what is frozen after one step, though True == 1.
    """
    was: dict[str, Any] = {"data": {"ignore": 0}, "freeze_norm": True}
    begun(tmp_path / "run", 1, **was)
    RunFolder(tmp_path / "run").begin({**was, "balanced": False, "clip": None})
    for given, said in (({"data": {"ignore": None}}, "data.ignore=0, not None"),
                        ({"balanced": True}, "balanced=None, not True"),
                        ({"freeze_norm": 1}, "freeze_norm=True, not 1")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            RunFolder(tmp_path / "run").begin({**was, **given})


def test_a_section_that_is_off_differs_as_a_whole(tmp_path: Path) -> None:
    """What is named is what somebody wrote, not a default within it."""
    was: dict[str, Any] = {"augment": {"flip": False, "noise": 5.0}, "loss": "dice", "train": [{"image": "a"}]}
    begun(tmp_path / "run", 1, **was)
    for given, said in (({"augment": None}, r"begun with augment=\{'flip': False, 'noise': 5\.0\}, not None:"),
                        ({"loss": {"focal": 1.0}}, r"begun with loss='dice', not \{'focal': 1\.0\}:"),
                        ({"augment": {"flip": False, "noise": 4.0}}, r"begun with augment\.noise=5\.0, not 4\.0:"),
                        ({"train": [{"image": "b"}]}, r"begun with train\.0\.image='a', not 'b':")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            RunFolder(tmp_path / "run").check({**was, **given})


def test_a_job_with_a_mistake_that_showed_late_is_mended_under_the_same_name(tmp_path: Path) -> None:
    """Until there is a checkpoint nothing is lost; what results is what another folder would have."""
    with pytest.raises(ValueError, match="the loss is"):
        pipeline.train(job(tmp_path, optimizer={"name": "sgd", "lr": 1e9}, tensorboard=True))
    mended = pipeline.train(job(tmp_path, steps=2))
    other = pipeline.train(job(tmp_path, steps=2, run=str(tmp_path / "other")))
    assert torch.equal(weights(mended.path), weights(other.path))
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2] and log[0]["lr"] == 0.1
    assert yaml.safe_load((tmp_path / "run" / "job.yaml").read_text())["optimizer"]["lr"] == 0.1


def test_a_run_in_another_process_is_not_begun_anew(tmp_path: Path) -> None:
    with begun(tmp_path, seed=1).driven():
        RunFolder(tmp_path).check({"seed": 2})  # nothing is kept yet
        with pytest.raises(ValueError, match="is being trained by another process"), RunFolder(tmp_path).driven():
            pass


@pytest.mark.parametrize("content", ["run: .\nseed: 0\n", ""])
def test_a_job_file_that_is_no_runs_is_left_alone(tmp_path: Path, content: str) -> None:
    """As one's own job.yaml that says `run: .`."""
    (tmp_path / "job.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"^run .*: the job\.yaml there is no run's: give another folder"):
        begun(tmp_path, seed=1)
    assert os.listdir(tmp_path) == ["job.yaml"] and (tmp_path / "job.yaml").read_text() == content


@pytest.mark.parametrize("content", ["", "{a: [", "text"])
def test_a_stored_job_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    begun(tmp_path, seed=1)
    (tmp_path / "job.yaml").write_text(content)
    begun(tmp_path, 1, seed=1)  # nothing was lost yet
    assert yaml.safe_load((tmp_path / "job.yaml").read_text()) == {"seed": 1}
    (tmp_path / "job.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"job\.yaml is no job that can be read: give another run"):
        RunFolder(tmp_path).check({"seed": 1})


@pytest.mark.parametrize("left", [2000, 0])
def test_a_checkpoint_that_was_cut_short_gives_way_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    asked = job(tmp_path, steps=3, checkpoint_every=1)
    run = Path(pipeline.train(asked).path)
    whole = weights(run)
    (run / "network.json").unlink()
    os.truncate(run / "checkpoints" / "00000003.pt", left)
    assert pipeline.train(asked).resumed == 2 and torch.equal(weights(run), whole)
    assert [record.getMessage() for record in caplog.records] == [
        f"{run}/checkpoints/00000003.pt cannot be read: the run goes on from step 2"
    ]
    (run / "network.json").unlink()
    for file in (run / "checkpoints").glob("*.pt"):
        file.write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"00000003\.pt cannot be read, nor is there another one: remove it"):
        pipeline.train(asked)


def test_a_checkpoint_that_finds_no_room_is_named_and_the_last_one_stays(tmp_path: Path) -> None:
    run = begun(tmp_path, 1)
    with files_of_at_most(100_000), pytest.raises(ValueError, match=r"^cannot write .*/00000002\.pt: "):
        run.save({"step": 2, "module": torch.zeros(10**6)})
    state = run.latest()
    assert state is not None and state["step"] == 1
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["00000001.pt", "lock"]


def test_a_line_that_finds_no_room_is_named(tmp_path: Path) -> None:
    with files_of_at_most(10), pytest.raises(ValueError, match=r"^cannot write .*/metrics\.jsonl: "):
        RunFolder(tmp_path).log(step=1, loss=0.5)


@pytest.mark.parametrize("line", ["hello", "[1]", '{"loss": 1}'])
def test_what_is_no_line_of_a_log_is_named(tmp_path: Path, line: str) -> None:
    run = RunFolder(tmp_path)
    run.log(step=1, loss=0.5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl holds what is no line of a log, .*: remove that line"):
        run.lines()


def test_a_finished_run_without_its_log_is_finished(tmp_path: Path) -> None:
    run = pipeline.train(job(tmp_path, steps=1))
    (Path(run.path) / "metrics.jsonl").unlink()
    again = pipeline.train(job(tmp_path, steps=1))
    assert again.already and again.metrics == {"step": 1, "loss": None}


def test_the_log_is_read_as_it_grows(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.lines_from(BEGINNING) == ([], BEGINNING)
    folder.log(step=1, loss=0.5)
    first, end = folder.lines_from(BEGINNING)
    assert [line["step"] for line in first] == [1] and folder.lines_from(end) == ([], end)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert folder.lines_from(end) == ([], end)
    folder.rewind(0)
    for step in (1, 2, 3):  # beyond where it was, before anybody looks
        folder.log(step=step, loss=0.25)
    assert [line["step"] for line in folder.lines_from(end)[0]] == [1, 2, 3]
