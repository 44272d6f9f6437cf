"""One run at a time in an object store: whoever wrote the lease last, unless it stopped renewing it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.stitching import lease as module
from pipeline.stitching.lease import LEASE, Lease
from pipeline.stitching.ledger import LedgerError
from tests.stitching.objects import MemoryObjects


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.05)
    monkeypatch.setattr(module, "TERM", 2.0)
    monkeypatch.setattr(module, "LOOK", 0.02)


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


@pytest.fixture
def held(objects: MemoryObjects) -> Iterator[Lease]:
    lease = Lease(objects, "s3://b/o.zarr")
    yield lease
    lease.release()


def stolen(objects: MemoryObjects, **changes: Any) -> None:
    lease = json.loads(objects.read(LEASE)) | changes
    objects.write(LEASE, json.dumps(lease).encode())


def test_it_is_renewed_and_given_back(objects: MemoryObjects) -> None:
    lease = Lease(objects, "s3://b/o.zarr")
    first = json.loads(objects.read(LEASE))
    time.sleep(0.3)
    assert json.loads(objects.read(LEASE))["beat"] > first["beat"] + 1
    lease.check()
    lease.release()
    lease.release()
    assert objects.names() == []


def test_a_living_holder_is_named(objects: MemoryObjects, held: Lease) -> None:
    began = time.monotonic()
    with pytest.raises(
        LedgerError, match=rf"s3://b/o.zarr is being written by another run \(.*process {os.getpid()}\)"
    ):
        Lease(objects, "s3://b/o.zarr")
    assert time.monotonic() - began < module.TERM
    held.check()


def test_a_holder_elsewhere_that_is_silent_loses_it_after_its_term(objects: MemoryObjects) -> None:
    objects.write(LEASE, json.dumps({"token": "x", "beat": 4, "holder": "far", "machine": "far"}).encode())
    began = time.monotonic()
    lease = Lease(objects, "s3://b/o.zarr")
    assert module.TERM < time.monotonic() - began < 3 * module.TERM
    lease.check()
    lease.release()


def test_a_dead_process_of_this_machine_loses_it_at_once(objects: MemoryObjects) -> None:
    Lease(objects, "s3://b/o.zarr").release()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for process in ([gone.pid, 1], [os.getpid(), 1]):  # the second: another one with the same number
        lease = {"token": "x", "beat": 4, "machine": module._machine(), "process": process}
        objects.write(LEASE, json.dumps(lease).encode())
        began = time.monotonic()
        Lease(objects, "s3://b/o.zarr").release()
        assert time.monotonic() - began < module.TERM


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b"{}"])
def test_a_lease_that_makes_no_sense_is_nobodys(objects: MemoryObjects, content: bytes) -> None:
    objects.write(LEASE, content)
    Lease(objects, "s3://b/o.zarr").release()


def test_one_that_was_taken_by_another_is_lost(objects: MemoryObjects, held: Lease) -> None:
    stolen(objects, token="other")
    deadline = time.monotonic() + 5
    while not held.lost and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(LedgerError, match="the lease was lost"):
        held.check()
    held.release()
    assert objects.names() == [LEASE], "it is another's now"


def test_a_beat_whose_answer_was_lost_is_no_loss(objects: MemoryObjects, held: Lease) -> None:
    stolen(objects)  # written again as it was: what a request does that is sent twice
    time.sleep(0.3)
    held.check()
    assert not held.lost


def test_a_store_that_is_silent_for_a_term_ends_the_run(objects: MemoryObjects, held: Lease) -> None:
    objects.silent = True
    time.sleep(module.TERM + 0.3)
    with pytest.raises(LedgerError, match="the lease was lost"):
        held.check()
    objects.silent = False
    time.sleep(0.3)
    held.check()


def test_of_many_at_once_one_gets_it(objects: MemoryObjects) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def take(_: int) -> Lease | None:
        try:
            return Lease(objects, "s3://b/o.zarr")
        except LedgerError:
            return None

    with ThreadPoolExecutor(8) as pool:
        taken = [lease for lease in pool.map(take, range(8)) if lease is not None]
    assert len(taken) == 1
    taken[0].release()
