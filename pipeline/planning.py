"""From an image, a network and options to a plan: what is checked and refused before anything runs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.analysis import WINDOW, Analysis, cache_bytes, with_cache
from pipeline.config import Options
from pipeline.network.loading import Network
from pipeline.network.sizes import fails_at
from pipeline.storage.image import Image
from pipeline.tiling.geometry import ReceptiveField
from pipeline.tiling.grid import Grid, Layout, build_layout
from pipeline.tiling.plan import Plan, check_core, choose_core, too_little

COPIED = (2048, 1024, 512, 256, 128)
"""Sides of a tile of a copy: the largest that memory allows."""
REDUCING = 4
"""Times its own size that a shard of the pyramid takes: itself, its bytes, and strips of the level below."""


def pick_channels(image: Image, wanted: int, options: Options, name: str) -> list[int] | None:
    """Channels of the image to read, in order; None for all. Raises ValueError where they do not fit the network."""
    have = image.shape[0]
    chosen = options.channels
    if chosen is not None:
        beyond = [c for c in chosen if c >= have]
        if beyond:
            raise ValueError(f"channel {beyond[0]} of --channels: the image has channels 0 to {have - 1}")
        if len(chosen) != wanted:
            raise ValueError(f"--channels picks {len(chosen)} channels, network {name} takes {wanted}")
        return list(chosen)
    if have != wanted:
        example = ",".join(str(min(c, have - 1)) for c in range(wanted))
        raise ValueError(
            f"the image has {have} channel{'s' * (have != 1)}, network {name} takes {wanted}; pick and order them "
            f"with --channels, for instance --channels {example}"
        )
    return None


def plan_any(image: Image, analysis: Analysis | None, options: Options) -> Plan:
    """The plan of a prediction, or of a copy where there is no network."""
    return plan_copy(image, options) if analysis is None else plan_image(image, analysis, options)


def plan_image(image: Image, analysis: Analysis, options: Options) -> Plan:
    """The plan for one image. Raises ValueError for all that the user can mend."""
    network, field = analysis.network, analysis.field
    if image.dtype.kind == "c":
        raise ValueError(f"the image holds {image.dtype}: give its magnitude, or its parts as channels")
    channels = pick_channels(image, analysis.channels, options, network.name)
    size = (image.shape[-2], image.shape[-1])
    planes = image.shape[1] if len(image.shape) == 4 else 1
    check_size(analysis, size)
    kind = options.kind or "mask"
    dtype = stored_dtype(kind, analysis.classes, options)
    mode = options.mode or "exact"
    window = None
    if mode == "blend":
        field, window = blend_field(field, options.window or WINDOW)
        check_window(analysis, window)
    shape, axes = output_shape(kind, analysis.classes, field.output_shape(*size), planes, len(image.shape) == 4)
    needs = analysis.needs(image, options, analysis.classes * dtype.itemsize if kind != "mask" else dtype.itemsize)
    if options.tile is not None:
        check_core(options.tile, field.alignment)
        core = options.tile
    else:
        core = choose_core(size, field, needs, options.memory, window)
    grid = Grid.build(size, core, field, planes)
    analysis.check_same(size, *(grid.reads if analysis.program is None else ()))
    if options.tune:
        analysis.tune(grid.largest_read[1], lambda: needs(grid) <= options.memory)
    memory = needs(grid)
    if memory > options.memory:
        raise ValueError(
            f"a tile of {core[0]} x {core[1]} needs {memory / 1e6:.0f} MB a worker, more than the memory of "
            f"{options.memory / 1e6:.0f} MB; give --memory {memory / 1e6 + 1:.0f}MB or a smaller --tile"
        )
    layout = build_layout(axes, dtype.name, shape, (grid.y.step, grid.x.step), whole=options.tile is not None)
    return Plan(
        image=image_part(image, channels),
        network={"identity": network.identity, "name": network.name},
        kind=kind,
        activation=activation(network, analysis.classes, options),
        precision=options.precision or "float32",
        device=analysis.device,
        mode=mode,
        field=field,
        size=size,
        planes=planes,
        core=core,
        layout=layout,
        window=window,
        band=analysis.band(grid.largest_read[1]),
        folded=analysis.folded,
        memory=needs(grid, cache_bytes(options)),
        whole=analysis.whole,
    )


def plan_copy(image: Image, options: Options) -> Plan:
    """The plan that copies an image's pixels unchanged: no network, no halo. Raises ValueError for little memory."""
    size = (image.shape[-2], image.shape[-1])
    field = ReceptiveField((0, 0), (0, 0), (1, 1))
    axes = "czyx" if len(image.shape) == 4 else "cyx"
    for side in COPIED:
        core = (min(side, size[0]), min(side, size[1]))
        layout = build_layout(axes, image.dtype.name, image.shape, core, whole=False)
        need = copy_needs(image, core, layout)
        least = with_cache(need)
        if least <= options.memory:
            break
    else:
        raise too_little(options.memory, least, "a copy of this image")
    return Plan(
        image=image_part(image, None),
        network=None,
        kind="pixels",
        activation="none",
        precision="float32",
        device="cpu",
        mode="exact",
        field=field,
        size=size,
        planes=image.shape[1] if axes == "czyx" else 1,
        core=core,
        layout=layout,
        memory=need + cache_bytes(options),
    )


def copy_needs(image: Image, core: tuple[int, int], layout: Layout) -> int:
    """Bytes that a worker needs for a tile or a shard of the pyramid: all channels, of which one is in the making."""
    tile = (image.shape[0] + 1) * core[0] * core[1]
    shard = math.prod(layout.shards[1]) if len(layout.shards) > 1 else 0
    return max(tile, REDUCING * shard) * image.dtype.itemsize + image.decoding


def image_part(image: Image, channels: list[int] | None) -> dict[str, Any]:
    """What the plan says of the image: never its path or time."""
    return {
        "identity": image.identity(),
        "shape": list(image.shape),
        "dtype": image.dtype.name,
        "level": image.level,
        "channels": channels,
    }


def check_size(analysis: Analysis, size: tuple[int, int]) -> None:
    """Raises ValueError, naming the least size that works, where the network fails on an image of this size."""
    field = analysis.field
    extended = field.extended(*size)
    small = any(n < m for n, m in zip(extended, field.least, strict=True))
    if small or 0 in field.output_shape(*size):
        reason = fails_at(analysis.network.module, analysis.channels, extended) or "nothing is left of it"
        raise ValueError(
            f"an image of {size[0]} x {size[1]} pixels is too small for network {analysis.network.name} ({reason}); "
            f"the least that works is {field.least[0]} x {field.least[1]}"
        )


def check_window(analysis: Analysis, window: tuple[int, int]) -> None:
    """Raises ValueError, naming a side that works, where the network fails on windows of these sides."""
    least = analysis.field.least
    if all(n >= m for n, m in zip(window, least, strict=True)):
        return
    if reason := fails_at(analysis.network.module, analysis.channels, window):
        raise ValueError(
            f"windows of {window[0]} x {window[1]} pixels are too small for network {analysis.network.name} "
            f"({reason}); give --window {max(least)} or more"
        )


def blend_field(field: ReceptiveField, window: int) -> tuple[ReceptiveField, tuple[int, int]]:
    """The field by which windows are cut: whole windows, no halo of its own; rate 1 only."""
    if any(r != 1 for r in field.rate) or field.surplus != (0, 0):
        raise ValueError("--mode blend needs a network whose output has the size of its input")
    return replace(field, before=(0, 0), after=(0, 0), halo=None), window_sides(field, window)


def window_sides(field: ReceptiveField, window: int) -> tuple[int, int]:
    """The sides of a window: the nearest multiples of the alignment."""
    y, x = (max(a, round(window / a) * a) for a in field.alignment)
    return y, x


def output_shape(
    kind: str, classes: int, size: tuple[int, int], planes: int, volume: bool
) -> tuple[tuple[int, ...], str]:
    """Shape of the finest level and its axes, of "czyx"."""
    leading = () if kind == "mask" else (classes,)
    axes = "" if kind == "mask" else "c"
    if volume:
        return (*leading, planes, *size), axes + "zyx"
    return (*leading, *size), axes + "yx"


def stored_dtype(kind: str, classes: int, options: Options) -> np.dtype[Any]:
    """dtype in which the kind is stored; uint8 probability is p * 255, rounded."""
    if options.store is not None and kind != "probability":
        raise ValueError(f"option store is for kind probability, not {kind}")
    if kind == "mask":
        return np.dtype("uint8" if classes <= 256 else "uint16")
    if kind == "probability":
        return np.dtype(options.store or "uint8")
    return np.dtype("float64" if options.precision == "float64" else "float32")


def activation(network: Network, classes: int, options: Options) -> str:
    """softmax over several channels, sigmoid of one, unless the caller or the card says otherwise."""
    return options.activation or network.card.get("activation") or ("softmax" if classes > 1 else "sigmoid")


def check_stored(stored: Plan, image: Image, analysis: Analysis | None, options: Options, output: str) -> None:
    """Raises ValueError, naming the difference, where what is asked for contradicts the plan of a started run."""
    network = None if analysis is None else analysis.network
    asked: list[tuple[str, Any, Any]] = [
        ("image", stored.image["identity"][:19], image.identity()[:19]),
        ("network", (stored.network or {}).get("identity", "none")[:19], network.identity[:19] if network else "none"),
    ]
    if analysis is not None:
        asked.append(("device", stored.device, analysis.device))
    if options.reach is not None:
        asked.append(("reach", stored.field.before[0], options.reach))
    if options.window is not None and stored.mode == "blend":
        asked.append(("window", stored.window, window_sides(stored.field, options.window)))
    for name, have in (
        ("kind", stored.kind),
        ("tile", stored.core),
        ("precision", stored.precision),
        ("mode", stored.mode),
        ("activation", stored.activation),
        ("store", stored.layout.dtype),
        ("level", stored.image["level"]),
        ("channels", tuple(stored.image["channels"] or range(stored.image["shape"][0]))),
    ):
        typed = getattr(options, name)
        asked.append((name, have, have if typed is None else typed))
    if "memory" in options.model_fields_set and stored.memory > options.memory:
        need, given = stored.memory / 1e6, options.memory / 1e6
        raise ValueError(f"{output} was started with tiles that need {need:.0f} MB a worker, more than the memory of "
                         f"{given:.0f} MB; give --memory {need + 1:.0f}MB, another output, or --overwrite")  # fmt: skip
    for name, have, want in asked:
        if have != want:
            raise ValueError(
                f"{output} was started with {name} {have}, this run has {want}; give the same {name}, "
                "another output, or --overwrite"
            )
