"""Submitted jobs, on a real head that the README's own commands start: what succeeds, fails, stops and goes on."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import tifffile
import zarr

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(280)]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


def until(true: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first value of `true()` that is one."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.2)
    return value


def in_document(document: str) -> str:
    """What is to be typed into a terminal beside a cluster."""
    return "".join(re.findall(r"^```console\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL))


RAY = """#!/bin/sh
# `ray start --head` as typed, on ports and in folders of our own, and so that one process ends it all.
[ "$1 $2" = "start --head" ] || exec {ray} "$@"
{ray} "$@" {options} --block > {home}/head.log 2>&1 &
echo $! > {home}/head.pid
for _ in $(seq 600); do {ray} job list > /dev/null 2>&1 && exit; kill -0 $! || exit 1; sleep 0.2; done; exit 1
"""


@dataclass
class Head:
    """A head of this machine alone, and a checkout to submit from."""

    checkout: Path
    variables: dict[str, str]
    started: subprocess.CompletedProcess[str] | None = None

    @property
    def address(self) -> str:
        return self.variables["RAY_API_SERVER_ADDRESS"]

    def shell(self, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-uc", command], cwd=self.checkout, env=self.variables | variables,
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip

    def ask(self, path: str, token: str | None = None, **body: Any) -> Any:
        """The dashboard's answer, which the `ray` commands show as well, without their 3 seconds of start-up."""
        mine = (Path(self.variables["HOME"]) / ".ray" / "auth_token").read_text().strip()
        headers = {"Authorization": f"Bearer {mine if token is None else token}", "Content-Type": "application/json"}
        data = json.dumps(body).encode() if body else None
        with urlopen(Request(self.address + path, data, headers), timeout=60) as answer:
            return json.loads(answer.read())

    def submit(self, *words: str) -> str:
        """Submit from the checkout and do not wait."""
        command = shlex.join(["ray", "job", "submit", "--no-wait", "--working-dir", ".", "--", "python", *words])
        done = self.shell(command)
        assert done.returncode == 0, done.stderr
        return re.findall(r"raysubmit_\w+", done.stdout)[0]

    def ended(self, job: str, seconds: float = 120) -> Any:
        until(lambda: self.ask(f"/api/jobs/{job}")["status"] not in ("PENDING", "RUNNING"), seconds, job)
        return self.ask(f"/api/jobs/{job}")

    def logs(self, job: str) -> str:
        return str(self.ask(f"/api/jobs/{job}/logs")["logs"])


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
    """Started as the README says; ended by its process id."""
    home = tmp_path_factory.mktemp("home")
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("jobs", "pipeline", ".rayignore", ".gitignore", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, checkout / name)
    draw(checkout / "big.tif", 300)
    gcs, dashboard, client, agent = free_ports(4)
    temporary = Path("/tmp") / f"ray-{os.getpid()}"  # sockets lie in it, whose paths must be short
    options = (
        f"--port={gcs} --dashboard-port={dashboard} --ray-client-server-port={client} "
        f"--dashboard-agent-listen-port={agent} --node-ip-address=127.0.0.1 --num-cpus=4 "
        f"--object-store-memory=100000000 --temp-dir={temporary} --disable-usage-stats"
    )
    (home / "programs").mkdir()
    program = home / "programs" / "ray"
    program.write_text(RAY.format(ray=PROGRAMS / "ray", options=options, home=home))
    program.chmod(0o755)
    unset = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "PYTHONPATH")
    variables = {k: v for k, v in os.environ.items() if k not in unset} | {
        "HOME": str(home),
        "PATH": os.pathsep.join([str(home / "programs"), str(PROGRAMS), os.environ["PATH"]]),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    this = Head(checkout, variables)
    try:
        this.started = this.shell("set -e\n" + in_document("README.md"))
        this.variables["RAY_AUTH_MODE"] = "token"
        yield this
    finally:
        if (home / "head.pid").exists():
            pid = int((home / "head.pid").read_text())
            os.kill(pid, signal.SIGTERM)
            until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text(), 60, "end")
        shutil.rmtree(temporary, ignore_errors=True)


def test_the_readmes_commands_work(head: Head) -> None:
    done = head.started
    assert done is not None and done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert re.search(r"nuclei\.zarr: \d+ tiles?, mask", done.stdout)
    assert zarr.open_group(head.checkout / "nuclei.zarr")["0"][:].any()


def test_the_commands_of_the_cluster_page_work(head: Head) -> None:
    done = head.shell("set -e\n" + in_document("docs/cluster.md"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCEEDED" in done.stdout and re.search(r"again\.zarr: \d+ tiles?, mask", done.stdout)


def test_only_who_has_the_token_is_let_in(head: Head) -> None:
    assert head.ask("/api/version")["ray_version"]
    for token in ("", "another"):
        with pytest.raises(HTTPError) as caught:
            head.ask("/api/jobs/", token=token)
        assert caught.value.code in (401, 403)
    assert head.shell("ray job list", RAY_AUTH_MODE="disabled").returncode != 0


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
