"""Submitted jobs, on a real head that the README's own commands start: what succeeds, fails, stops and goes on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import numpy as np
import pytest
import tifffile
import zarr

import pipeline
from tests import warm
from tests.ray_head import Head, free_ports, prepared, until

ROOT = Path(__file__).parents[1]

# a head of its own, so that it need not wait for the tests that share a cluster
pytestmark = [pytest.mark.xdist_group("jobs"), pytest.mark.timeout(280)]


def in_document(document: str) -> str:
    """What is to be typed into a terminal beside a cluster."""
    return "".join(re.findall(r"^```console\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL))


def spots(size: int, seed: int) -> np.ndarray:
    """Dark dots on a bright ground, (y, x, 3)."""
    random = np.random.default_rng(seed)
    image = random.integers(215, 235, (size, size, 3), dtype=np.uint8)
    for y, x in random.integers(0, size - 12, (size * size // 900, 2)):
        image[y : y + 12, x : x + 12] = (96, 64, 140)
    return image


def draw(path: Path, size: int, corrupt: bool = False) -> Path:
    tifffile.imwrite(path, spots(size, seed=size), tile=(128, 128), compression="zlib")
    if corrupt:
        with tifffile.TiffFile(path) as file:
            offset = file.pages[0].dataoffsets[-1]
        with path.open("r+b") as raw:
            raw.seek(offset)
            raw.write(b"\xff" * 64)
    return path


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Started as the README says, in a checkout with an image in it."""
    (port,) = free_ports(1)
    with prepared(tmp_path_factory.mktemp("jobs"), port, num_cpus=2) as head:
        for name in ("jobs", "pipeline", ".rayignore", ".gitignore", "pyproject.toml"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, head.checkout / name)
        draw(head.checkout / "big.tif", 300)
        head.started = head.shell("set -e\n" + in_document("README.md"))
        head.variables["RAY_AUTH_MODE"] = "token"
        yield head


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing.yaml"], "nothing.yaml: no such job file"),
        (["jobs/infer.yaml", "imge=a.tif"], "jobs/infer.yaml: unknown option 'imge'; did you mean 'image'?"),
        (["jobs/infer.yaml", "image=a.tif", "output=a.zarr", "engine=local"], "no such file: "),
        ([], "the following arguments are required: JOB.yaml (see --help)"),
    ],
)
def test_what_can_be_mended_is_one_line_and_status_2(words: list[str], says: str) -> None:
    """Also without a cluster: nothing was started yet."""
    line = [warm.python(), "jobs/infer.py", *words]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_the_readmes_commands_work(head: Head) -> None:
    done = head.started
    assert done is not None and done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert re.search(r"nuclei\.zarr: \d+ tiles?, mask", done.stdout)
    assert zarr.open_group(head.checkout / "nuclei.zarr")["0"][:].any()


def test_the_commands_of_the_cluster_page_work(head: Head) -> None:
    done = head.shell("set -e\n" + in_document("docs/cluster.md"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout and re.search(r"again\.zarr: \d+ tiles?, mask", done.stdout)


def test_only_who_has_the_token_is_let_in(head: Head) -> None:
    assert head.ask("/api/version")["ray_version"]
    for token in ("", "another"):
        with pytest.raises(HTTPError) as caught:
            head.ask("/api/jobs/", token=token)
        assert caught.value.code in (401, 403)
    assert head.shell("ray job list", RAY_AUTH_MODE="disabled").returncode != 0
    run = f"python -m pipeline.infer big.tif -o no.zarr --engine ray --address {head.gcs}"
    done = head.shell(run, RAY_AUTH_MODE="disabled", PYTHONPATH=str(ROOT))
    assert done.returncode == 2 and "asks for a token: set RAY_AUTH_MODE=token" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


def test_data_stays_behind(head: Head) -> None:
    """What travels is the code alone, and it is what runs."""
    for name in ("scan.svs", "photo.jpg", "volume.npy", "result.zarr/0/c/0", "docs/picture.png", "tests/test_it.py"):
        (head.checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (head.checkout / name).write_bytes(bytes(5_000_000))
    code = "import os, sys, pipeline; print(pipeline.__file__, os.getcwd()); os.system('find . -type f -size +0')"
    job = head.submit("-c", f"import sys; sys.path.pop(0); {code}")
    assert head.ended(job)["status"] == "SUCCEEDED", head.logs(job)
    logs = head.logs(job)
    module, folder = re.findall(r"^(\S+/pipeline/__init__\.py) (\S+)$", logs, re.MULTILINE)[0]
    assert module == f"{folder}/pipeline/__init__.py" and str(head.checkout) not in folder
    sent = set(re.findall(r"^\./(.*)$", logs, re.MULTILINE))
    assert {"jobs/infer.py", "jobs/infer.yaml", "pipeline/network/bundled/nuclei/weights.safetensors"} <= sent
    assert {name.split("/")[0] for name in sent} == {"jobs", "pipeline", ".rayignore", ".gitignore", "pyproject.toml"}
    size = sum(path.stat().st_size for path in Path(folder).rglob("*"))
    assert size < 5_000_000


def test_a_relative_path_is_refused(head: Head) -> None:
    job = head.submit("jobs/infer.py", "jobs/infer.yaml", "image=big.tif", f"output={head.checkout}/x.zarr")
    info = head.ended(job)
    assert (info["status"], info["driver_exit_code"]) == ("FAILED", 2)
    assert "image=big.tif: in a submitted job give an absolute path or a URL that every node sees" in head.logs(job)


def test_a_worker_that_can_never_be_placed_fails_the_job_at_once(head: Head) -> None:
    data = (f"image={head.checkout}/big.tif", f"output={head.checkout}/gpu.zarr")
    job = head.submit("jobs/infer.py", "jobs/infer-gpu.yaml", *data)
    info = head.ended(job, 60)
    assert (info["status"], info["driver_exit_code"]) == ("FAILED", 2), head.logs(job)
    assert re.search(r"a worker asks for 2 CPUs? and 1 GPUs?; no node has that", head.logs(job))


def test_a_missing_tile_fails_the_job(head: Head, tmp_path: Path) -> None:
    good, bad = draw(tmp_path / "good.tif", 300), draw(tmp_path / "bad.tif", 300, corrupt=True)
    words = (f"image=[{good}, {bad}]", f"output={tmp_path}/results", "tile=128,128", "memory=400MB")
    job = head.submit("jobs/infer.py", "jobs/infer.yaml", *words)
    info = head.ended(job)
    assert (info["status"], info["driver_exit_code"]) == ("FAILED", 1), head.logs(job)
    assert "1 of 2 images" in head.logs(job) and re.search(r"tile \d+ \(rows 256 to 300", head.logs(job))


def test_a_stopped_job_goes_on_where_it_was(head: Head, tmp_path: Path) -> None:
    image, output = draw(tmp_path / "large.tif", 1000), tmp_path / "large.zarr"
    words = ("jobs/infer.py", "jobs/infer.yaml", f"image={image}", f"output={output}", "tile=128,128")
    job = head.submit(*words)
    ledger = output / "ledger" / "ledger.txt"
    until(lambda: ledger.exists() and ledger.read_text().count("\n") > 5, 100, "5 tiles")
    head.ask(f"/api/jobs/{job}/stop", nothing=None)
    assert head.ended(job, 15)["status"] == "STOPPED"
    assert re.search(r"^large\.zarr: \d+ of 64 tiles, [\d.]+ MP/s, \d+ s left$", head.logs(job), re.MULTILINE)
    again = head.submit(*words)
    assert head.ended(again)["status"] == "SUCCEEDED", head.logs(again)
    found = re.search(r"large\.zarr: 64 tiles, mask, .* s, (\d+) of (\d+) units were done before", head.logs(again))
    assert found and 5 <= int(found[1]) < int(found[2])


def test_a_training_job(head: Head, tmp_path: Path) -> None:
    """What it makes predicts; relative data is refused, and a label that is no class is a line in the log."""
    photo = spots(64, seed=1)
    label = (photo[..., 0] < 160).astype(np.uint8)
    for name, array in {"photo": photo, "good": label, "bad": label + 1}.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", array)
    least = ("network.base=4", "network.depth=1", "network.norm=none", "sampling.core=32", "batch=2", "steps=2")

    def submit(run: str, image: str, label: str) -> str:
        data = f"data.train=[{{image: {image}, label: {label}}}]"
        return head.submit("jobs/train.py", "jobs/train.yaml", f"run={tmp_path}/{run}", data, "workers=1", *least)

    image = f"{tmp_path}/photo.tif"
    jobs = [submit(*words) for words in (
        ("good", image, f"{tmp_path}/good.tif"),
        ("bad", image, f"{tmp_path}/bad.tif"),
        ("relative", "photo.tif", f"{tmp_path}/good.tif"),
    )]  # fmt: skip
    ends = [(head.ended(job)["status"], head.ended(job)["driver_exit_code"]) for job in jobs]
    good, bad, relative = (head.logs(job) for job in jobs)
    assert ends == [("SUCCEEDED", 0), ("FAILED", 2), ("FAILED", 2)], good
    assert f"{tmp_path}/good: 2 steps" in good
    assert "bad.tif: label 2 at row" in bad and "is none of the classes 0 to 1" in bad
    assert "image=photo.tif: in a submitted job give an absolute path or a URL that every node sees" in relative
    made = pipeline.predict(image, tmp_path / "good", tmp_path / "o.zarr", workers=1)
    assert made.array.shape == (64, 64)
