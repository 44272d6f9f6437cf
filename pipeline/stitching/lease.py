"""The lock of an output in an object store: an object that its holder renews, and that others may take once it is old.

    lease     {"token": "5f0c...", "beat": 17, "holder": "host, process 4711", "machine": "...", "process": [4711, 88]}

It is written only on the condition that nobody else wrote it meanwhile, so of two runs one wins. Nobody's clock is
trusted: a lease is old when it was watched for its whole term without a beat, or at once when its holder was a
process of this machine that is gone.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from pipeline.stitching.ledger import LedgerError

log = logging.getLogger("pipeline")

LEASE = "lease"
BEAT = 5.0
"""Seconds from one beat to the next."""
TERM = 60.0
"""Seconds without a beat after which the lease is another's to take; longer than requests are repeated."""
LOOK = 0.5
"""Seconds between two looks at another's lease."""

Version = dict[str, str]


class Objects(Protocol):
    """A folder of an object store, as far as lease and ledger need it. All may raise ValueError."""

    def read(self, key: str) -> bytes:
        """Raises FileNotFoundError."""

    def read_version(self, key: str) -> tuple[bytes, Version]:
        """Raises FileNotFoundError."""

    def put_if(self, key: str, content: bytes, version: Version | None) -> Version | None:
        """Writes if the object has that version, None for not being there; its new version, None if refused."""

    def remove(self, key: str) -> None: ...

    def remove_all(self, keys: Sequence[str]) -> None:
        """These objects, in any order."""

    def names(self, folder: str = "") -> list[str]: ...


class Lease:
    """Held by the one run that may write an output; renewed by a thread of its own until it is released."""

    def __init__(self, objects: Objects, what: str) -> None:
        """Takes the lease. Raises LedgerError where another run that lives holds it."""
        self.objects, self.what = objects, what
        self.token = secrets.token_hex(8)
        self.lost = False
        self._beat = 0
        self._version = self._take()
        self._renewed = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="pipeline lease", daemon=True)
        self._thread.start()

    def _content(self) -> bytes:
        lease = {
            "token": self.token,
            "beat": self._beat,
            "holder": f"{socket.gethostname()}, process {os.getpid()}",
            "machine": _machine(),
            "process": [os.getpid(), _started(os.getpid())],
        }
        return json.dumps(lease).encode()

    def _take(self) -> Version:
        seen: tuple[Any, float] | None = None
        while True:
            try:
                content, version = self.objects.read_version(LEASE)
            except FileNotFoundError:
                content, version = b"{}", None
            lease = _parse(content)
            if version is None or lease.get("token") == self.token or _is_gone(lease):
                taken = self.objects.put_if(LEASE, self._content(), version)
                if taken is not None:
                    return taken
                continue
            mark = lease.get("token"), lease.get("beat")
            if seen is None:
                seen = mark, time.monotonic()
                log.warning("%s has a lease of %s: waiting to see whether it lives", self.what, lease.get("holder"))
            if mark != seen[0]:
                raise LedgerError(
                    f"{self.what} is being written by another run ({lease.get('holder', 'unknown')}): "
                    "wait for it or end it"
                )
            if time.monotonic() - seen[1] > TERM and self.objects.put_if(LEASE, b"{}", version) is not None:
                seen = None  # old, and ours to take in the next round, if nobody is faster
            time.sleep(LOOK if seen else 0)

    def _renew(self) -> None:
        while not self._stop.wait(BEAT):
            self._beat += 1
            with suppress(ValueError):  # no answer: the next beat may have one
                version = self.objects.put_if(LEASE, self._content(), self._version)
                if version is None and not self._is_ours():
                    self.lost = True
                    return
                self._version = version or self._version
                self._renewed = time.monotonic()

    def _is_ours(self) -> bool:
        """Whether a beat that was refused had arrived before: its answer was lost and it was sent again."""
        try:
            content, version = self.objects.read_version(LEASE)
        except FileNotFoundError:
            return False
        if _parse(content).get("token") != self.token:
            return False
        self._version = version
        return True

    def check(self) -> None:
        """Raises LedgerError where the lease is no longer held, so that nothing more may be written."""
        if self.lost or time.monotonic() - self._renewed > TERM:
            raise LedgerError(
                f"{self.what}: the lease was lost, another run may be writing; the same command, without "
                "overwrite, continues"
            )

    def release(self) -> None:
        """Gives the lease back, if it is still held. May be called again."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        if not self.lost:
            with suppress(ValueError, FileNotFoundError):
                if self._is_ours():
                    self.objects.remove(LEASE)


def _parse(content: bytes) -> dict[str, Any]:
    try:
        lease = json.loads(content)
    except ValueError:
        return {}
    return lease if isinstance(lease, dict) else {}


def _is_gone(lease: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is no more, or nobody."""
    if "token" not in lease:
        return True
    process = lease.get("process")
    if lease.get("machine") != _machine() or not _machine() or not isinstance(process, list) or len(process) != 2:
        return False
    return bool(_started(process[0]) != process[1])


def _machine() -> str:
    """Names this boot of this machine, and the set of processes that is seen from here; empty where it cannot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(process: int) -> int:
    """When the process began, in ticks since the machine did; 0 where there is no such process."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return 0
    state, *rest = text.rpartition(")")[2].split()
    return 0 if state in "ZX" else int(rest[18])
