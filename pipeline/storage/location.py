"""Where an output lies: a folder, or names with a common beginning in an object store. All else is the same for both.

Keys are relative to the place, with slashes: "0/c/2/5". A file or object appears whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, Protocol
from urllib.parse import quote, unquote_to_bytes, urlsplit

from pipeline.storage.disk import PARTIAL, OutputError, partials, remove, replace, writing

BLOCK = 1 << 20
Lengths = Callable[[str], int | None]
"""Length in bytes of what is under a key; None where there is nothing."""


def name_of(path: str | os.PathLike[str]) -> str:
    """What a file or folder is called without what tells its format: "scan.v2" for scan.v2.tif and scan.v2.ome.zarr."""
    return PurePath(path).stem.removesuffix(".ome")


class Location(Protocol):
    """What an output needs of the place where it lies. Writing raises OutputError where it is refused."""

    name: str
    """The last part of its path."""

    def __str__(self) -> str:
        """Its path or URL."""

    def read(self, key: str) -> bytes:
        """Raises FileNotFoundError where there is nothing."""

    def write(self, key: str, pieces: Sequence[bytes]) -> None: ...

    def remove(self, key: str) -> None:
        """Removes a file, or a folder with all it holds, if there."""

    def length(self, key: str) -> int | None: ...

    def lengths(self, folder: str) -> Lengths:
        """The same for many keys below a folder, as they are now."""

    def blocks(self, key: str) -> Iterator[bytes]:
        """The bytes in order. Raises FileNotFoundError where there is nothing."""

    def names(self, folder: str = "") -> list[str]:
        """What lies directly in the place, or a folder of it, sorted; half-written files left out."""

    def sweep(self, folders: Sequence[str]) -> None:
        """Removes half-written files directly in the place and anywhere below the folders."""

    def exists(self) -> bool: ...

    def check_parent(self, what: str = "output") -> None:
        """Raises FileNotFoundError or OutputError where the place cannot be made."""

    def make(self) -> None: ...

    def vanish(self) -> None:
        """Removes the place itself, which is empty."""

    def everywhere(self) -> str:
        """A path or URL that means the same in another working directory."""

    def above(self) -> Location:
        """The place that this one lies in."""

    def within(self, name: str) -> Location:
        """Another place, below this one."""

    def zarr_store(self) -> Any:
        """A read-only store of zarr for what lies here, whatever the working directory becomes."""


def is_url(path: str | os.PathLike[str]) -> bool:
    return isinstance(path, str) and "://" in path


def array_path(array: Any) -> str | None:
    """Where a zarr array lies among files; None for any other array."""
    place = getattr(array, "store_path", None)
    root = getattr(getattr(place, "store", None), "root", None)
    return None if root is None or place is None else os.path.join(root, place.path)


def anywhere(array: Any) -> Any:
    """A zarr array such that it is read from another working directory too; any other object as it is.

    A relative store finds nothing there, which zarr takes for chunks that hold the fill value alone.
    Raises FileNotFoundError where nothing lies at the relative path any more.
    """
    import zarr
    from zarr.storage import LocalStore

    path = array_path(array)
    if not isinstance(array, zarr.Array) or path is None or os.path.isabs(path):
        return array
    return zarr.open_array(LocalStore(os.path.abspath(path), read_only=True), mode="r")


def local_path(path: str | os.PathLike[str]) -> str:
    """The path that a file:// URL means; all else as it is."""
    text = os.fspath(path)
    if not text.startswith("file://"):
        return text
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"{text}: a file:// URL has three slashes, as in file:///{parts.netloc}{parts.path}")
    return os.fsdecode(unquote_to_bytes(parts.path))


def written(path: str | os.PathLike[str]) -> str:
    """The path as text that any file can hold, for `local_path`: as a URL where its bytes are no UTF-8."""
    text = os.fspath(path)
    return text if _is_text(text) else f"file://{quote(os.fsencode(text))}"


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def location_of(path: str | os.PathLike[str]) -> Location:
    """The place of a path or URL. Raises ValueError for a URL that is not understood."""
    path = local_path(path)
    if is_url(path):
        from pipeline.storage.bucket import Bucket

        return Bucket(path)
    return Folder(path)


class Inputs:
    """Where the images of a call lie, so that nothing is written in their place. Asked as quickly for thousands."""

    def __init__(self) -> None:
        self._at: dict[Any, str] = {}
        self._within: dict[Any, str] = {}
        self._folders = set[PurePath]()

    def add(self, image: Any) -> None:
        """An image's path or URL, or an array, which counts where it lies among files."""
        path = image if isinstance(image, str) else array_path(image)
        if path is None:
            return
        place = _resolved(path)
        self._at.setdefault(_key(place), path)
        for folder in place.parents:
            if folder in self._folders:  # and so are all above it
                break
            self._folders.add(folder)
            self._within.setdefault(_key(folder), path)

    def at(self, output: Location) -> str | None:
        """The image that is this very place, by whatever path."""
        return self._at.get(_key(_resolved(str(output))))

    def within(self, output: Location) -> str | None:
        """An image that lies in this place."""
        return self._within.get(_key(_resolved(str(output))))


def _resolved(path: str) -> PurePath:
    return PurePath(path if is_url(path) else os.path.realpath(path))


def _key(place: PurePath) -> Any:
    """The same for all paths of a place, also by mounts; of what is not there, and of a URL, its name."""
    try:
        found = os.stat(place)
    except OSError:
        return place
    return found.st_dev, found.st_ino


class Folder:
    """A folder of this machine, or one that all workers see."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.name = os.path.basename(os.path.abspath(path))

    def __str__(self) -> str:
        return str(self.path)

    def read(self, key: str) -> bytes:
        return (self.path / key).read_bytes()

    def write(self, key: str, pieces: Sequence[bytes]) -> None:
        with writing(self.path):
            replace(self.path / key, pieces)

    def remove(self, key: str) -> None:
        with writing(self.path):
            remove(self.path / key)

    def length(self, key: str) -> int | None:
        try:
            return os.stat(f"{self.path}/{key}").st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def lengths(self, folder: str) -> Lengths:
        return self.length

    def blocks(self, key: str) -> Iterator[bytes]:
        with open(self.path / key, "rb") as file:
            while block := file.read(BLOCK):
                yield block

    def names(self, folder: str = "") -> list[str]:
        try:
            return sorted(n for n in os.listdir(self.path / folder) if not n.endswith(PARTIAL))
        except FileNotFoundError:
            return []

    def sweep(self, folders: Sequence[str]) -> None:
        with writing(self.path):
            for partial in [*self.path.glob(f"*{PARTIAL}"), *(p for f in folders for p in partials(self.path / f))]:
                partial.unlink(missing_ok=True)

    def exists(self) -> bool:
        return os.path.lexists(self.path)

    def check_parent(self, what: str = "output") -> None:
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"folder {self.path.parent} of the {what} does not exist: create it first")
        if self.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path} exists and is not an output of pipeline: give another name")

    def make(self) -> None:
        with writing(self.path):
            self.path.mkdir(exist_ok=True)

    def vanish(self) -> None:
        if not self.path.is_symlink():
            with writing(self.path):
                self.path.rmdir()

    def everywhere(self) -> str:
        return os.path.abspath(self.path)

    def above(self) -> Folder:
        return Folder(Path(os.path.abspath(self.path)).parent)

    def within(self, name: str) -> Folder:
        return Folder(self.path / name)

    def zarr_store(self) -> Any:
        from zarr.storage import LocalStore

        return LocalStore(self.everywhere(), read_only=True)
