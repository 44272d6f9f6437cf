"""Any number of images in one call: few are open at a time, in the driver and in workers; what fails, fails alone."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

import pipeline
from pipeline import running, turns
from pipeline.api import TilesFailed
from pipeline.ledgers import hold
from pipeline.stitching.ledger import Ledger, Lock
from pipeline.storage import scratch
from pipeline.storage.location import location_of
from pipeline.storage.reference import refer
from pipeline.turns import Run
from pipeline.worker import Job, start

RAY = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(280)]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, 2, 3, padding=1).eval()


def draw(folder: Path, count: int, side: int = 20, **options: Any) -> list[Path]:
    """Images that differ, in files that TIFF keeps open."""
    random = np.random.default_rng(0)
    paths = [folder / f"{n}.tif" for n in range(count)]
    for path in paths:
        tifffile.imwrite(path, random.integers(0, 255, (side, side, 3), np.uint8), photometric="rgb",
                         compression="zlib", **options)  # fmt: skip
    return paths


def files(folder: Path) -> int:
    """Files that this process has open of images and outputs in a folder."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{number}").startswith(f"{folder}/")
        except OSError:
            continue
    return found


MANY = """
import sys, pipeline, torch
from pathlib import Path
torch.manual_seed(0)
net = torch.nn.Conv2d(3, 2, 3, padding=1).eval()
images = sorted(Path(sys.argv[1]).glob("*.tif"))
print(len(pipeline.predict(images, net, sys.argv[2], workers=int(sys.argv[3]))))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_there_may_be_more_images_than_open_files(workers: int, tmp_path: Path) -> None:
    draw(tmp_path, 40)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (56, 56))

    line = [sys.executable, "-c", MANY, str(tmp_path), str(tmp_path / "out"), str(workers)]
    done = subprocess.run(line, preexec_fn=limit, capture_output=True, text=True, timeout=200)
    assert done.stdout == "40\n", done.stderr
    assert len(list((tmp_path / "out").glob("*.zarr/0/c"))) == 40


def test_images_are_begun_when_their_turn_comes_and_let_go(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "REPORT_EVERY", 0.0)
    monkeypatch.setattr(turns, "FIRST", 2)
    seen, expected = [], []

    def report(progress: Any) -> None:
        seen.append((files(tmp_path), len(list((tmp_path / "out").glob("*.zarr")))))
        expected.append(progress.tiles)

    images = draw(tmp_path, 30)
    results = pipeline.predict(images, net, tmp_path / "out", workers=1, report=report)
    assert [Path(result.path).stem for result in results] == [path.stem for path in images]
    assert max(open for open, _ in seen) <= 6 and files(tmp_path) == 0
    assert [outputs for _, outputs in seen[:5]] == [2, 2, 3, 4, 5]
    assert set(expected) == {30}


@pytest.mark.parametrize("workers", [1, 2])
def test_images_of_many_tiles_follow_each_other_to_the_end(
    workers: int, net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pyramid and preview too, of few at a time; and those that are done stay done."""
    monkeypatch.setattr(turns, "MOST", 2)
    options: dict[str, Any] = {"workers": workers, "tile": (32, 32), "kind": "logits"}
    images = draw(tmp_path, 5, side=70)
    pipeline.predict(images[:2], net, tmp_path / "out", **options)
    results = pipeline.predict(images, net, tmp_path / "out", **options)
    assert [result.resumed for result in results] == [results[0].plan.units] * 2 + [0] * 3
    assert pipeline.verify(results[-1].path, net=net).ok and files(tmp_path) == 0
    assert len(list((tmp_path / "out").glob("*.preview.png"))) == 5
    pixels = torch.from_numpy(tifffile.imread(images[3])).movedim(-1, 0)[None].float()
    np.testing.assert_allclose(results[3].array[:], net(pixels)[0].detach(), atol=1e-3)


def test_images_of_enough_tiles_are_finished_before_others_are_begun(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "REPORT_EVERY", 0.0)
    monkeypatch.setattr(turns, "ENOUGH", 10)
    unfinished = []

    def report(_: Any) -> None:
        names = os.listdir(tmp_path / "out")
        unfinished.append(sum(n.endswith(".zarr") for n in names) - sum(n.endswith(".preview.png") for n in names))

    pipeline.predict(draw(tmp_path, 5, side=70), net, tmp_path / "out", workers=1, tile=(32, 32), report=report)
    assert len(unfinished) >= 45 and max(unfinished) == 2 and len(os.listdir(tmp_path / "out")) == 10


def test_an_output_is_locked_while_it_is_worked_on(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "REPORT_EVERY", 0.0)
    refused: list[str] = []

    def report(_: Any) -> None:
        with pytest.raises(ValueError, match="being written by another run") as held:
            hold(location_of(tmp_path / "out/1.zarr"))
        refused.append(str(held.value))

    pipeline.predict(draw(tmp_path, 2, side=40), net, tmp_path / "out", workers=1, tile=(32, 32), report=report)
    assert len(refused) >= 8
    hold(location_of(tmp_path / "out/1.zarr")).release()


def test_what_fails_is_named_and_the_rest_is_finished(net: nn.Module, tmp_path: Path) -> None:
    """Of whatever kind: no image, no name that the system takes, a held output, no array."""
    images: list[Any] = list(draw(tmp_path, 4, side=40))
    images[1].write_bytes(b"no image")
    held = hold(location_of(tmp_path / "out/2.zarr"))
    images += ["x" * 300, np.zeros((3, 0, 4)), np.zeros((3, 20, 20), np.uint8)]
    with pytest.raises(TilesFailed) as failed:
        pipeline.predict(images, net, tmp_path / "out", workers=2)
    held.release()
    said = str(failed.value)
    assert said.startswith("4 of 7 images failed: ")
    for part in ("1.tif: ", "2.tif: ", "another run", "x: File name too long", "image-5: "):
        assert part in said, said
    assert [Path(result.path).stem for result in failed.value.results] == ["0", "3", "image-6"]


def test_an_image_that_is_replaced_meanwhile_fails_alone(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned already or not: a plan's identity is that of the pixels that were read."""
    monkeypatch.setattr(running, "REPORT_EVERY", 0.0)
    monkeypatch.setattr(turns, "FIRST", 2)
    (tmp_path / "new").mkdir()
    images, others = draw(tmp_path, 5), draw(tmp_path / "new", 5)[::-1]

    def report(progress: Any) -> None:
        for number in (1, 4):
            if progress.tried == 1:
                os.replace(others[number], images[number])

    with pytest.raises(TilesFailed, match=r"1 of 5 images failed: \S*/4.tif.* 1 tiles failed: \S*/1.zarr") as failed:
        pipeline.predict(images, net, tmp_path / "out", workers=1, report=report)
    assert str(failed.value).count(".tif was replaced while the run went on: give the same command again") == 2
    assert [bool(result.failures) for result in failed.value.results] == [False, True, False, False]


def test_a_job_opens_nothing_and_a_worker_few(net: nn.Module, tmp_path: Path) -> None:
    images = draw(tmp_path, 6)
    outputs = [result.path for result in pipeline.predict(images, net, tmp_path / "out", workers=1)]
    network = pipeline.load_network(net)
    job = pickle.loads(pickle.dumps(Job({n: refer(path) for n, path in enumerate(images)}, outputs, network)))
    assert files(tmp_path) == 0
    work = start(job)
    for number in (0, 1, 2, 3, 2, 4, 5):
        work((number, 0, 1))
        assert files(tmp_path) <= 2
    del work
    assert files(tmp_path) == 0


def test_a_result_is_read_from_any_working_directory(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by those who asked for its array before: where zarr finds no shard, it gives zeros without a word."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path, 1)
    result = pipeline.predict("0.tif", net, "o.zarr", kind="logits", workers=1)
    array, lazy, pixels = result.array, result.dask, result.array[:]
    monkeypatch.chdir("/")
    assert result.path == "o.zarr" and pixels.any()
    for again in (array[:], lazy.compute(), result.array[:], result.dask.compute()):
        np.testing.assert_array_equal(again, pixels)


def test_an_image_whose_ledger_cannot_be_closed_lets_go_of_the_rest(tmp_path: Path) -> None:
    """As where a bucket does not answer any more."""
    lock, copy = Lock(tmp_path / "ledger"), scratch.Scratch(0, tmp_path / "copy")
    ledger = Ledger.open(tmp_path / "other", "of a plan", 1)
    os.close(ledger._file)
    run = Run(cast(Any, None), cast(Any, None), ledger, lock, copy)
    with pytest.raises(OSError):
        run.close()
    assert not copy.path.exists()
    Lock(tmp_path / "ledger").release()


@pytest.mark.parametrize("workers", [1, 2])
def test_copies_in_scratch_are_there_while_they_are_needed(
    workers: int, net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of images that lie in a single strip, and of arrays that workers cannot see."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(scratch, "READ", 64)
    monkeypatch.setattr(scratch, "HEAVY", 1 << 10)
    monkeypatch.setattr(running, "REPORT_EVERY", 0.0)
    monkeypatch.setattr(turns, "FIRST", 1)
    monkeypatch.setattr("pipeline.api.cache_bytes", lambda asked: 1 << 10)
    seen: list[int] = []
    paths = draw(tmp_path, 6, side=150, rowsperstrip=150)
    arrays = [np.moveaxis(tifffile.imread(path), -1, 0) for path in paths[:2]]
    results = pipeline.predict([*paths, *arrays], net, tmp_path / "out", workers=workers, kind="logits",
                               report=lambda _: seen.append(len(list((tmp_path / "tmp").iterdir()))))  # fmt: skip
    assert 1 <= max(seen) <= 1 + 2 * workers and not list((tmp_path / "tmp").iterdir())
    for result, path in zip(results, [*paths, *paths[:2]], strict=True):
        pixels = torch.from_numpy(tifffile.imread(path)).movedim(-1, 0)[None].float()
        np.testing.assert_allclose(result.array[:], net(pixels)[0].detach(), atol=1e-3)


@pytest.mark.parametrize("engine", [pytest.param("ray", marks=RAY), pytest.param("dask", marks=RAY)])
def test_the_same_on_a_cluster(
    engine: str, net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if engine == "ray":
        request.getfixturevalue("cluster")
    monkeypatch.setattr(turns, "MOST", 4)
    images = draw(tmp_path, 10, side=40)
    results = pipeline.predict(images, net, tmp_path / "out", engine=engine, workers=2)
    assert [Path(result.path).stem for result in results] == [path.stem for path in images]
    assert all(result.array.shape == (40, 40) for result in results)
    assert pipeline.verify(results[-1].path, net=net).ok
