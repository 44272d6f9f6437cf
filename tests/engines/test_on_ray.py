"""What the Ray engine has beyond the others: clusters that are there or not, nodes that come, go and see nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines.on_ray import run
from pipeline.engines.units import Failure, Unit
from tests.engines.watching import SMALL, wait_for

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(280), pytest.mark.usefixtures("by_value")]


def where() -> Callable[[Unit], Any]:
    """Work that tells its node."""
    import ray

    node = ray.get_runtime_context().get_node_id()

    def work(unit: Unit) -> str:
        time.sleep(0.2)
        return node

    return work


def test_workers_that_no_node_can_hold_are_refused_at_once(cluster: Any) -> None:
    before = time.monotonic()
    with pytest.raises(
        ValueError, match=r"asks for 1 CPU and 2 GPU; no node has that \(there are nodes of 2 CPU and 0"
    ):
        list(run(where, [range(3)], workers=2, gpus=2))
    assert time.monotonic() - before < 10


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "ray://127.0.0.1:10001"])
def test_cluster_that_does_not_answer_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # of the tests' own cluster
    with pytest.raises(ValueError, match=rf"no Ray cluster answers at '{address}': give HOST:PORT"):
        next(run(where, [range(3)], workers=2, address=address))


def test_actors_are_named_and_compute_with_one_thread(cluster: Any) -> None:
    def start() -> Callable[[Unit], Any]:
        import ray

        def work(unit: Unit) -> Any:
            return (
                ray.get_runtime_context().get_actor_name(),
                os.environ["OMP_NUM_THREADS"],
                os.environ["MKL_NUM_THREADS"],
            )

        return work

    ((_, got),) = run(start, [[1]], workers=1, cpus=2, name="infer big.zarr")
    assert re.fullmatch(r"infer big\.zarr worker \d+", got[0]) and got[1:] == ("1", "1")


def test_node_that_does_not_see_the_data_is_named_before_anything_starts(cluster: Any, tmp_path: Path) -> None:
    head = cluster.head_node.node_id

    def check() -> str | None:
        import ray

        return None if ray.get_runtime_context().get_node_id() == head else "the output /data/o.zarr is not seen"

    def start() -> Callable[[Unit], Any]:
        (tmp_path / "started").touch()
        return lambda unit: unit

    assert dict(run(start, [[1]], workers=1, check=check)) == {1: 1}
    (tmp_path / "started").unlink()
    node = cluster.add_node(num_cpus=1, **SMALL)
    try:
        with pytest.raises(ValueError, match=r"^node \S+ \(\S+\): the output /data/o.zarr is not seen$"):
            list(run(start, [range(3)], workers=3, check=check))
        assert not (tmp_path / "started").exists()
    finally:
        cluster.remove_node(node, allow_graceful=False)


def test_workers_join_with_their_node_and_a_drained_one_charges_nobody(cluster: Any) -> None:
    """No retry is granted, so a unit that is charged would be a Failure."""
    got: dict[Unit, Any] = {}
    node = None

    def units() -> Iterator[Unit]:
        """As many as it takes until the node's worker has done one, and some more."""
        count = 0
        while node is None or node.node_id not in got.values():
            yield count
            count += 1
        yield from range(count, count + 40)

    results = run(where, [units()], workers=3, retries=0, name="drained")
    for unit, result in results:
        got[unit] = result
        if node is None:
            node = cluster.add_node(num_cpus=1, **SMALL)
        elif result == node.node_id:
            break
    assert node is not None
    command = [
        "drain-node", "--address", cluster.address, "--node-id", node.node_id, "--reason",
        "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", "1",
    ]  # fmt: skip
    program = Path(sys.executable).with_name("ray")
    done = subprocess.run([program, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    got |= dict(results)
    cluster.remove_node(node, allow_graceful=False)
    assert sorted(got) == list(range(len(got))) and not any(isinstance(result, Failure) for result in got.values())


def test_workers_that_die_at_the_start_are_an_error(cluster: Any) -> None:
    def start() -> Callable[[Unit], None]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with pytest.raises(RuntimeError, match="workers die at the start, 2 times in a row"):
        list(run(start, [range(5)], workers=1, retries=1))


ALONE = """
import os, sys, time
import ray
from pipeline.engines.on_ray import run
def start():
    def work(unit):
        if unit: time.sleep(1000)
        return os.getpid()
    return work
for unit, result in run(start, [range(int(sys.argv[1]))], workers=1):
    print(os.path.basename(ray._private.worker.global_worker.node.get_session_dir_path()), flush=True)
assert not ray.is_initialized()
"""


@pytest.mark.parametrize("how", ["end", "SIGINT", pytest.param("SIGTERM", marks=pytest.mark.nightly), "SIGKILL"])
def test_cluster_of_its_own_ends_with_the_run(how: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE, "1" if how == "end" else "3"],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        | {"PYTHONPATH": str(Path(__file__).parents[2]), "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    session = process.stdout.readline().strip()
    assert session.startswith("session_")
    if how != "end":
        assert of_session(session)
        process.send_signal(getattr(signal, how))
    _, said = process.communicate(timeout=60)
    assert process.returncode == {"end": 0, "SIGINT": -2, "SIGTERM": -15, "SIGKILL": -9}[how]
    if how in ("end", "SIGKILL"):
        assert said == ""
    assert wait_for(lambda: not of_session(session), 20), of_session(session)


def of_session(session: str) -> list[str]:
    """Command lines of the processes that run for it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if session in path.read_text():
                found.append(path.read_text().replace("\0", " ")[:100])
        except OSError:
            continue
    return found
