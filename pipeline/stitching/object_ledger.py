"""A ledger in an object store, where nothing can be appended to: pieces of it, each an object written once.

    ledger/00000001-5f0c1a2b    {"ledger": 2, ...}        the lines of a ledger, in the order of the names
    ledger/00000002-5f0c1a2b    17 52310:9a3b01fe -
    ledger/lease                who writes (pipeline.stitching.lease)

They are put together in a file of this machine, and read and written there as any ledger. What was added in the last
second may be lost in a kill: such units are done again. A timer sees to it where the next unit is long in coming.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from pipeline.stitching.lease import Lease, Objects
from pipeline.stitching.ledger import FILE, Ledger, LedgerError, Record

EVERY = 1.0
"""Seconds between two pieces, at least."""
MOST = 64
"""Pieces of which one is made, so that a long run has few to put together."""


class ObjectLedger(Ledger):
    """The same as a Ledger, kept in an object store."""

    _objects: Objects
    _folder: Path
    _lease: Lease | None = None
    _timer: threading.Timer | None = None
    """Puts what was added last into the object store, if nothing does before."""
    _busy: threading.Lock
    """Held by who reads or writes the ledger: its caller, or the timer's thread."""
    _kept = 0
    """Bytes of the file that are in the object store."""
    _saved = float("-inf")
    _number = 0
    """Of the last piece."""
    _pieces: list[str]
    """Those that are not yet made one with others, from `_first` on in the file."""
    _first = 0

    @classmethod
    def open_in(cls, objects: Objects, fingerprint: str, units: int, *, lease: Lease) -> Self:
        """The ledger to go on with, or a new one. The lease is the ledger's from here on, also where this raises.

        Raises LedgerError where the ledger is of another fingerprint.
        """
        folder = Path(tempfile.mkdtemp(prefix="pipeline-ledger-"))
        try:
            pieces = _fetch(objects, folder)
            kept = (folder / FILE).stat().st_size
            ledger = super().open(folder, fingerprint, units, name=lease.what)
            assert isinstance(ledger, cls)
            ledger._objects, ledger._folder, ledger._lease = objects, folder, lease
            ledger._busy = threading.Lock()
            ledger._pieces, ledger._kept = pieces, min(kept, ledger._end)
            ledger._number = max((int(piece.split("-")[0]) for piece in pieces), default=0)
            ledger._save()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            lease.release()
            raise
        return ledger

    @classmethod
    def read_from(cls, objects: Objects, what: str) -> Self:
        """The ledger to look at: takes no lease and changes nothing. Raises LedgerError where there is none."""
        folder = Path(tempfile.mkdtemp(prefix="pipeline-ledger-"))
        try:
            _fetch(objects, folder)
            ledger = super().read(folder, name=what)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        assert isinstance(ledger, cls)
        ledger._objects, ledger._folder = objects, folder
        ledger._busy = threading.Lock()
        return ledger

    def add(self, unit: int, records: Sequence[Record]) -> None:
        with self._busy:
            super().add(unit, records)
            self._save_soon()

    def forget(self, units: Iterable[int]) -> None:
        with self._busy:
            super().forget(units)
            self._save_soon()

    def _save_soon(self) -> None:
        assert self._lease is not None
        self._lease.check()
        left = self._saved + EVERY - time.monotonic()
        if left <= 0:
            self._save()
        elif self._timer is None:
            self._timer = threading.Timer(left, self._save_late)
            self._timer.daemon = True
            self._timer.start()

    def _save_late(self) -> None:
        with self._busy:
            self._timer = None
            if self._file >= 0:
                with suppress(LedgerError):  # who adds or closes next tries again, and hears of it
                    self._save()

    def _save(self) -> None:
        """Puts what is new into the object store as the next piece; after many pieces, all of them as one."""
        assert self._lease is not None
        self._lease.check()
        many = len(self._pieces) >= MOST
        if self._kept == self._end and not many:
            return
        start = self._first if many else self._kept
        with open(self.path, "rb") as file:
            file.seek(start)
            content = file.read(self._end - start)
        self._number += 1
        name = f"{self._number:08d}-{self._lease.token}"
        try:
            self._objects.put_if(name, content, None)
            if many:  # in the order that a kill may cut short: what is left begins with a ledger's first line
                there = [piece for piece in self._objects.names() if piece in self._pieces]
                self._objects.remove_all(there[1:])
                self._objects.remove_all(there[:1])
                self._pieces, self._first = [], self._end
            else:
                self._pieces.append(name)
        except ValueError as error:
            raise LedgerError(f"cannot write the ledger: {error}") from error
        self._kept, self._saved = self._end, time.monotonic()

    def close(self) -> None:
        """Puts the rest into the object store, and gives the lease back."""
        with self._busy:
            if self._timer is not None:
                self._timer.cancel()
            if self._file < 0:
                return
            try:
                if self._lease is not None and not self._lease.lost:
                    self._save()
            finally:
                super().close()
                shutil.rmtree(self._folder, ignore_errors=True)
                if self._lease is not None:
                    self._lease.release()


def _fetch(objects: Objects, folder: Path) -> list[str]:
    """Puts all pieces together into one file; their names."""
    while True:
        pieces = [name for name in objects.names() if name[0].isdigit()]
        try:
            with open(folder / FILE, "wb") as file:
                for piece in pieces:
                    file.write(objects.read(piece))
            return pieces
        except FileNotFoundError:  # the run that writes has just made them one
            time.sleep(0.1)
