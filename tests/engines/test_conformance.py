"""What every engine does alike, whatever carries the units: real processes, real deaths, real outputs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines import local
from pipeline.engines.units import Failure, Unit
from tests.engines.watching import alive, log, logged, wait_for

pytestmark = pytest.mark.usefixtures("by_value")

Engine = Callable[..., Iterator[tuple[Unit, Any]]]
RAY = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(280)]
PROCESSES = ["processes", pytest.param("dask", marks=RAY), pytest.param("ray", marks=RAY)]
ENGINES = ["here", *PROCESSES]
WORKERS = 2


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Address of a Dask cluster of two worker processes that are started again when they die."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Engine:
    """The engine of that name, called with what all of them take."""
    name = request.param

    def call(start: Any, stages: Any, retries: int = 2, fatal: Any = lambda error: False) -> Iterator[Any]:
        if name == "ray":
            from pipeline.engines import on_ray

            return on_ray.run(start, stages, workers=WORKERS, retries=retries, fatal=fatal, name="conformance")
        if name == "dask":
            from pipeline.engines import on_dask

            address = request.getfixturevalue("scheduler")
            return on_dask.run(start, stages, workers=WORKERS, retries=retries, fatal=fatal, scheduler=address)
        workers = 1 if name == "here" else WORKERS
        return local.run(start, stages, workers=workers, retries=retries, own_process=name != "here", fatal=fatal)

    if name == "ray":
        request.getfixturevalue("cluster")
    return call


# Units ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ENGINES, indirect=True)
def test_every_unit_comes_back_once_and_stages_follow_each_other(run: Engine) -> None:
    stages: list[list[Unit]] = [list(range(300)), [], [(6, 7), (8,)], [9]]

    def start() -> Callable[[Unit], Any]:
        return lambda unit: [unit, unit]

    got = list(run(start, stages))
    assert sorted(got[:300]) == [(n, [n, n]) for n in range(300)]
    assert sorted(got[300:302]) == [((6, 7), [(6, 7)] * 2), ((8,), [(8,)] * 2)]
    assert got[302:] == [(9, [9, 9])]


@pytest.mark.parametrize("run", ENGINES, indirect=True)
def test_units_are_asked_for_only_shortly_before(run: Engine, request: Any) -> None:
    """What a worker does in a few seconds, and the next stage not before all of this one were taken."""
    few = 3 if request.node.callspec.params["run"] == "ray" else 1  # units of 0.3 s in a call of a second
    asked: list[int] = []
    taken: list[int] = []

    def units(first: int, count: int) -> Iterator[Unit]:
        assert len(taken) == first, "the stage before is not finished"
        for n in range(first, first + count):
            asked.append(n)
            assert len(asked) - len(taken) <= 4 * WORKERS * few
            yield n

    def start() -> Callable[[Unit], None]:
        return lambda unit: time.sleep(0.3 if unit < 10 else 0.06)  # type: ignore[operator]

    for unit, _ in run(start, (units(20 * n, 20) for n in range(2))):
        assert isinstance(unit, int)
        taken.append(unit)
    assert sorted(taken) == asked == list(range(40))


@pytest.mark.parametrize("run", ENGINES, indirect=True)
def test_value_error_is_final_and_others_are_tried_again(run: Engine, tmp_path: Path) -> None:
    def start() -> Callable[[Unit], str]:
        def work(unit: Unit) -> str:
            log(tmp_path, unit)
            if unit == 1:
                raise UnicodeError("page 3:\n chunk 4")
            if unit == 3 and logged(tmp_path).count("3") == 2:
                return "at last"
            if unit in (3, 4):
                raise KeyError
            return "good"

        return work

    got = dict(run(start, [range(40)]))
    assert got == dict.fromkeys(range(40), "good") | {
        1: Failure("page 3: chunk 4", "UnicodeError", died=False),
        3: "at last",
        4: Failure("KeyError", "KeyError", died=False),
    }
    assert Counter(logged(tmp_path)) == {str(n): {3: 2, 4: 3}.get(n, 1) for n in range(40)}


@pytest.mark.parametrize("run", ENGINES, indirect=True)
def test_fatal_error_stops_everything(run: Engine, tmp_path: Path) -> None:
    def start() -> Callable[[Unit], None]:
        def work(unit: Unit) -> None:
            log(tmp_path, unit)
            time.sleep(0.05)
            if unit == 5:
                raise OSError(28, "No space left on device")

        return work

    with pytest.raises(OSError, match="No space left") as caught:
        list(run(start, [range(1000)], fatal=lambda error: isinstance(error, OSError)))
    assert caught.value.errno == 28
    assert logged(tmp_path).count("5") == 1 and len(logged(tmp_path)) < 150


@pytest.mark.parametrize("run", ENGINES, indirect=True)
def test_error_in_start_is_raised_as_it_is(run: Engine) -> None:
    def start() -> Callable[[Unit], None]:
        raise FileNotFoundError(2, "No such file", "gone.tif")

    with pytest.raises(FileNotFoundError, match=r"gone\.tif"):
        list(run(start, [range(5)]))


# Deaths --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", PROCESSES, indirect=True)
def test_killed_worker_is_replaced_and_only_its_unit_is_tried_again(run: Engine, tmp_path: Path, request: Any) -> None:
    """Killed from outside while a unit runs, and another waits behind it where the engine has one wait.

    In the midst of it: with an actor that dies as the unit begins, what it has just done may be lost on the way.
    """

    def start() -> Callable[[Unit], Unit]:
        def work(unit: Unit) -> Unit:
            log(tmp_path, f"{unit} {os.getpid()}")
            if unit == 7 and sum(line.startswith("7 ") for line in logged(tmp_path)) == 1:
                time.sleep(60)
            time.sleep(0.3)
            return unit

        return work

    def kill() -> None:
        time.sleep(1)
        line = next(line for line in logged(tmp_path) if line.startswith("7 "))
        os.kill(int(line.split()[1]), signal.SIGKILL)

    threading.Thread(
        target=lambda: wait_for(lambda: any(line.startswith("7 ") for line in logged(tmp_path)), 60) and kill()
    ).start()
    assert sorted(run(start, [range(12)], retries=1)) == [(n, n) for n in range(12)]
    times = Counter(line.split()[0] for line in logged(tmp_path))
    again = {unit for unit, count in times.items() if count > 1}
    assert max(times.values()) == 2 and "7" in again
    if request.node.callspec.params["run"] != "dask":  # whose results lie with the worker until they are fetched
        assert again == {"7"}


@pytest.mark.parametrize("run", PROCESSES, indirect=True)
def test_unit_that_kills_its_worker_each_time_is_set_aside(run: Engine, tmp_path: Path) -> None:
    """Also among units so small that many go in one call; what waited behind it costs one more try at most."""

    def start() -> Callable[[Unit], Unit]:
        def work(unit: Unit) -> Unit:
            log(tmp_path, unit)
            if unit == 50:
                os.kill(os.getpid(), signal.SIGKILL)
            return unit

        return work

    got = dict(run(start, [range(100)]))
    failure = got.pop(50)
    assert failure.died and failure.message.startswith("its worker died, 3 times")
    assert got == {n: n for n in range(100) if n != 50}
    times = Counter(logged(tmp_path))
    assert times.pop("50") == 3 and max(times.values()) <= 2


@pytest.mark.parametrize("ending", ["closed", "error of the caller"])
@pytest.mark.parametrize("run", ["processes", pytest.param("ray", marks=RAY)], indirect=True)
def test_busy_workers_do_not_outlive_the_run(run: Engine, ending: str, tmp_path: Path) -> None:
    """Those of a Dask cluster that was there stay, and finish what they are at."""

    def start() -> Callable[[Unit], Unit]:
        def work(unit: Unit) -> Unit:
            log(tmp_path, os.getpid())
            if unit != 0:
                time.sleep(1000)
            return unit

        return work

    def units() -> Iterator[Unit]:
        if ending == "closed":
            yield from (0, 1)
        else:
            yield from (1, 2)
            assert wait_for(lambda: logged(tmp_path), 60)
            raise LookupError("no such image")

    results = run(start, [units()])
    if ending == "closed":
        assert next(results) == (0, 0)
        assert wait_for(lambda: len(logged(tmp_path)) > 1, 60)
        results.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(LookupError):
            list(results)
    assert wait_for(lambda: not any(map(alive, logged(tmp_path))), 5)
