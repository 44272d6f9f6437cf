"""What is done: an append-only file that survives a kill at any moment.

    {"ledger": 2, "fingerprint": "3f0c...", "units": 64}
    17 52310:9a3b01fe -            unit 17 is done: its shards' length and crc32, "-" for one of fill alone
    17 !                           unit 17 is to be done again

A line counts once its newline is there. The last line of a unit holds; a line that makes no sense is passed over,
as the worst that follows is that its unit is computed again.
"""

from __future__ import annotations

import fcntl
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Record = tuple[int, int] | None
"""Length and crc32 of a shard; None where it holds only the fill value."""

FORMAT = 2
FILE, LOCK = "ledger.txt", "lock"
AGAIN, FILL = b"!", b"-"
BLOCK = 1 << 20


class LedgerError(ValueError):
    """A ledger that belongs to another run, that another run is writing, or that the disk does not take."""


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LedgerError(f"cannot write {path}: {error.strerror or error}") from error


class Lock:
    """Held by the one run that may write an output; the kernel releases it when the process dies."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Takes the lock, making the folder, and the output's that it lies in, if need be.

        Raises LedgerError where another run holds it or the folder cannot be written.
        """
        self._file = -1
        path = Path(folder)
        with _writing(path):
            path.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with _writing(path):
                self._take(path)
        except BaseException:
            self.release()
            raise

    def _take(self, path: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._file, 32).decode(errors="replace").strip() or "unknown"
            raise LedgerError(
                f"{path.parent} is being written by another run (process {holder}): wait for it or end it"
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        self.release()


class Ledger:
    """Done units of one run, with the record of each shard; 8 bytes of memory a unit."""

    def __init__(self, path: Path, fingerprint: str, units: int, *, writable: bool, lock: Lock | None) -> None:
        self.path, self.fingerprint, self.units = path, fingerprint, units
        self._lock = lock
        self._file = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        self._lines = array("q", [-1]) * units
        """Where the line of each unit starts in the file, -1 where it is not done."""
        self._count = 0
        self._end = 0
        self._scan()

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], fingerprint: str, units: int, *, lock: Lock | None = None, name: str = ""
    ) -> Self:
        """The ledger in the folder to go on with, or a new one; locked until it is closed.

        lock: one that the caller holds already; it is the ledger's from here on, also where this raises.
        name: of the output in messages, where that is not the folder that holds this one.
        Raises LedgerError where another run holds the lock, or where the ledger is of another fingerprint.
        """
        held = Lock(folder) if lock is None else lock
        path = Path(folder) / FILE
        try:
            header = _read_header(path, name)
            if header is None:
                with _writing(path):
                    _write_header(path, fingerprint, units)
            elif (header["fingerprint"], header["units"]) != (fingerprint, units):
                raise LedgerError(
                    f"{name or path.parent.parent} was begun by a run that differs (fingerprint "
                    f"{header['fingerprint'][:12]}, now {fingerprint[:12]}): use --overwrite to start anew"
                )
            ledger = cls(path, fingerprint, units, writable=True, lock=held)
            os.ftruncate(ledger._file, ledger._end)
        except BaseException:
            held.release()
            raise
        return ledger

    @classmethod
    def read(cls, folder: str | os.PathLike[str], *, name: str = "") -> Self:
        """The ledger in the folder to look at: takes no lock and changes nothing.

        Raises LedgerError where there is none.
        """
        path = Path(folder) / FILE
        header = _read_header(path, name)
        if header is None:
            raise LedgerError(
                f"{name or path.parent.parent} has no ledger that can be read: the command that made it, given again, "
                "makes it good"
            )
        return cls(path, header["fingerprint"], header["units"], writable=False, lock=None)

    @property
    def count(self) -> int:
        """Number of units that are done."""
        return self._count

    def done(self, unit: int) -> bool:
        return self._lines[unit] >= 0

    def add(self, unit: int, records: Sequence[Record]) -> None:
        """The unit is done and its shards are on disk. After this returns, a kill does not undo it.

        Raises LedgerError where the disk is full; the ledger stays as it was.
        """
        self._append([(unit, b" ".join([b"%d" % unit, *map(_format, records)]))], done=True)

    def forget(self, units: Iterable[int]) -> None:
        """The units are to be done again."""
        self._append([(unit, b"%d %s" % (unit, AGAIN)) for unit in units], done=False)

    def records(self, unit: int) -> list[Record]:
        """The record of each shard of a unit that is done, in the order in which `add` got them."""
        assert self.done(unit), "only what is done has records"
        line = b""
        at = self._lines[unit]
        while b"\n" not in line:
            line += os.pread(self._file, 4096, at + len(line))
        parsed = _parse(line[: line.index(b"\n")], self.units)
        assert parsed is not None and parsed[1] is not None, "a line that was read or written before"
        return parsed[1]

    def __iter__(self) -> Iterator[tuple[int, list[Record]]]:
        """(unit, records) of every unit that is done, in the order in which they were."""
        for at, line in _lines(self._file, self._end):
            parsed = _parse(line, self.units)
            if parsed is not None and parsed[1] is not None and self._lines[parsed[0]] == at:
                yield parsed[0], parsed[1]

    def close(self) -> None:
        """Close the file and release the lock."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, entries: list[tuple[int, bytes]], done: bool) -> None:
        """Write lines whole: what a full disk took of them is taken back, and the ledger stays as it was."""
        content = b"".join(line + b"\n" for _, line in entries)
        try:
            written = 0
            while written < len(content):
                written += os.pwrite(self._file, content[written:], self._end + written)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise LedgerError(f"cannot write {self.path}: {error.strerror or error}") from error
        for unit, line in entries:
            self._mark(unit, self._end if done else -1)
            self._end += len(line) + 1

    def _mark(self, unit: int, at: int) -> None:
        self._count += (at >= 0) - (self._lines[unit] >= 0)
        self._lines[unit] = at

    def _scan(self) -> None:
        """Learn what is done; a last line without newline is torn and does not count."""
        size = os.fstat(self._file).st_size
        for at, line in _lines(self._file, size):
            self._end = at + len(line) + 1
            parsed = _parse(line, self.units)
            if parsed is not None:
                unit, records = parsed
                self._mark(unit, -1 if records is None else at)


def _read_header(path: Path, name: str) -> dict[str, Any] | None:
    """The ledger's first line; None where there is none or only a torn one. Raises LedgerError for another file."""
    try:
        with open(path, "rb") as file:
            line = file.readline(BLOCK)
    except FileNotFoundError:
        return None
    if not line.endswith(b"\n"):
        return None
    try:
        header: dict[str, Any] = json.loads(line)
        if header["ledger"] == FORMAT and isinstance(header["fingerprint"], str) and isinstance(header["units"], int):
            return header
    except (ValueError, KeyError, TypeError):
        pass
    what = f"{name}/ledger" if name else path
    raise LedgerError(f"{what} is not a ledger of this version: use --overwrite to start anew")


def _write_header(path: Path, fingerprint: str, units: int) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(json.dumps({"ledger": FORMAT, "fingerprint": fingerprint, "units": units}).encode() + b"\n")


def _lines(file: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """(where it starts, the line without its newline) of every whole line up to `stop`."""
    at, rest, read = 0, b"", 0
    while read < stop and (block := os.pread(file, min(BLOCK, stop - read), read)):
        read += len(block)
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            yield at, line
            at += len(line) + 1


def _format(record: Record) -> bytes:
    return FILL if record is None else b"%d:%08x" % record


def _parse(line: bytes, units: int) -> tuple[int, list[Record] | None] | None:
    """(unit, its records, None where it is to be done again); None for a line that makes no sense."""
    first, *rest = line.split(b" ")
    try:
        unit = int(first)
        if not 0 <= unit < units or not rest:
            return None
        if rest == [AGAIN]:
            return unit, None
        return unit, [_parse_record(word) for word in rest]
    except ValueError:
        return None


def _parse_record(word: bytes) -> Record:
    if word == FILL:
        return None
    length, crc = word.split(b":")
    if len(crc) != 8:
        raise ValueError("a word that was cut")
    return int(length), int(crc, 16)
