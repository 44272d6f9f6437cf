"""The lock and the ledger of an output: files in its folder, objects in its bucket."""

from __future__ import annotations

from pipeline.stitching.lease import Lease
from pipeline.stitching.ledger import FILE, Ledger, Lock
from pipeline.stitching.object_ledger import ObjectLedger
from pipeline.storage.bucket import Bucket
from pipeline.storage.location import Folder, Location

FOLDER = "ledger"
Held = Lock | Lease


def hold(location: Location) -> Held:
    """The lock of the output, taken. Raises LedgerError where another run holds it."""
    if isinstance(location, Bucket):
        return Lease(location.within(FOLDER), str(location))
    assert isinstance(location, Folder)
    return Lock(location.path / FOLDER)


def open_ledger(location: Location, fingerprint: str, units: int, lock: Held) -> Ledger:
    """The output's ledger to go on with, or a new one. The lock is the ledger's from here on, also where this raises.

    Raises LedgerError where the ledger is of another fingerprint.
    """
    if isinstance(lock, Lease):
        assert isinstance(location, Bucket)
        return ObjectLedger.open_in(location.within(FOLDER), fingerprint, units, lease=lock)
    assert isinstance(location, Folder)
    return Ledger.open(location.path / FOLDER, fingerprint, units, lock=lock)


def read_ledger(location: Location) -> Ledger:
    """The output's ledger to look at. Raises LedgerError where there is none."""
    if isinstance(location, Bucket):
        return ObjectLedger.read_from(location.within(FOLDER), str(location))
    assert isinstance(location, Folder)
    return Ledger.read(location.path / FOLDER)


def forget_ledger(location: Location, lock: Held) -> None:
    """Removes the ledger of a run that is to begin anew, but not its lock."""
    if not isinstance(lock, Lease):
        location.remove(f"{FOLDER}/{FILE}")
        return
    for piece in location.names(FOLDER):
        if piece[0].isdigit():
            location.remove(f"{FOLDER}/{piece}")
