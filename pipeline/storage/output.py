"""An output: a Zarr v3 group, OME-Zarr 0.5, whose shards are each written whole by one worker.

    big.zarr/
      zarr.json         `ome` for every reader, `pipeline` for us: plan, fingerprint, card, versions, layout
      0/zarr.json       an array a level, the finest first
      0/c/2/5           one of its shards, of axes (y, x)
      ledger/           which shards are done (pipeline.stitching.ledger)

A shard of fill alone has no file, so that the ledger and not the files says what is done.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.storage.disk import OutputError
from pipeline.storage.location import Lengths, Location, location_of, name_of
from pipeline.storage.metadata import FILE, array_metadata, names_levels, read_json, to_json
from pipeline.storage.ome import RGB, Description
from pipeline.storage.shards import encode, length_and_checksum
from pipeline.tiling.geometry import Interval
from pipeline.tiling.grid import Layout

if TYPE_CHECKING:
    import zarr

Record = tuple[int, int] | None
"""Length in bytes and crc32 of a shard; None of one that holds only the fill value and so has no file."""
UNKNOWN = (-1, 0)
"""Record that no shard has."""
Regions = Sequence[Interval]
"""An interval for each axis of a level."""

KEY = "pipeline"
"""Of the group's attributes: what is ours, and by what an output of ours is recognised."""
COMPANIONS = ("ledger", "preview")
"""Folders that may lie in an output beside its arrays."""


class Output:
    """An open output. Writing and reading it needs no lock as long as one worker owns each shard."""

    def __init__(self, location: Location, attributes: dict[str, Any]) -> None:
        self.location = location
        self.attributes = attributes
        self.layout = Layout.from_json(attributes["layout"])
        self.dtype = np.dtype(self.layout.dtype)
        self.fill = np.array(attributes["fill"], self.dtype)

    @property
    def path(self) -> str:
        """Path or URL."""
        return str(self.location)

    @cached_property
    def arrays(self) -> tuple[zarr.Array[Any], ...]:
        """The levels, finest first, as read-only zarr arrays."""
        import zarr
        from zarr.storage import StorePath

        store = self.location.zarr_store()
        levels = range(len(self.layout.shapes))
        return tuple(zarr.Array.from_dict(StorePath(store, str(k)), self._metadata(k)) for k in levels)

    def write(self, level: int, region: Regions, data: NDArray[Any]) -> list[Record]:
        """Write a region that is a whole number of shards; the record of each, in row-major order.

        Writing the same pixels again writes the same bytes. A shard appears whole or not at all.
        Raises OutputError where the disk does not take it.
        """
        assert data.dtype == self.dtype and data.shape == tuple(i.size for i in region), "the region's own pixels"
        shard = self.layout.shards[level]
        assert all(
            i.start % s == 0 and (i.stop % s == 0 or i.stop == n)
            for i, s, n in zip(region, shard, self.layout.shapes[level], strict=True)
        ), "a region is a whole number of shards"
        records: list[Record] = []
        for position in self.layout.shards_within(level, tuple(region)):
            starts = [p * s - i.start for p, s, i in zip(position, shard, region, strict=True)]
            part = data[tuple(slice(a, a + s) for a, s in zip(starts, shard, strict=True))]
            records.append(self._write_shard(level, position, part))
        return records

    def _write_shard(self, level: int, position: tuple[int, ...], part: NDArray[Any]) -> Record:
        pieces = encode(part, self.layout.shards[level], self.layout.chunk, self.fill)
        key = self._key(level, position)
        if pieces is None:
            self.location.remove(key)
            return None
        self.location.write(key, pieces)
        return length_and_checksum(pieces)

    def read(self, level: int, region: Regions) -> NDArray[Any]:
        """The pixels of any region; the fill value where no shard is written yet."""
        pixels: NDArray[Any] = np.asarray(self.arrays[level][tuple(i.slice for i in region)])
        return pixels

    def lengths(self) -> Lengths:
        """For `check`: the lengths of all shards as they are now, by a listing where that costs less."""
        levels = [self.location.lengths(str(level)) for level in range(len(self.layout.shapes))]
        return lambda key: levels[int(key.partition("/")[0])](key)

    def check(
        self, level: int, region: Regions, records: Sequence[Record], lengths: Lengths | None = None
    ) -> list[str]:
        """Names of the region's shards that are missing or of another length than their records say. Cheap."""
        length = lengths or self.location.length
        return [key for key, record in self._keys(level, region, records) if length(key) != _length_of(record)]

    def checksum(self, level: int, region: Regions, records: Sequence[Record]) -> list[str]:
        """Names of the region's shards whose bytes are not those that their records say. Reads them all."""
        return [key for key, record in self._keys(level, region, records) if self._record(key) != record]

    def misleading(self) -> list[str]:
        """Names of the files by which other readers find and decode the pixels, and that do not say what they must."""
        group = [] if self._names_levels() else [FILE]
        return [*group, *(f"{level}/{FILE}" for level in self._changed())]

    def restore(self) -> None:
        """Make good what a kill may have left undone: metadata of the arrays, and half-written files to remove.

        Raises OutputError where the group's own metadata lead no reader to the arrays.
        """
        if not self._names_levels():
            raise damaged(self.location)
        for level in self._changed():
            self.location.write(f"{level}/{FILE}", [to_json(self._metadata(level))])
        self.location.sweep([*COMPANIONS, *(str(level) for level in range(len(self.layout.shapes)))])

    def _names_levels(self) -> bool:
        return names_levels(read_json(self.location, FILE), self.layout)

    def _metadata(self, level: int) -> dict[str, Any]:
        return array_metadata(self.layout, self.fill, level)

    def _changed(self) -> list[int]:
        """Levels whose metadata are not there, or not as they were written."""
        levels = range(len(self.layout.shapes))
        return [k for k in levels if read_json(self.location, f"{k}/{FILE}") != self._metadata(k)]

    def _keys(self, level: int, region: Regions, records: Sequence[Record]) -> Iterator[tuple[str, Record]]:
        positions = self.layout.shards_within(level, tuple(region))
        if len(positions) != len(records):  # a line that was cut or edited: none of it is believed
            records = [UNKNOWN] * len(positions)
        for position, record in zip(positions, records, strict=True):
            yield self._key(level, position), None if record is None else (record[0], record[1])

    def _key(self, level: int, position: tuple[int, ...]) -> str:
        return "/".join(map(str, (level, "c", *position)))

    def _record(self, key: str) -> Record:
        try:
            return length_and_checksum(self.location.blocks(key))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None


def create(
    path: str | os.PathLike[str],
    layout: Layout,
    *,
    attributes: dict[str, Any],
    fill: float = 0,
    scale: Sequence[float] | None = None,
    translation: Sequence[float] | None = None,
    unit: str | None = None,
    name: str | None = None,
    label: bool = False,
    channels: Sequence[tuple[str, RGB]] = (),
    window: tuple[float, float] | None = None,
    classes: Sequence[tuple[int, str, RGB]] = (),
    among_others: bool = False,
) -> Output:
    """A new, empty output. `scale` and `translation` hold one number an axis of the layout, in `unit`.

    channels, classes: names and colours for viewers; `window` the values that they show as black and full colour.
    among_others: the folder may hold other files already (what `remove_contents` leaves); they are not touched.

    Raises OutputError where the path is taken or cannot be written, FileNotFoundError where its folder is missing.
    """
    target = location_of(path)
    check_free(target, layout, among_others)
    ours = {**attributes, "layout": layout.to_json(), "fill": fill}
    output = Output(target, ours)
    description = Description(
        name=name_of(target.name) if name is None else name,
        scale=None if scale is None else tuple(scale),
        translation=None if translation is None else tuple(translation),
        unit=unit,
        label=label,
        channels=channels,
        window=window,
        classes=classes,
    )
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"ome": description.attributes(layout), KEY: ours},
    }
    content = to_json(group)
    target.make()
    # The group comes first: from then on the output is ours, and `restore` can add what is missing.
    target.write(FILE, [content])
    for level in range(len(layout.shapes)):
        target.write(f"{level}/{FILE}", [to_json(array_metadata(output.layout, output.fill, level))])
    return output


def open_output(path: str | os.PathLike[str]) -> Output:
    """An output of ours. Raises OutputError for anything else, FileNotFoundError where there is nothing."""
    target, group = _ours(path)
    try:
        return Output(target, group["attributes"][KEY])
    except Exception as error:  # there is no end to what an editor may have left
        raise damaged(target) from error


def _ours(path: str | os.PathLike[str]) -> tuple[Location, Any]:
    """Where an output of ours lies, and its group's metadata, whatever they say. Raises as `open_output` does."""
    target = location_of(path)
    group = read_json(target, FILE)
    if _made_here(group):
        return target, group
    if not target.exists():
        raise FileNotFoundError(f"{target}: there is no such output")
    raise OutputError(f"{target} is not an output of pipeline: it has no {FILE} with a {KEY!r} attribute")


def damaged(output: Location) -> OutputError:
    """The error that says so of the group's metadata."""
    return OutputError(f"{output}: its metadata are damaged ({FILE}): use --overwrite to start anew")


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Whether the path is an output that `create` made. Raises StoreError where an object store does not answer."""
    return _made_here(read_json(location_of(path), FILE))


def _made_here(group: Any) -> bool:
    try:
        ours = group["attributes"][KEY]
    except (KeyError, TypeError):
        return False
    return isinstance(ours, dict) and "layout" in ours and "fill" in ours


def remove_contents(path: str | os.PathLike[str], keep: Sequence[str] = ()) -> list[str]:
    """Remove what we wrote in an output of ours, but for the names in `keep`; the names that are left.

    The group's metadata go last, so that an interrupted removal can be repeated. The folder itself goes where
    nothing is left. Symbolic links are removed, never followed. Raises OutputError for anything that is not ours.
    """
    target, _ = _ours(path)
    try:
        levels = [str(k) for k in range(len(open_output(path).layout.shapes))]
    except OutputError:  # nothing tells how many there are
        levels = [name for name in target.names() if name.isdecimal()]
    for name in (*COMPANIONS, *levels, FILE):
        if name not in keep:
            target.remove(name)
    target.sweep([])
    left = target.names()
    if not left:
        target.vanish()
    return left


def check_free(path: str | os.PathLike[str] | Location, layout: Layout, among_others: bool = False) -> None:
    """Raises what `create` would raise for this path, and touches nothing."""
    target = location_of(path) if isinstance(path, str | os.PathLike) else path
    target.check_parent()
    if not target.exists():
        return
    names = set(target.names()) - set(COMPANIONS)
    taken = {FILE, ".zgroup", ".zarray", *(str(k) for k in range(len(layout.shapes)))}
    if names & taken or (names and not among_others):
        some = ", ".join(sorted(names)[:3])
        raise OutputError(f"{target} exists already and holds {some}: give another name")


def _length_of(record: Record) -> int | None:
    return None if record is None else record[0]
