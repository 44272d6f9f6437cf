"""The Dask engine on real clusters: its own, the caller's, a named one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from distributed import Client, LocalCluster

import pipeline
from pipeline.config import options
from pipeline.engines import on_dask
from pipeline.engines.on_dask import run
from pipeline.engines.units import Failure, Unit
from tests.engines.watching import alive, log, logged, never, wait_for

pytestmark = pytest.mark.usefixtures("by_value")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """One worker process of two threads, one of one."""
    options: dict[str, Any] = {"dashboard_address": ":0", "memory_limit": 0, "threads_per_worker": 1}
    with LocalCluster(n_workers=2, host="127.0.0.1", **options) as started:
        yield started


def test_own_cluster_does_every_unit_once_asked_for_shortly_before_and_leaves_nobody(tmp_path: Path) -> None:
    asked: list[int] = []
    taken: list[Any] = []

    def units(first: int, count: int) -> Iterator[Unit]:
        assert len(taken) == first, "the stage before is not finished"
        for n in range(first, first + count):
            asked.append(n)
            assert len(asked) - len(taken) <= 4
            yield n

    def start() -> Callable[[Unit], Any]:
        log(tmp_path, os.getpid())

        def work(unit: Unit) -> Any:
            import torch

            time.sleep(0.05)
            return unit, os.getpid(), os.environ["OMP_NUM_THREADS"], torch.get_num_threads()

        return work

    for outcome in run(start, (units(12 * n, 12) for n in range(2)), workers=2, fatal=never):
        taken.append(outcome)
    assert asked == list(range(24)) and sorted(unit for unit, _ in taken) == asked
    assert all(result[0] == unit and result[2:] == ("1", 1) for unit, result in taken)
    pids = {result[1] for _, result in taken}
    assert sorted(map(str, pids)) == sorted(logged(tmp_path)) and len(pids) == 2
    assert os.getpid() not in pids and wait_for(lambda: not any(map(alive, pids)), 5)


def test_units_that_kill_or_fail_are_charged_and_set_aside_and_nobody_else(tmp_path: Path) -> None:
    def work(unit: Unit) -> Unit:
        log(tmp_path, unit)
        if unit == 1:
            raise UnicodeError("page 3:\n chunk 4")
        if unit == 2 or (unit == 5 and logged(tmp_path).count("5") == 1):
            time.sleep(0.1)  # what is behind it has come in
            os.kill(os.getpid(), signal.SIGKILL)
        if unit == 4:
            raise OSError(5, "broken cable")
        return unit

    got = dict(run(lambda: work, [range(10)], workers=2, retries=2, fatal=never))
    assert got.pop(1) == Failure("page 3: chunk 4", "UnicodeError", died=False)
    assert got.pop(2) == Failure("its worker died, 3 times (SIGKILL, perhaps out of memory)", "", died=True)
    assert got.pop(4) == Failure("[Errno 5] broken cable", "OSError", died=False)
    assert got == {n: n for n in (0, 3, 5, 6, 7, 8, 9)}
    times = Counter(logged(tmp_path))
    assert (times["1"], times["2"], times["4"], times["5"]) == (1, 3, 3, 2)


def test_fatal_error_and_error_in_start_are_raised() -> None:
    def full(unit: Unit) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        list(run(lambda: full, [range(100)], workers=1, fatal=lambda error: isinstance(error, OSError)))
    assert "test_on_dask.py" in caught.value.__notes__[0]

    def start() -> Callable[[Unit], None]:
        raise FileNotFoundError(2, "No such file", "gone.tif")

    with pytest.raises(FileNotFoundError, match=r"gone\.tif"):
        list(run(start, [range(5)], workers=1, fatal=never))


def test_workers_that_die_at_the_start_are_an_error() -> None:
    def start() -> Callable[[Unit], None]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with pytest.raises(RuntimeError, match="workers die at the start, 3 times in a row"):
        list(run(start, [range(5)], workers=1, retries=2, fatal=never))


def test_nothing_to_do_starts_nothing() -> None:
    def start() -> Callable[[Unit], None]:
        raise AssertionError

    assert list(run(start, [[], []], workers=2, fatal=never)) == []


@pytest.mark.parametrize("how", ["named", "current"])
def test_runs_on_the_cluster_that_is_there_and_leaves_it_as_it_was(
    how: str, cluster: LocalCluster, tmp_path: Path
) -> None:
    def start() -> Callable[[Unit], int]:
        log(tmp_path, os.getpid())

        def work(unit: Unit) -> int:
            time.sleep(0.02)
            return os.getpid()

        return work

    with Client(cluster, set_as_default=how == "current") as client:
        before = client.run(os.getpid)
        scheduler = cluster.scheduler_address if how == "named" else None
        got = list(run(start, [range(20), range(20, 30)], workers=7, fatal=never, scheduler=scheduler))
        assert sorted(unit for unit, _ in got) == list(range(30))
        assert {pid for _, pid in got} == set(before.values()) == set(map(int, logged(tmp_path)))
        assert len(logged(tmp_path)) == 2
        assert client.run(os.getpid) == before
        held = client.run(lambda: list(on_dask._at_work))
        assert set(map(len, held.values())) == {0}
        assert client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 0


def test_dead_worker_of_a_cluster_that_is_there(cluster: LocalCluster, tmp_path: Path) -> None:
    """Dask's own idea of how often a task may kill has no say: here the nanny starts another worker each time."""

    def work(unit: Unit) -> Unit:
        log(tmp_path, unit)
        if unit == 3:
            os._exit(7)
        return unit

    got = dict(run(lambda: work, [range(8)], workers=1, fatal=never, scheduler=cluster.scheduler_address))
    failure = got.pop(3)
    assert failure.died and failure.message.startswith("its worker died, 3 times (tcp://127.0.0.1:")
    assert got == {n: n for n in (0, 1, 2, 4, 5, 6, 7)} and logged(tmp_path).count("3") == 3


def test_worker_of_many_threads_does_one_unit_at_a_time_in_one_thread(tmp_path: Path) -> None:
    """Also where it lives in the calling process."""
    import threading

    import torch

    busy: list[int] = []

    def start() -> Callable[[Unit], Any]:
        torch.set_num_threads(1)

        def work(unit: Unit) -> Any:
            busy.append(1)
            time.sleep(0.01)
            alone = len(busy) == 1
            busy.clear()
            return alone, threading.get_ident(), torch.get_num_threads()

        return work

    with (
        LocalCluster(n_workers=1, threads_per_worker=4, processes=False, dashboard_address=":0") as own,
        Client(own, set_as_default=False),
    ):
        before = torch.get_num_threads()
        got = list(run(start, [range(12)], workers=1, fatal=never, scheduler=own.scheduler_address))
        torch.set_num_threads(before)
    assert len(got) == 12 and len({result for _, result in got}) == 1 and got[0][1][::2] == (True, 1)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://a:1"])
def test_scheduler_that_does_not_answer_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.engines.dask_cluster.CONNECT", 0.5)
    with pytest.raises(ValueError, match=f"no Dask scheduler answers at {address}") as caught:
        list(run(lambda: id, [[1]], workers=1, fatal=never, scheduler=address))
    assert "\n" not in str(caught.value)


def test_cluster_without_workers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_dask, "PATIENCE", 1.0)
    with (
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=":0") as empty,
        pytest.raises(RuntimeError, match="has no workers"),
    ):
        list(run(lambda: id, [[1]], workers=1, fatal=never, scheduler=empty.scheduler_address))


UNGUARDED = """
import os, sys
from pipeline.engines.on_dask import run
print("top of the script")
class Network:
    def __init__(self, factor): self.factor = factor
    def __call__(self, unit):
        if unit == "pid": return os.getpid()
        return helper(unit) * self.factor
def helper(unit): return unit + 1
network = Network(10)
def start(): return network
def never(error): return False
print(sorted(run(start, [range(4)], workers=2, fatal=never)))
if len(sys.argv) > 1:
    path = sys.argv[1]
    def forever(unit):
        open(path, "a").write(f"{os.getpid()}\\n")
        while True: sum(range(1000))
    list(run(lambda: forever, [[1, 2]], workers=2, fatal=never))
"""


@pytest.mark.parametrize("ending", [None, signal.SIGKILL, signal.SIGINT])
def test_script_needs_no_guard_and_workers_end_with_it(ending: signal.Signals | None, tmp_path: Path) -> None:
    script, pids = tmp_path / "script.py", tmp_path / "log"
    script.write_text(UNGUARDED)
    process = subprocess.Popen(
        [sys.executable, str(script), *([str(pids)] if ending else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
    )
    if ending is not None:
        end = time.monotonic() + 60
        while len(logged(tmp_path)) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        began = time.monotonic()
        os.killpg(process.pid, ending) if ending == signal.SIGINT else process.send_signal(ending)
    out, err = process.communicate(timeout=60)
    if ending is None:
        assert (process.returncode, err) == (0, "")
        assert out == "top of the script\n[(0, 10), (1, 20), (2, 30), (3, 40)]\n"
    else:
        assert process.returncode == -ending and len(logged(tmp_path)) == 2
        assert wait_for(lambda: not any(map(alive, logged(tmp_path))), 1.5)
        assert time.monotonic() - began < 6


def shards(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("c/**/*") if path.is_file()}


def test_same_bytes_as_the_local_engine_also_where_the_command_was_killed(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    """Begun on a cluster of its own, gone on with on one whose workers are in another folder."""
    random = np.random.default_rng(0)
    tifffile.imwrite(tmp_path / "big.tif", random.integers(0, 256, (300, 300, 3), np.uint8), tile=(64, 64))
    command = "-m pipeline.infer big.tif -o dask.zarr --network unet-tiny --tile 64,64 --engine dask --workers 2"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.Popen([sys.executable, *command.split()], cwd=tmp_path, env=environment)
    ledger = tmp_path / "dask.zarr" / "ledger" / "ledger.txt"
    end = time.monotonic() + 100
    while time.monotonic() < end and (not ledger.exists() or ledger.read_text().count("\n") < 4):
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    options: dict[str, Any] = {"tile": (64, 64), "workers": 1}
    pipeline.predict(tmp_path / "big.tif", "unet-tiny", tmp_path / "local.zarr", **options)
    options |= {"engine": "dask", "scheduler": cluster.scheduler_address}
    result = pipeline.predict(tmp_path / "big.tif", "unet-tiny", tmp_path / "dask.zarr", **options)
    assert 0 < result.resumed < 25
    assert len(shards(tmp_path / "local.zarr")) == 25 and shards(tmp_path / "local.zarr") == shards(
        tmp_path / "dask.zarr"
    )


def test_scheduler_without_the_engine_is_refused() -> None:
    with pytest.raises(ValueError, match="option scheduler=tcp://a:1: is for engine dask, not local"):
        options(scheduler="tcp://a:1")
