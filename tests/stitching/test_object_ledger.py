"""The ledger as objects: pieces that are written once, put together when it is opened."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pipeline.stitching import object_ledger as module
from pipeline.stitching.lease import LEASE, Lease
from pipeline.stitching.ledger import LedgerError
from pipeline.stitching.object_ledger import ObjectLedger
from tests.stitching.objects import MemoryObjects

RECORDS = [(10, 7), None]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(module, "EVERY", 0.0)
    return tmp_path / "tmp"


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


def open_in(objects: MemoryObjects, fingerprint: str = "f", units: int = 500) -> ObjectLedger:
    return ObjectLedger.open_in(objects, fingerprint, units, lease=Lease(objects, "s3://b/o.zarr"))


@pytest.fixture
def ledger(objects: MemoryObjects) -> Iterator[ObjectLedger]:
    ledger = open_in(objects)
    yield ledger
    ledger.close()


def pieces(objects: MemoryObjects) -> list[str]:
    return [name for name in objects.names() if name != LEASE]


def test_what_was_added_is_there_when_it_is_opened_again(objects: MemoryObjects, temporary: Path) -> None:
    with open_in(objects) as ledger:
        for unit in (3, 1, 4):
            ledger.add(unit, RECORDS)
        ledger.forget([1])
    assert objects.names() == pieces(objects), "the lease is given back"
    assert not list(temporary.iterdir())
    with open_in(objects) as again:
        assert again.count == 2 and again.done(3) and again.done(4) and not again.done(1)
        assert again.records(4) == RECORDS
        again.add(1, RECORDS)
    with ObjectLedger.read_from(objects, "s3://b/o.zarr") as seen:
        assert [unit for unit, _ in seen] == [3, 4, 1]
    assert not list(temporary.iterdir())


def test_each_unit_is_safe_at_once_where_they_are_slow(objects: MemoryObjects, ledger: ObjectLedger) -> None:
    ledger.add(7, RECORDS)
    with ObjectLedger.read_from(objects, "o") as seen:  # what is left if the run is killed now
        assert seen.done(7)


def test_the_last_of_some_fast_units_is_safe_soon_where_the_next_is_slow(
    objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY", 0.2)
    with open_in(objects) as ledger:
        for unit in range(3):
            ledger.add(unit, RECORDS)
        seen, until = 0, time.monotonic() + 20
        while seen < 3 and time.monotonic() < until:
            time.sleep(0.01)
            with ObjectLedger.read_from(objects, "o") as read:
                seen = read.count
        assert seen == 3


def test_a_store_that_refuses_late_is_said_by_what_comes_next(
    objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY", 60.0)
    with open_in(objects) as ledger:
        objects.silent = True
        ledger.add(1, RECORDS)
        ledger._save_late()
        monkeypatch.setattr(module, "EVERY", 0.0)
        with pytest.raises(LedgerError, match="cannot write the ledger: s3://b does not answer"):
            ledger.add(2, RECORDS)
        objects.silent = False


def test_fast_units_share_pieces(objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 60.0)
    with open_in(objects) as ledger:
        for unit in range(300):
            ledger.add(unit, RECORDS)
        assert len(pieces(objects)) == 1
    assert len(pieces(objects)) == 2
    with open_in(objects) as again:
        assert again.count == 300


def test_many_pieces_become_one(objects: MemoryObjects) -> None:
    with open_in(objects) as ledger:
        for unit in range(200):
            ledger.add(unit, RECORDS)
            assert len(pieces(objects)) <= module.MOST + 4
    for _ in range(3):
        with open_in(objects) as again:
            assert again.count == 200
            again.forget([5])
            again.add(5, RECORDS)
    assert len(pieces(objects)) <= module.MOST + 4


@pytest.mark.parametrize("removed", [0, 1, 5, module.MOST - 1])
def test_a_kill_among_the_removal_of_the_many_changes_nothing(
    objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch, removed: int
) -> None:
    left = [removed]

    def remove(keys: Sequence[str]) -> None:
        for key in keys:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            objects.remove(key)

    with open_in(objects) as ledger:
        for unit in range(module.MOST - 2):
            ledger.add(unit, RECORDS)
        ledger.forget([1])
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(objects, "remove_all", remove)
            ledger.add(100, RECORDS)
        killed = MemoryObjects()
        killed.held = {name: held for name, held in objects.held.items() if name != LEASE}
    assert len(pieces(killed)) == module.MOST + 1 - removed
    with open_in(killed) as again:
        assert again.count == module.MOST - 2 and again.done(100) and not again.done(1)


def test_what_is_read_while_pieces_become_one_is_read_again(objects: MemoryObjects) -> None:
    with open_in(objects) as ledger:
        ledger.add(1, RECORDS)
        many, read = pieces(objects), objects.read

        def late(key: str) -> bytes:
            objects.read = read  # type: ignore[method-assign]
            objects.write("00000099-other", b"".join(read(name) for name in pieces(objects)))
            objects.remove_all(many)
            return read(key)

        objects.read = late  # type: ignore[method-assign]
        with ObjectLedger.read_from(objects, "o") as seen:
            assert seen.done(1)


def test_a_ledger_of_another_version_is_named_by_its_output(objects: MemoryObjects) -> None:
    objects.write("00000001-a", b"something else\n")
    with pytest.raises(LedgerError, match=r"^s3://b/o\.zarr/ledger is not a ledger of this version"):
        open_in(objects)


def test_another_fingerprint_is_refused_and_the_lease_given_back(objects: MemoryObjects) -> None:
    open_in(objects).close()
    with pytest.raises(LedgerError, match=r"s3://b/o\.zarr was begun by a run that differs"):
        open_in(objects, "g")
    assert LEASE not in objects.names()


def test_reading_where_there_is_none(objects: MemoryObjects, temporary: Path) -> None:
    with pytest.raises(LedgerError, match=r"s3://b/o\.zarr has no ledger"):
        ObjectLedger.read_from(objects, "s3://b/o.zarr")
    assert not list(temporary.iterdir())


def test_nothing_is_written_without_the_lease(objects: MemoryObjects, ledger: ObjectLedger) -> None:
    before = pieces(objects)
    assert ledger._lease is not None
    ledger._lease.lost = True
    with pytest.raises(LedgerError, match="the lease was lost"):
        ledger.add(1, RECORDS)
    ledger.close()
    assert pieces(objects) == before


def test_a_store_that_refuses_is_said(objects: MemoryObjects, ledger: ObjectLedger) -> None:
    objects.silent = True
    with pytest.raises(LedgerError, match="cannot write the ledger: s3://b does not answer"):
        ledger.add(1, RECORDS)
    objects.silent = False
    ledger.add(2, RECORDS)
    with ObjectLedger.read_from(objects, "o") as seen:
        assert seen.done(1) and seen.done(2)
