"""A Ray head of this machine alone, started with the commands that a user types, and ended by its process id."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil

PROGRAMS = Path(sys.executable).parent


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


READY = """
import sys, time, urllib.request
url, token = sys.argv[1:]
for _ in range(600):
    try:
        word = open(token).read().strip()
        urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"Bearer {word}"}), timeout=10)
        sys.exit()
    except OSError:
        time.sleep(0.2)
sys.exit("no answer")
"""
"""Waits until the head takes jobs: what `ray job list` would ask, which takes 3 seconds each time."""

SUBMIT = """
import json, shlex, sys
from ray.job_submission import JobSubmissionClient
for line in sys.stdin:
    entry = shlex.join(["python", *json.loads(line)])
    client = JobSubmissionClient()
    print(client.submit_job(entrypoint=entry, runtime_env={"working_dir": "."}), flush=True)
"""
"""`ray job submit --no-wait --working-dir . -- python ...` for each line, in one process; likewise."""

RAY = """#!/bin/sh
# `ray start --head` as typed, on ports and in folders of our own, and so that one process ends it all.
[ "$1" = status ] && exec {ray} status --address={gcs}  # there may be clusters of others
[ "$1 $2" = "start --head" ] || exec {ray} "$@"
{ray} "$@" {options} --block > {home}/head.log 2>&1 &
echo $! > {home}/head.pid
exec {python} -c '{ready}' $RAY_API_SERVER_ADDRESS/api/jobs/ {home}/.ray/auth_token
"""


@dataclass
class Head:
    """A head of this machine alone, and a checkout to submit from."""

    checkout: Path
    variables: dict[str, str]
    gcs: str
    """HOST:PORT of the cluster itself."""
    started: subprocess.CompletedProcess[str] | None = None
    submitter: subprocess.Popen[str] | None = None

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
        if self.submitter is None:
            self.submitter = subprocess.Popen(
                [sys.executable, "-c", SUBMIT], cwd=self.checkout, env=self.variables, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        assert self.submitter.stdin is not None and self.submitter.stdout is not None
        print(json.dumps(words), file=self.submitter.stdin, flush=True)
        (job,) = re.findall(r"raysubmit_\w+", self.submitter.stdout.readline())
        return str(job)

    def ended(self, job: str, seconds: float = 120) -> Any:
        until(lambda: self.ask(f"/api/jobs/{job}")["status"] not in ("PENDING", "RUNNING"), seconds, job)
        return self.ask(f"/api/jobs/{job}")

    def logs(self, job: str) -> str:
        return str(self.ask(f"/api/jobs/{job}/logs")["logs"])


@contextmanager
def prepared(folder: Path, gcs: int, **options: str | int) -> Iterator[Head]:
    """A head that `ray start --head` in its shell will start, with what `ray start` is to be told beside that."""
    home, checkout = folder / "home", folder / "checkout"
    (home / "programs").mkdir(parents=True)
    checkout.mkdir()
    dashboard, client, agent = free_ports(3)
    temporary = Path("/tmp") / f"ray-{os.getpid()}-{gcs}"  # sockets lie in it, whose paths must be short
    given = {
        "port": gcs, "dashboard-port": dashboard, "ray-client-server-port": client, "temp-dir": temporary,
        "dashboard-agent-listen-port": agent, "node-ip-address": "127.0.0.1", "object-store-memory": 100_000_000,
    } | {name.replace("_", "-"): value for name, value in options.items()}  # fmt: skip
    program = home / "programs" / "ray"
    words = " ".join(f"--{name}={value}" for name, value in given.items()) + " --disable-usage-stats"
    parts = {"ray": PROGRAMS / "ray", "python": sys.executable, "ready": READY, "home": home}
    program.write_text(RAY.format(options=words, gcs=f"127.0.0.1:{gcs}", **parts))
    program.chmod(0o755)
    unset = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "PYTHONPATH")
    variables = {k: v for k, v in os.environ.items() if k not in unset} | {
        "HOME": str(home),
        "PATH": os.pathsep.join([str(home / "programs"), str(PROGRAMS), os.environ["PATH"]]),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    head = Head(checkout, variables, f"127.0.0.1:{gcs}")
    try:
        yield head
    finally:
        if head.submitter is not None:
            head.submitter.communicate()
        if (home / "head.pid").exists():
            end(int((home / "head.pid").read_text()), temporary)
        shutil.rmtree(temporary, ignore_errors=True)


def end(pid: int, temporary: Path) -> None:
    """Ends the head and all of its session at once: told to end, it would take half a minute to do so in order."""
    with suppress(psutil.NoSuchProcess):
        head = psutil.Process(pid)
        for process in (head, *head.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    until(lambda: not running(pid), 60, "end of the head")
    for process in psutil.process_iter(["cmdline"]):
        if any(f"{temporary}/" in word for word in process.info["cmdline"] or ()):
            process.kill()


def running(pid: int) -> bool:
    """Whether there is such a process, and not only what its parent has not looked at yet."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
