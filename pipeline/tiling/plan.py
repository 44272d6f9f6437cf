"""The plan: everything that decides an output's bytes, and nothing else; and how its tile is chosen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from dataclasses import field as attribute
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

from pipeline.tiling.geometry import Interval, ReceptiveField
from pipeline.tiling.grid import SHARD, Grid, Layout, Tile
from pipeline.tiling.windows import amplification

FORMAT = 3
HALO_COST = 1.10
"""Largest read amplification of the tiles that the planner chooses, where memory allows, over that of a single tile."""
FINE = 256
"""Output pixels of a core's side, at least: of a network whose output is coarse, shards would be tiny files."""
SIDES = (512, 768, 1024, 1280, 1536, 1792, 2048, 3072, 4096, 6144, 8192)
SMALL_SIDES = (384, 256, 192, 128, 96, 64, 48, 32, 24, 16, 8, 4, 2, 1)


class VersionError(ValueError):
    """A plan that another version of pipeline wrote."""


@dataclass(frozen=True)
class Plan:
    """How one image becomes one output. Two plans with the same fingerprint give the same bytes."""

    image: dict[str, Any]
    """identity, shape and dtype of the image, and the level and channels that are read."""
    network: dict[str, Any] | None
    """identity and name of the network; None where pixels are only copied."""
    kind: str
    """logits, probability, mask, or pixels for a copy of the image."""
    activation: str
    precision: str
    device: str
    mode: str
    """exact, or blend: overlapping windows for a network that is not local."""
    field: ReceptiveField
    size: tuple[int, int]
    planes: int
    core: tuple[int, int]
    layout: Layout
    window: tuple[int, int] | None = None
    """Side lengths of the windows that are blended, in pixels."""
    band: int = 0
    """Rows of a read that go through the network at a time; 0 where all of them do at once."""
    folded: bool = False
    """Whether bands run with batch norm folded and `channels_last`, which rounds otherwise than the network itself."""
    memory: int = attribute(default=0, compare=False)
    """Bytes that a worker needs above the loaded interpreter and libraries. A forecast, not part of the plan."""
    whole: str = attribute(default="", compare=False)
    """Why reads go through the network whole, where they do."""

    @cached_property
    def grid(self) -> Grid:
        return Grid.build(self.size, self.core, self.field, self.planes)

    @property
    def tiles(self) -> int:
        return len(self.grid)

    @property
    def read_amplification(self) -> float:
        """Pixels that go through the network over pixels of the image: what the halo costs, or windows that overlap."""
        return amplification_of(self.grid, self.window)

    @property
    def reduction(self) -> Literal["mean", "mode"]:
        """How a pixel of the pyramid stands for the four below it."""
        return "mode" if self.kind == "mask" or self.layout.dtype == "bool" else "mean"

    @property
    def threshold(self) -> float:
        """Above which the network's only channel is foreground: of a logit, or of a probability in which it ends."""
        return 0.5 if self.activation == "none" else 0.0

    @property
    def output_bytes(self) -> int:
        """Size of all levels before compression."""
        item = {"bool": 1, "float16": 2}.get(self.layout.dtype) or int(
            "".join(filter(str.isdigit, self.layout.dtype))
        ) // 8
        total = 0
        for shape in self.layout.shapes:
            pixels = item
            for n in shape:
                pixels *= n
            total += pixels
        return total

    @cached_property
    def stages(self) -> tuple[range, ...]:
        """Units in the order of their dependence: the tiles, then the shards of each pyramid level."""
        stages = [range(self.tiles)]
        for level in range(1, len(self.layout.shapes)):
            stages.append(range(stages[-1].stop, stages[-1].stop + self.layout.pyramid_units(level)))
        return tuple(stages)

    @property
    def units(self) -> int:
        return self.stages[-1].stop

    def level_of(self, unit: int) -> int:
        """The level that the unit writes, 0 for a tile."""
        return next(level for level, stage in enumerate(self.stages) if unit < stage.stop)

    def region_of(self, unit: int) -> tuple[int, tuple[Interval, ...]]:
        """(level, region of that level) that the unit writes: a whole number of shards."""
        level = self.level_of(unit)
        if level:
            return level, self.layout.pyramid_shard(level, unit - self.stages[level].start)
        return 0, self.core_region(self.grid.tile(unit))

    def core_region(self, tile: Tile) -> tuple[Interval, ...]:
        """The tile's core with an interval for each axis of the output."""
        by_axis = {"z": Interval(tile.plane, tile.plane + 1), "y": tile.core.y, "x": tile.core.x}
        if "c" in self.layout.axes:
            by_axis["c"] = Interval(0, self.layout.shapes[0][self.layout.axes.index("c")])
        return tuple(by_axis[axis] for axis in self.layout.axes)

    @property
    def fingerprint(self) -> str:
        """sha256 of the plan; decides whether a run may resume."""
        data = self.to_json()
        del data["memory"], data["whole"]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        f = self.field
        data["field"] = {
            "before": list(f.before),
            "after": list(f.after),
            "alignment": list(f.alignment),
            "rate": [str(r) for r in f.rate],
            "surplus": list(f.surplus),
            "least": list(f.least),
            "offset": list(f.offset),
            "halo": [list(f.halo_of(axis)) for axis in (0, 1)],
            "nonlocal_operations": list(f.nonlocal_operations),
        }
        data["layout"] = self.layout.to_json()
        for name in ("size", "core", "window"):
            data[name] = None if data[name] is None else list(data[name])
        return {"format": FORMAT, **data}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """The plan that `to_json` wrote. Raises VersionError for another format."""
        data = dict(data)
        if data.pop("format", None) != FORMAT:
            raise VersionError("the plan was written by another version of pipeline; use --overwrite to start anew")
        f = dict(data["field"])
        f["rate"] = tuple(Fraction(r) for r in f["rate"])
        f["halo"] = (tuple(f["halo"][0]), tuple(f["halo"][1]))
        data["field"] = ReceptiveField(**{k: tuple(v) for k, v in f.items()})
        data["layout"] = Layout.from_json(data["layout"])
        for name in ("size", "core", "window"):
            data[name] = None if data[name] is None else tuple(data[name])
        return cls(**data)


def amplification_of(grid: Grid, window: tuple[int, int] | None) -> float:
    """Read amplification of the grid's tiles, or that of the windows that are blended."""
    return grid.read_amplification if window is None else amplification(grid, window)


def choose_core(
    size: tuple[int, int],
    receptive_field: ReceptiveField,
    needs: Callable[[Grid], int],
    memory: int,
    window: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """The smallest core within the halo-cost limit, or the largest that memory allows where that is smaller.

    `needs` says how many bytes a worker needs for the tiles of a grid. Raises ValueError, naming the least memory
    that would do, where not even the smallest core fits. `window`: sides of the windows that are blended, whose overlap
    costs the same in one tile of the whole image.
    """
    whole = Grid.build(size, receptive_field.extended(*size), receptive_field)
    limit = HALO_COST * (1 if window is None else amplification(whole, window))
    best: tuple[int, int] | None = None
    for side in SIDES:
        grid = _grid(size, side, receptive_field)
        if needs(grid) > memory:
            break
        best = grid.y.core, grid.x.core
        fine = min(grid.y.core * grid.y.rate, grid.x.core * grid.x.rate) >= FINE
        if amplification_of(grid, window) <= limit and (fine or max(grid.y.rate, grid.x.rate) >= 1):
            break
    if best is not None:
        return best
    least = needs(_grid(size, 1, receptive_field))
    for side in SMALL_SIDES:
        grid = _grid(size, side, receptive_field)
        need = needs(grid)
        if need <= memory:
            return grid.y.core, grid.x.core
        least = min(least, need)
    raise too_little(memory, least, "this network and image")


def too_little(memory: int, least: int, what: str) -> ValueError:
    """The error that names the least memory, in bytes, that would do."""
    return ValueError(
        f"a memory of {memory / 1e6:g} MB is too little for {what}: the smallest tile "
        f"needs {least / 1e6 + 1:.0f} MB; give --memory {least / 1e6 + 1:.0f}MB or more"
    )


def _grid(size: tuple[int, int], side: int, receptive_field: ReceptiveField) -> Grid:
    """The grid of square cores of at least `side`, no larger than the extended image where that is one shard."""
    extended = receptive_field.extended(*size)
    core = [-(-side // a) * a for a in receptive_field.alignment]
    rows, columns = (
        min(c, n) if n * rate <= SHARD else c for c, n, rate in zip(core, extended, receptive_field.rate, strict=True)
    )
    return Grid.build(size, (rows, columns), receptive_field)


def check_core(core: tuple[int, int], alignment: tuple[int, int]) -> None:
    """Raises ValueError unless the core is a positive multiple of the alignment on both axes."""
    for name, n, a in zip(("rows", "columns"), core, alignment, strict=True):
        if n < 1 or n % a:
            nearest = max(a, round(n / a) * a)
            raise ValueError(f"tile of {n} {name} is no multiple of the network's alignment {a}; {nearest} would do")
