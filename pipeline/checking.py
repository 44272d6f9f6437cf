"""Proof of an output: windows recomputed from larger reads, pyramids rebuilt, checksums compared."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from pipeline.network.loading import Network
from pipeline.stitching import pyramid
from pipeline.stitching.ledger import Ledger
from pipeline.storage.image import Image
from pipeline.storage.output import Output
from pipeline.tiling.geometry import Interval, Region
from pipeline.tiling.grid import Tile
from pipeline.tiling.plan import Plan
from pipeline.worker import DTYPES, TOLERANCE, Model, encode

SIDE = 48
"""Side of a window, in output pixels."""
RANDOM = 6
JUNCTIONS = 8


@dataclass
class Report:
    """What verify found; `places` is empty where the output is sound."""

    windows: int = 0
    shards: int = 0
    max_difference: float = 0.0
    """Largest difference of stored values, in the stored unit."""
    tolerance: float = 0.0
    where: str = ""
    places: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.places


def check_output(output: Output, plan: Plan, ledger: Ledger, image: Image, network: Network | None) -> Report:
    """Compare an output with what its plan says it holds. To be called with the one thread that workers have."""
    report = Report()
    report.places += [f"{name}: not the metadata that were written" for name in output.misleading()]
    if (ledger.fingerprint, ledger.units) == (plan.fingerprint, plan.units):
        _check_shards(report, output, plan, ledger)
    else:
        report.places.append("ledger: it is that of another run")
    module = None if network is None else network.to("cpu", DTYPES[plan.precision])
    model = Model(image, plan, module)
    for name, core in windows(plan):
        _check_window(report, output, plan, model, name, core)
    for level in range(1, len(plan.layout.shapes)):
        _check_level(report, output, plan, level)
    return report


def _check_shards(report: Report, output: Output, plan: Plan, ledger: Ledger) -> None:
    if ledger.count < plan.units:
        report.places.append(f"{plan.units - ledger.count} of {plan.units} units are not done")
    for unit, records in ledger:
        level, region = plan.region_of(unit)
        report.shards += len(records)
        report.places += [f"shard {name}: its bytes are not those in the ledger"
                          for name in output.checksum(level, region, records)]  # fmt: skip


def windows(plan: Plan) -> list[tuple[str, Region]]:
    """Names and places: corners, borders, tile junctions, shard boundaries of both axes, random ones."""
    height, width = plan.grid.y.output, plan.grid.x.output
    steps = plan.grid.y.step, plan.grid.x.step
    shards = plan.layout.shards[0][-2:]
    draw = random.Random(plan.fingerprint)
    points: list[tuple[str, int, int]] = []
    for y in (0, height // 2, height):
        for x in (0, width // 2, width):
            points.append(("corner or border" if {y, x} & {0, height, width} else "middle", y, x))
    for name, (sy, sx) in (("tile junction", steps), ("shard boundary", shards)):
        ys, xs = list(range(sy, height, sy)), list(range(sx, width, sx))
        for _ in range(JUNCTIONS):
            if ys:
                points.append((name, draw.choice(ys), draw.choice(xs) if xs else draw.randrange(width)))
            if xs:
                points.append((name, draw.choice(ys) if ys else draw.randrange(height), draw.choice(xs)))
    points += [("random place", draw.randrange(height), draw.randrange(width)) for _ in range(RANDOM)]
    result = []
    for name, y, x in points:
        rows, columns = (
            Interval(max(0, min(at - SIDE // 2, n - SIDE)), min(n, max(0, min(at - SIDE // 2, n - SIDE)) + SIDE))
            for at, n in ((y, height), (x, width))
        )
        result.append((name, Region(rows, columns)))
    return result


def larger(plan: Plan, core: Region) -> tuple[Region, Region]:
    """(read, crop) for a window with more than twice the halo of a tile around it."""
    grid, reads, crops = plan.grid, [], []
    for axis, rows in ((grid.y, core.y), (grid.x, core.x)):
        more = int((axis.before + axis.after + axis.alignment) * axis.rate) + 1
        read = axis.read_for(rows)
        wide = axis.read_for(Interval(max(0, rows.start - more), min(axis.output, rows.stop + more)))
        read = Interval(min(read.start, wide.start), max(read.stop, wide.stop))
        reads.append(read)
        crops.append(axis.crop(rows, read))
    return Region(*reads), Region(*crops)


def _check_window(report: Report, output: Output, plan: Plan, model: Model, name: str, core: Region) -> None:
    plane = random.Random(f"{core}").randrange(plan.planes)
    read, crop = larger(plan, core)
    tile = Tile(plane, core, read, crop)
    where = f"{name} at row {core.y.start}, column {core.x.start}, plane {plane}"
    report.windows += 1
    stored = _read(report, where, lambda: output.read(0, plan.core_region(tile)))
    if stored is None:
        return
    if model.module is None:
        expected, tolerance, unsure = model.tile(tile)[0], 0.0, None
    else:
        logits = model.blended(tile) if plan.mode == "blend" else model.logits(model.reading(read, plane).all())
        logits = logits if plan.mode == "blend" else logits[:, *crop.slices]
        finite = logits[logits.isfinite()].abs()
        relative = TOLERANCE[plan.precision] * max(1.0, float(finite.max()) if finite.numel() else 0.0)
        expected = encode(logits, plan).reshape(stored.shape)
        tolerance = 1.0 if stored.dtype == np.uint8 and plan.kind == "probability" else relative
        unsure = _unsure(logits, 2 * relative, plan.threshold).reshape(stored.shape) if plan.kind == "mask" else None
        tolerance = 0.0 if plan.kind == "mask" else tolerance
    difference = _difference(stored, expected)
    if unsure is not None:
        difference[unsure] = 0
    _note(report, difference, tolerance, where)


def _read(report: Report, where: str, read: Callable[[], np.ndarray]) -> np.ndarray | None:
    """Stored values, or what follows from them; None, which is noted, where the bytes do not decode."""
    try:
        return read()
    except Exception as error:  # each codec has exceptions of its own
        report.places.append(f"{where}: cannot be read: {' '.join(str(error).split()) or type(error).__name__}")
        return None


def _unsure(logits: torch.Tensor, margin: float, threshold: float) -> np.ndarray:
    """(y, x) where the two highest logits, or one and the threshold, are so close that rounding may decide."""
    if logits.shape[0] == 1:
        return ((logits[0] - threshold).abs() <= margin).cpu().numpy()
    best = logits.topk(2, dim=0).values
    return (best[0] - best[1] <= margin).cpu().numpy()


def _check_level(report: Report, output: Output, plan: Plan, level: int) -> None:
    shape = plan.layout.shapes[level]
    draw = random.Random(level)
    region = []
    for axis, n in zip(plan.layout.axes, shape, strict=True):
        start = draw.randrange(max(1, n - (SIDE if axis in "yx" else 1) + 1))
        region.append(Interval(start, min(n, start + (SIDE if axis in "yx" else 1))))
    where = f"level {level} at {', '.join(str(i.start) for i in region)}"
    report.windows += 1
    stored = _read(report, where, lambda: output.read(level, region))
    if stored is None:
        return
    below, rule = plan.layout.shapes[level - 1], plan.reduction
    expected = _read(report, f"{where}, from the level below", lambda: pyramid.build_shard(
        lambda part: output.read(level - 1, part), tuple(region), below, how=rule))  # fmt: skip
    if expected is None:
        return
    _note(report, _difference(stored, expected), 0.0, where)


def _difference(stored: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Of each value; none where both are NaN or the same infinity, infinite where one alone is."""
    wide = np.result_type(stored, np.float64)
    a, b = stored.astype(wide), expected.astype(wide)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):  # inf - inf
        difference = np.abs(a - b)
    return np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference))


def _note(report: Report, difference: np.ndarray, tolerance: float, where: str) -> None:
    largest = float(np.max(difference, initial=0.0))
    if largest >= report.max_difference:
        report.max_difference, report.where = largest, where
    report.tolerance = max(report.tolerance, tolerance)
    if largest > tolerance:
        report.places.append(f"{where}: off by {largest:g}, more than {tolerance:g}")
