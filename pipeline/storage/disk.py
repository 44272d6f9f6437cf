"""Files that appear whole or not at all, and what the disk refuses as an error that a user can mend."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
"""Ending of a file that is being written; after a kill it may stay behind."""


class OutputError(ValueError):
    """An output that cannot be made, written or opened: the disk is full, the folder is read-only or not ours."""


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns an error of the file system into an OutputError that names the place and the reason."""
    try:
        yield
    except OSError as error:
        place = error.filename2 or target  # what is in the way of a file that is put in its place
        raise OutputError(f"cannot write {place}: {error.strerror or error}") from error


def replace(path: Path, pieces: Sequence[bytes]) -> None:
    """Put a file in place at once, so that a kill leaves the old one or the new one; makes its folders."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        try:
            _write(partial, pieces)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(partial, pieces)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove(path: Path) -> None:
    """Remove a file, a link (never what it points to) or a folder with all it holds, if there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def partials(folder: Path) -> Iterator[Path]:
    """Half-written files anywhere in the folder."""
    for directory, _, names in os.walk(folder):
        yield from (Path(directory, name) for name in names if name.endswith(PARTIAL))


def _write(path: Path, pieces: Sequence[bytes]) -> None:
    with open(path, "xb") as file:
        file.writelines(pieces)
