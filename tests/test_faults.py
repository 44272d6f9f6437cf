"""Runs that are killed, stopped, doubled or lose a worker: the same command ends with an undisturbed run's bytes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

import pipeline
from pipeline.api import TilesFailed
from tests import warm

Moment = Callable[[Path], object]
UNITS = 72
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "big.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (400, 640, 3), np.uint8)
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb")
    return path


def line(image: Path, workers: int = 1) -> list[str]:
    """A command whose run has 70 tiles and two pyramid shards."""
    words = ["--network", "unet-tiny", "--tile", "64,64", "--kind", "probability", "-o", "o.zarr"]
    return [sys.executable, "-m", "pipeline.infer", str(image), *words, "--workers", str(workers)]


def begin(command: list[str], folder: Path) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(command: list[str], folder: Path) -> str:
    """Runs it to its end, which must be a good one; what it says."""
    words = [warm.python(), *command[1:]]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def undisturbed(image: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(line(image), folder)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the output and its preview; not the ledger, whose lines come as the tiles end.

    Of the command that is told, not the number of workers, which runs may differ in.
    """
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file() and p.parent.name != "ledger"}
    return {name: re.sub(rb'("--workers",\s*)"\d"', rb"\1", path.read_bytes()) for name, path in files.items()}


def lines(folder: Path) -> int:
    """Units that the ledger in o.zarr says are done; -1 where there is none."""
    ledger = folder / "o.zarr" / "ledger" / "ledger.txt"
    return ledger.read_bytes().count(b"\n") - 1 if ledger.exists() else -1


def until(moment: Moment, run: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + 100
    while not moment(folder):
        assert run.poll() is None, f"ended before: {run.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def children(parent: int) -> list[int]:
    """Worker processes of a run: the children of its template, which is its own child."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    return [pid for pid, template in parents.items() if parents.get(template) == parent]


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_killed_again_and_again(image: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """Just begun, among the tiles, in the pyramid, and when all but the preview is there."""
    moments: list[Moment] = [
        lambda f: (f / "o.zarr" / "zarr.json").exists(),
        lambda f: lines(f) >= 9,
        lambda f: (f / "o.zarr" / "1" / "c").exists(),
        lambda f: lines(f) == UNITS,
    ]
    for workers, moment in zip((1, 2, 1, 1), moments, strict=True):
        run = begin(line(image, workers), tmp_path)
        until(moment, run, tmp_path)
        served = children(run.pid)
        run.kill()
        run.communicate()
        deadline = time.monotonic() + 5
        while any(map(alive, served)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(map(alive, served))
        damage(tmp_path / "o.zarr")
    finish(line(image), tmp_path)
    assert contents(tmp_path) == undisturbed
    assert "finished already" in finish(line(image), tmp_path)
    assert contents(tmp_path) == undisturbed
    assert pipeline.verify(tmp_path / "o.zarr").ok


def damage(output: Path) -> None:
    """What a kill at another moment would have left: files and a line that are half written, metadata that are not."""
    (output / "1" / "zarr.json").unlink(missing_ok=True)
    for folder in ("0/c/0/0", "preview", "."):
        if (output / folder).is_dir():
            (output / folder / "0.0123456789abcdef.partial").write_bytes(b"half")
    if (output / "ledger" / "ledger.txt").exists():
        with (output / "ledger" / "ledger.txt").open("ab") as ledger:
            ledger.write(b"55 123:")


def test_stopped_and_continued(image: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    for how, status, units in ((signal.SIGINT, 130, 2), (signal.SIGTERM, 143, 6)):
        run = begin(line(image, workers=2), tmp_path)
        until(lambda f, units=units: lines(f) >= units, run, tmp_path)
        workers = children(run.pid)
        began = time.monotonic()
        run.send_signal(how)
        _, said = run.communicate()
        assert run.returncode == status and time.monotonic() - began < 5
        assert said.endswith("the same command continues\n") and "Traceback" not in said
        assert len(workers) == 2 and not any(map(alive, workers))
    done = lines(tmp_path)
    assert pipeline.predict(str(image), "unet-tiny", tmp_path / "o.zarr", workers=1).resumed == done
    assert contents(tmp_path) == undisturbed


@pytest.mark.parametrize("how", ["typed, as argparse lets one", "laid over a job file"])
def test_with_overwrite_another_command_continues_and_is_named(
    how: str, image: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """As the same one would do all again."""
    settings = f"image: {image}, output: o.zarr, network: unet-tiny, kind: probability, tile: [64, 64], workers: 2"
    (tmp_path / "job.yaml").write_text(f"{{{settings}}}")
    job = [sys.executable, str(ROOT / "jobs" / "infer.py"), "job.yaml"]
    once, again = {
        "typed, as argparse lets one": ([*line(image, workers=2), "--overw"], line(image, workers=2)),
        "laid over a job file": ([*job, "overwrite=true"], job),
    }[how]
    run = begin(once, tmp_path)
    until(lambda f: lines(f) >= 2, run, tmp_path)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate()
    assert said.endswith("interrupted: the same command without overwrite continues\n")
    assert " units were done before" in finish(again, tmp_path)


def test_a_worker_that_is_killed_is_replaced(image: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    run = begin(line(image, workers=2), tmp_path)
    for n in (3, 12):
        until(lambda f, n=n: lines(f) >= n, run, tmp_path)
        os.kill(children(run.pid)[0], signal.SIGKILL)
    out, said = run.communicate()
    assert run.returncode == 0, out + said
    assert contents(tmp_path) == undisturbed


def test_a_second_run_on_the_same_output_is_refused(image: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """Both begin at once; where the second comes so late that nothing is left to do, it says so."""
    runs = [begin(line(image), tmp_path), begin(line(image), tmp_path)]
    said = [run.communicate()[1].splitlines() for run in runs]
    refused = [text for run, text in zip(runs, said, strict=True) if run.returncode]
    assert all(run.returncode in (0, 2) for run in runs) and len(refused) <= 1, said
    assert all(len(text) == 1 and "is being written by another run" in text[0] for text in refused), said
    assert contents(tmp_path) == undisturbed


@torch.library.custom_op("pipeline_tests::poison", mutates_args=())
def poison(x: torch.Tensor, antidote: str) -> torch.Tensor:
    """The same pixels; ends its process where one is 255 and the file `antidote` does not exist."""
    if bool((x == 255).any()) and not os.path.exists(antidote):
        os.kill(os.getpid(), signal.SIGKILL)
    return x.clone()


poison.register_fake(lambda x, antidote: torch.empty_like(x))


class Poison(nn.Module):
    def __init__(self, antidote: Path) -> None:
        super().__init__()
        self.conv, self.antidote = nn.Conv2d(1, 2, 3, padding=1), str(antidote)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.ops.pipeline_tests.poison(x, self.antidote))


def test_a_tile_that_kills_its_worker_is_set_aside_and_tried_by_the_next_call(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Poison(tmp_path / "antidote").eval()
    pixels = np.random.default_rng(0).integers(0, 250, (1, 96, 160), np.uint8)
    pixels[0, 40, 100] = 255
    options = {"tile": (32, 32), "workers": 2, "kind": "logits", "reach": 1}
    with pytest.raises(
        TilesFailed, match=r"tile 8 \(rows 32 to 64, columns 96 to 128\): its worker died, 3 times"
    ) as e:
        pipeline.predict(pixels, net, tmp_path / "o.zarr", **options)
    assert len(e.value.results[0].failures) == 1
    assert lines(tmp_path) == 14
    (tmp_path / "antidote").touch()
    result = pipeline.predict(pixels, net, tmp_path / "o.zarr", **options | {"workers": 1})
    assert result.resumed == 14
    with torch.no_grad():
        np.testing.assert_allclose(result.array[:], net(torch.from_numpy(pixels)[None].float())[0], atol=1e-3)


@torch.library.custom_op("pipeline_tests::greedy", mutates_args=())
def greedy(x: torch.Tensor) -> torch.Tensor:
    """The same pixels; asks for more memory than there is where one of them is 255."""
    return x + torch.empty(1 << 50)[0] if bool((x == 255).any()) else x.clone()


greedy.register_fake(torch.empty_like)


class Greedy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.ops.pipeline_tests.greedy(x))


@pytest.mark.parametrize("workers", [1, 2])
def test_memory_that_runs_out_ends_the_run_and_leaves_what_is_done(workers: int, tmp_path: Path) -> None:
    """No retry would do better, and every other tile would need as much."""
    pixels = np.zeros((1, 96, 64), np.uint8)
    pixels[0, -1] = 255
    with pytest.raises(MemoryError, match="can't allocate memory"):
        pipeline.predict(pixels, Greedy().eval(), tmp_path / "o.zarr", tile=(32, 32), workers=workers, reach=1)
    assert lines(tmp_path) >= (4 if workers == 1 else 1)
