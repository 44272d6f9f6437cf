"""What a command prints never ends it: not where its log is full, nor where nobody reads it, nor where it is closed."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import Any, TextIO


class Lossy(io.FileIO):
    """Drops what cannot be written; stderr is told once where stdout cannot."""

    told = False

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or len(data)  # nothing where it would have to wait
        except BrokenPipeError:  # who does not read on has seen enough
            pass
        except OSError as error:
            if self.fileno() == 1 and not self.told:
                self.told = True
                print(f"stdout takes no more: {error.strerror}", file=sys.stderr)
        return len(data)


def outlive_the_log() -> None:
    """From now on printing raises nothing, and no file takes the number of a stdin, stdout or stderr that is closed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
    if sys.stdout is sys.__stdout__:
        sys.stdout = _lossy(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _lossy(sys.stderr, 2)


def _lossy(stream: TextIO | None, number: int) -> TextIO:
    """The same stream to all who print, but for what it raised."""
    raw = io.BufferedWriter(Lossy(number, "w", closefd=False))
    if not isinstance(stream, io.TextIOWrapper):
        return io.TextIOWrapper(raw, "utf-8", "printable")
    errors = "printable" if stream.errors in ("strict", "surrogateescape") else stream.errors
    at_once = stream.line_buffering or stream.write_through
    return io.TextIOWrapper(raw, stream.encoding, errors, line_buffering=at_once)


def _printable(error: UnicodeError) -> Any:
    """The bytes of a file's name as they are; of what else the encoding cannot hold, its number."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error("printable", _printable)
