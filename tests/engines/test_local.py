"""The local engine, with real processes: what it yields, whom it charges, and that nobody survives it."""

from __future__ import annotations

import atexit
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines import template
from pipeline.engines.local import run
from pipeline.engines.units import THREADS, Failure, Unit
from tests.engines.watching import alive, log, logged, never, wait_for

MODES = [pytest.param(1, False, id="here"), pytest.param(1, True, id="process"), pytest.param(3, True, id="processes")]


def square(unit: Unit) -> Any:
    return tuple(n * n for n in unit) if isinstance(unit, tuple) else unit * unit


# What every engine must do -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "own_process"), MODES)
def test_every_unit_comes_back_once(workers: int, own_process: bool) -> None:
    stages: list[list[Unit]] = [[1, 2, 3, 4, 5], [], [(6, 7), (8,)], [9]]
    got = list(run(lambda: square, stages, workers=workers, own_process=own_process, fatal=never))
    assert sorted(got[:5]) == [(n, n * n) for n in range(1, 6)]
    assert sorted(got[5:7]) == [((6, 7), (36, 49)), ((8,), (64,))]
    assert got[7:] == [(9, 81)]


@pytest.mark.parametrize(("workers", "own_process"), MODES)
def test_nothing_to_do_starts_nothing(workers: int, own_process: bool, tmp_path: Path) -> None:
    def start() -> Callable[[Unit], None]:
        log(tmp_path, "started")
        return lambda unit: None

    assert list(run(start, [[], []], workers=workers, own_process=own_process, fatal=never)) == []
    assert logged(tmp_path) == []


@pytest.mark.parametrize(("workers", "own_process"), MODES)
def test_start_runs_once_a_worker_over_all_stages(workers: int, own_process: bool, tmp_path: Path) -> None:
    def start() -> Callable[[Unit], int]:
        log(tmp_path, os.getpid())

        def work(unit: Unit) -> int:
            time.sleep(0.1)
            return os.getpid()

        return work

    got = list(run(start, [range(8), range(8, 12)], workers=workers, own_process=own_process, fatal=never))
    assert {str(pid) for _, pid in got} <= set(logged(tmp_path))
    assert len(logged(tmp_path)) == len(set(logged(tmp_path))) == workers
    assert (os.getpid() in {pid for _, pid in got}) == (not own_process)


@pytest.mark.parametrize(("workers", "own_process"), MODES)
def test_units_are_asked_for_only_shortly_before(workers: int, own_process: bool) -> None:
    """At most two a worker ahead, and the next stage not before the last result of this one was taken."""
    asked: list[int] = []
    taken: list[int] = []

    def units(first: int, count: int) -> Iterator[Unit]:
        assert len(taken) == first, "the stage before is not finished"
        for n in range(first, first + count):
            asked.append(n)
            assert len(asked) - len(taken) <= 2 * workers
            yield n

    for unit, _ in run(
        lambda: square, (units(20 * n, 20) for n in range(2)), workers=workers, own_process=own_process, fatal=never
    ):
        assert isinstance(unit, int)
        taken.append(unit)
    assert sorted(taken) == asked == list(range(40))


@pytest.mark.parametrize(("workers", "own_process"), MODES)
def test_value_error_is_final_and_others_are_tried_again(workers: int, own_process: bool, tmp_path: Path) -> None:
    def work(unit: Unit) -> str:
        log(tmp_path, unit)
        if unit == 1:
            raise UnicodeError("page 3:\n chunk 4")
        if unit == 2:
            raise OSError(errno.EIO, "broken cable")
        if unit == 3 and logged(tmp_path).count("3") == 2:
            return "at last"
        if unit in (3, 4):
            raise KeyError
        return "good"

    got = dict(run(lambda: work, [range(6)], workers=workers, retries=2, own_process=own_process, fatal=never))
    assert got == {
        0: "good",
        1: Failure("page 3: chunk 4", "UnicodeError", died=False),
        2: Failure("[Errno 5] broken cable", "OSError", died=False),
        3: "at last",
        4: Failure("KeyError", "KeyError", died=False),
        5: "good",
    }
    assert Counter(logged(tmp_path)) == {"0": 1, "1": 1, "2": 3, "3": 2, "4": 3, "5": 1}


@pytest.mark.parametrize(("workers", "own_process"), MODES)
def test_fatal_error_stops_everything(workers: int, own_process: bool, tmp_path: Path) -> None:
    def work(unit: Unit) -> None:
        log(tmp_path, unit)
        if unit == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        if isinstance(unit, int) and unit > 5:
            time.sleep(1)  # or others would do all of them before a worker that waits for a processor raises

    def full(error: BaseException) -> bool:
        return isinstance(error, OSError) and error.errno == errno.ENOSPC

    with pytest.raises(OSError, match="No space left") as caught:
        list(run(lambda: work, [range(100)], workers=workers, own_process=own_process, fatal=full))
    assert caught.value.errno == errno.ENOSPC
    assert logged(tmp_path).count("5") == 1 and len(logged(tmp_path)) < 20


@pytest.mark.parametrize(("workers", "own_process"), MODES)
def test_error_in_start_is_raised(workers: int, own_process: bool) -> None:
    def start() -> Callable[[Unit], None]:
        raise FileNotFoundError(errno.ENOENT, "No such file", "gone.tif")

    with pytest.raises(FileNotFoundError, match=r"gone\.tif"):
        list(run(start, [range(5)], workers=workers, own_process=own_process, fatal=never))


# What comes of having processes --------------------------------------------------------------------------------------


class Awkward(ValueError):
    """Cannot be unpickled: its __init__ wants two arguments and its args hold one."""

    def __init__(self, page: int, chunk: int) -> None:
        super().__init__(f"page {page}, chunk {chunk}")


def test_errors_that_cannot_travel_arrive_as_text() -> None:
    def awkward(unit: Unit) -> None:
        raise Awkward(1, 2) if unit == 1 else type("Local", (Exception,), {"lock": threading.Lock()})("held a lock")

    got = dict(run(lambda: awkward, [[1, 2]], workers=1, own_process=True, fatal=never))
    assert got[1] == Failure("page 1, chunk 2", "Awkward", died=False)
    assert got[2] == Failure("held a lock", "Local", died=False)
    with pytest.raises(ValueError, match="Awkward: page 1, chunk 2"):
        list(run(lambda: awkward, [[1]], workers=1, own_process=True, fatal=lambda error: True))


def test_result_that_cannot_travel_is_a_failure() -> None:
    ((_, failure),) = run(
        lambda: lambda unit: threading.Lock(), [[1]], workers=1, retries=0, own_process=True, fatal=never
    )
    assert isinstance(failure, Failure) and failure.error == "TypeError"


def test_raised_errors_show_where_they_came_from() -> None:
    def start() -> Callable[[Unit], None]:
        raise ArithmeticError("no")

    with pytest.raises(ArithmeticError) as caught:
        list(run(start, [[1]], workers=1, own_process=True, fatal=never))
    assert "test_local.py" in caught.value.__notes__[0]


def test_worker_killed_half_way_is_replaced_and_nobody_else_is_charged(tmp_path: Path) -> None:
    def work(unit: Unit) -> int:
        log(tmp_path, unit)
        if unit == 3 and logged(tmp_path).count("3") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        return os.getpid()

    got = list(run(lambda: work, [range(12)], workers=2, retries=1, own_process=True, fatal=never))
    assert sorted(unit for unit, _ in got) == list(range(12))
    assert not any(isinstance(result, Failure) for _, result in got)
    assert Counter(logged(tmp_path)) == {str(n): 1 + (n == 3) for n in range(12)}


def test_unit_that_kills_its_worker_each_time_is_set_aside(tmp_path: Path) -> None:
    def work(unit: Unit) -> Unit:
        log(tmp_path, unit)
        if unit == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        if unit == 4:
            os._exit(7)
        return unit

    got = dict(run(lambda: work, [range(9)], workers=2, retries=2, own_process=True, fatal=never))
    assert got.pop(2) == Failure("its worker died, 3 times (SIGSEGV)", "", died=True)
    assert got.pop(4) == Failure("its worker died, 3 times (exit status 7)", "", died=True)
    assert got == {n: n for n in (0, 1, 3, 5, 6, 7, 8)}
    assert Counter(logged(tmp_path)) == {str(n): 3 if n in (2, 4) else 1 for n in range(9)}


def test_worker_that_leaves_a_fork_behind_is_found_dead(tmp_path: Path) -> None:
    """A fork keeps the worker's socket open, so its death does not show as the socket's end."""

    def work(unit: Unit) -> Unit:
        log(tmp_path, unit)
        if unit == 1 and logged(tmp_path).count("1") == 1:
            if os.fork() == 0:
                time.sleep(20)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        return unit

    before = time.monotonic()
    assert dict(run(lambda: work, [range(3)], workers=1, own_process=True, fatal=never)) == {0: 0, 1: 1, 2: 2}
    assert time.monotonic() - before < 10


def test_modules_are_imported_once_for_all_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_of_all.py").write_text(f"open({str(tmp_path / 'log')!r}, 'a').write('imported\\n')\nALL = 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def work(unit: Unit) -> tuple[int, int]:
        import module_of_all

        time.sleep(0.1)
        return os.getpid(), module_of_all.ALL

    modules = ["module_of_all", "module_that_is_missing"]
    got = list(run(lambda: work, [range(8)], workers=2, own_process=True, modules=modules, fatal=never))
    assert len({pid for _, (pid, _) in got}) == 2 and {found for _, (_, found) in got} == {42}
    assert logged(tmp_path) == ["imported"]


def test_what_workers_are_forked_of_has_one_thread() -> None:
    """Others, and the locks that they hold, would be lost in the forks."""
    code = (
        "import os, cloudpickle, pipeline.worker, pipeline.engines.dask_cluster; print(os.listdir('/proc/self/task'))"
    )
    single = dict.fromkeys(THREADS, "1")
    found = subprocess.run([sys.executable, "-c", code], env=environment() | single, capture_output=True, text=True)
    assert found.stdout.count("'") == 2, found


EARLY = """
import os, signal, sys, threading
from pipeline.engines.local import run
from pipeline.engines.template import early_template
if sys.argv[1] == "threads":
    threading.Thread(target=threading.Event().wait, daemon=True).start()
if sys.argv[1] == "ignored":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.of_the_caller = True
print("once")
template = early_template(["decimal"])
hold = f"/proc/self/fd/{template.hold}"
if sys.argv[1] == "two":
    other = early_template([])
sys.argv[1] == "unused" and sys.exit(print(template.process.pid))
pid = template.process and template.process.pid
threading.Thread(target=threading.Event().wait, daemon=True).start()
def work(unit):
    holds = os.path.exists(hold) and os.readlink(hold).startswith("pipe")
    said = os.environ["OMP_NUM_THREADS"], os.readlink("/proc/self/fd/0")
    return hasattr(os, "of_the_caller"), "decimal" in sys.modules, holds, *said
print({result for _, result in run(lambda: work, [range(4)], workers=2, own_process=True, template=template)})
os.kill(pid or template.process.pid, 0)
"""


def early(how: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", EARLY, how]
    variables = environment() | {"PYTHONUNBUFFERED": ""}
    return subprocess.run(words, input="", capture_output=True, text=True, env=variables, timeout=60)


@pytest.mark.parametrize("how", ["alone", "ignored", "two"])
def test_an_early_template_is_a_fork_of_a_caller_without_threads(how: str) -> None:
    """Whose later threads do not matter, nor that it ignores its children or has another one; the run ends it, and the
    fork has neither the caller's end of its lifeline nor its input, and does not print what the caller did."""
    done = early(how)
    assert done.stdout == "once\n{(True, True, False, '1', '/dev/null')}\n"
    assert done.stderr.endswith("ProcessLookupError: [Errno 3] No such process\n")


def test_a_caller_with_threads_is_not_forked() -> None:
    assert early("threads").stdout == "once\n{(False, True, False, '1', '/dev/null')}\n"


def test_a_template_that_no_run_took_ends_with_its_process() -> None:
    done = early("unused")
    once, pid = done.stdout.split()
    assert (once, done.returncode, done.stderr) == ("once", 0, "") and wait_for(lambda: not alive(pid), 1.0)


def test_workers_whose_template_is_killed_are_replaced(tmp_path: Path) -> None:
    def work(unit: Unit) -> Unit:
        log(tmp_path, unit)
        if unit == 3 and logged(tmp_path).count("3") == 1:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(10)
        time.sleep(0.05)
        return unit

    assert sorted(run(lambda: work, [range(12)], workers=2, retries=1, own_process=True, fatal=never)) == [
        (n, n) for n in range(12)
    ]
    assert logged(tmp_path).count("3") == 2


def test_a_caller_that_ignores_its_children_still_learns_of_what_they_died() -> None:
    """What a process ignores its children inherit, and the kernel then keeps no account of how theirs ended."""

    def work(unit: Unit) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        got = list(run(lambda: work, [[1]], workers=1, retries=0, own_process=True, fatal=never))
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert got == [(1, Failure("its worker died, 1 times (SIGSEGV)", "", died=True))]


def test_ctrl_c_while_workers_end_ends_all() -> None:
    """Also where the traceback is kept, as an interactive Python does, and with it all that it refers to."""

    def start() -> Callable[[Unit], Any]:
        atexit.register(time.sleep, 60)
        return lambda unit: (os.getpid(), os.getppid())

    results = run(start, [[1]], workers=1, own_process=True)
    _, processes = next(results)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt) as kept:
        next(results)
    assert wait_for(lambda: not any(map(alive, processes)), 3) and kept.tb is not None


def test_ctrl_c_while_the_template_starts_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller waits for the first fork's id then, and must not take it for another answer later."""
    (tmp_path / "module_that_is_slow.py").write_text(
        f"import os, time\nopen({str(tmp_path / 'log')!r}, 'a').write(f'{{os.getpid()}}\\n')\ntime.sleep(60)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def interrupt() -> None:
        wait_for(lambda: logged(tmp_path), 20)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        list(run(lambda: square, [[1]], workers=1, own_process=True, modules=["module_that_is_slow"], fatal=never))
    assert not alive(logged(tmp_path)[0])


def test_workers_that_die_at_the_start_are_an_error() -> None:
    def start() -> Callable[[Unit], None]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with pytest.raises(RuntimeError, match=r"workers die at the start, 3 times in a row \(SIGKILL, perhaps out of mem"):
        list(run(start, [range(5)], workers=1, retries=2, own_process=True, fatal=never))


def test_machine_that_carries_one_worker_of_two_still_finishes(tmp_path: Path) -> None:
    def start() -> Callable[[Unit], Unit]:
        if os.environ["PIPELINE_WORKER"] != "0":
            wait_for(lambda: logged(tmp_path), 20)
            os.kill(os.getpid(), signal.SIGKILL)

        def work(unit: Unit) -> Unit:
            log(tmp_path, unit)
            time.sleep(0.1)
            return unit

        return work

    got = list(run(start, [range(12)], workers=2, retries=1, own_process=True, fatal=never))
    assert sorted(got) == [(n, n) for n in range(12)]


def test_no_more_workers_than_units(tmp_path: Path) -> None:
    def work(unit: Unit) -> str:
        log(tmp_path, unit)
        wait_for(lambda: len(logged(tmp_path)) == 2, 30)  # else the first worker that is ready does both
        return os.environ["PIPELINE_WORKER"]

    got = dict(run(lambda: work, [[1, 2]], workers=50, own_process=True, fatal=never))
    assert sorted(got.values()) == ["0", "1"]


def test_workers_compute_with_one_thread_and_where_the_caller_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module_of_the_caller.py").write_text("ANSWER = 42\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OF_THE_CALLER", "kept")

    def work(unit: Unit) -> tuple[object, ...]:
        import module_of_the_caller

        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OF_THE_CALLER")
        return (module_of_the_caller.ANSWER, os.getcwd(), sys.path[0], *(os.environ[name] for name in names))

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    ((_, got),) = run(lambda: work, [[1]], workers=1, own_process=True, fatal=never)
    assert got == (42, str(tmp_path), str(tmp_path), "1", "1", "kept")
    assert os.environ["OMP_NUM_THREADS"] == "7" and signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask


def test_classes_come_back_as_the_callers_own() -> None:
    class Result:
        def __init__(self, unit: Unit) -> None:
            self.unit = unit

    ((_, got),) = run(lambda: Result, [[1]], workers=1, own_process=True, fatal=never)
    assert type(got) is Result and got.unit == 1


# Scripts as people write them, and how they end ----------------------------------------------------------------------

UNGUARDED = """
import os
from pipeline.engines.local import run
print("top of the script")
class Network:
    def __init__(self, factor): self.factor = factor
    def __call__(self, unit): return helper(unit) * self.factor
def helper(unit): return unit + 1
network = Network(10)
def start(): return network
print(sorted(run(start, [range(4)], workers=2, own_process=True, fatal=lambda error: False)))
"""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.mark.parametrize("how", ["script", "command", "stdin", "notebook"])
def test_main_module_needs_no_guard(how: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    code = f"exec(compile({UNGUARDED!r}, '<cell 1>', 'exec'), globals())"
    arguments = {"script": [str(script)], "command": ["-c", UNGUARDED], "stdin": ["-"], "notebook": ["-c", code]}[how]
    done = subprocess.run(
        [sys.executable, *arguments],
        input=UNGUARDED if how == "stdin" else None,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "top of the script\n[(0, 10), (1, 20), (2, 30), (3, 40)]\n"


BUSY = """
import os, signal, sys, time
from pathlib import Path
from pipeline.engines.local import run
from pipeline.engines.template import early_template
folder, template = Path(sys.argv[1]), None
if sys.argv[2] == "early":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    template = early_template([])
def start():
    def work(unit):
        (folder / f"{os.getpid()}.busy").touch()
        while True: sum(range(1000))
    return work
for _ in run(start, [range(4)], workers=2, own_process=True, template=template): pass
"""

TEMPLATES = pytest.mark.parametrize("template", ["early", "late"])


class Busy:
    """A script whose two workers compute for ever, forks of a fork of it, or of a program that it starts for them."""

    def __init__(self, folder: Path, template: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", BUSY, str(folder), template],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert wait_for(lambda: len(list(folder.glob("*.busy"))) == 2, 30)
        self.children = [int(path.stem) for path in folder.glob("*.busy")]
        assert all(map(alive, self.children))


@TEMPLATES
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_within_a_second_of_their_parent(how: signal.Signals, template: str, tmp_path: Path) -> None:
    busy = Busy(tmp_path, template)
    busy.process.send_signal(how)
    busy.process.wait(5)
    assert wait_for(lambda: not any(map(alive, busy.children)), 1.0)


def test_workers_end_with_their_parent_though_a_fork_of_it_lives_on(tmp_path: Path) -> None:
    """A fork made while the engine runs inherits the lifeline, which then does not close."""

    def work(unit: Unit) -> int:
        return os.getpid()

    reader, writer = os.pipe()
    driver = os.fork()
    if driver == 0:
        results = run(lambda: work, [range(100)], workers=1, own_process=True, fatal=never)
        _, worker = next(results)
        fork = os.fork()
        if fork == 0:
            time.sleep(30)
            os._exit(0)
        os.write(writer, f"{worker} {fork}".encode())
        os.kill(os.getpid(), signal.SIGKILL)
    worker, fork = map(int, os.read(reader, 100).split())
    os.waitpid(driver, 0)
    try:
        assert alive(fork) and wait_for(lambda: not alive(worker), 1.0)
    finally:
        os.kill(fork, signal.SIGKILL)
        os.close(reader)
        os.close(writer)


@TEMPLATES
def test_ctrl_c_ends_all_and_only_the_parent_speaks(template: str, tmp_path: Path) -> None:
    """A terminal sends SIGINT to the whole group."""
    busy = Busy(tmp_path, template)
    before = time.monotonic()
    os.killpg(busy.process.pid, signal.SIGINT)
    _, err = busy.process.communicate(timeout=5)
    assert time.monotonic() - before < 2
    assert busy.process.returncode == -signal.SIGINT
    assert err.count("Traceback") == 1 and err.rstrip().endswith("KeyboardInterrupt")
    assert not any(map(alive, busy.children))


def deaf(folder: Path) -> Callable[[Unit], None]:
    """Work whose unit 1 never ends, in a process that takes no notice of SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def work(unit: Unit) -> None:
        if unit == 1:
            log(folder, os.getpid())
            time.sleep(1000)
        if unit == 2:
            assert wait_for(lambda: logged(folder), 20)
            raise OverflowError

    return work


@pytest.mark.parametrize("ending", ["close", "error of the caller", "fatal error"])
def test_no_worker_survives(ending: str, tmp_path: Path) -> None:
    def units() -> Iterator[Unit]:
        yield from (0, 1, 0, 0, 0)  # more than are asked for ahead of the first result
        if ending == "fatal error":
            yield 2
            return
        assert wait_for(lambda: logged(tmp_path), 20)
        if ending == "error of the caller":
            raise LookupError("no such image")

    results = run(lambda: deaf(tmp_path), [units()], workers=2, own_process=True, fatal=lambda error: True)
    assert next(results) == (0, None)
    assert wait_for(lambda: logged(tmp_path), 20)
    children = [int(line) for line in logged(tmp_path)]
    before = time.monotonic()
    if ending == "close":
        results.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(LookupError if ending == "error of the caller" else OverflowError):
            list(results)
    assert time.monotonic() - before < 2.5
    assert children and not any(map(alive, children))


def test_workers_leave_ctrl_c_to_the_parent() -> None:
    def work(unit: Unit) -> Unit:
        os.kill(os.getpid(), signal.SIGINT)
        return unit

    assert list(run(lambda: work, [[1, 2]], workers=1, own_process=True, fatal=never)) == [(1, 1), (2, 2)]


def test_busy_workers_are_asked_to_end_before_they_are_made_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "TERMINATE", 60.0)
    results = run(lambda: time.sleep, [[0, 1000]], workers=1, own_process=True, fatal=never)
    assert next(results) == (0, None)
    before = time.monotonic()
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - before < 20


def test_engine_leaves_no_files_open_behind() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    list(run(lambda: square, [range(3)], workers=2, own_process=True, fatal=never))
    before = count()
    list(run(lambda: square, [range(3)], workers=2, own_process=True, fatal=never))
    with pytest.raises(ZeroDivisionError):
        list(run(lambda: lambda unit: 1 // unit, [[0]], workers=1, own_process=True, fatal=lambda error: True))
    assert count() == before
