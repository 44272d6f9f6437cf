"""What an output says of itself: how it was made, where it lies, what its values mean."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

import numpy as np
import torch

from pipeline.analysis import Analysis
from pipeline.config import Options
from pipeline.stitching.drawing import palette
from pipeline.storage.image import Image
from pipeline.storage.location import written
from pipeline.tiling.plan import Plan


def attributes(plan: Plan, image: Any, opened: Image, analysis: Analysis | None, asked: Options) -> dict[str, Any]:
    """What is needed to reproduce the run."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {
        "plan": plan.to_json(),
        "fingerprint": plan.fingerprint,
        "kind": plan.kind,
        "activation": plan.activation,
        "scale": 1 / 255 if plan.kind == "probability" and plan.layout.dtype == "uint8" else 1,
        "approximate": plan.mode == "blend",
        "rate": [float(r) for r in plan.field.rate],
        "offset": list(plan.field.offset),
        "network": analysis.network.card if analysis else {},
        "image": opened.metadata,
        "source": {
            "image": _source(image),
            "open": {"axes": asked.axes, "level": asked.level or 0},
            "network": written(analysis.source) if analysis and analysis.source else None,
            "load": {"output": asked.key, "scale": asked.scale, "mean": asked.mean, "std": asked.std},
        },
        "versions": versions,
        "command": sys.argv[:50],
    }


def _source(thing: Any) -> str | None:
    """A path made absolute, a URL as it is; None for what lives in the caller's memory alone."""
    if not isinstance(thing, str | os.PathLike):
        return None
    return written(os.path.abspath(thing) if os.path.exists(thing) else thing)


def placing(plan: Plan, image: Image, analysis: Analysis | None) -> dict[str, Any]:
    """What `create` is told: scale and translation of the finest level in the image's unit, classes and channels."""
    leading = [image.metadata["z_step"] or 1.0 if axis == "z" else 1.0 for axis in plan.layout.axes[:-2]]
    scale, translation = leading, [0.0] * len(leading)
    for size, rate, offset in zip(image.pixel_size or (1.0, 1.0), plan.field.rate, plan.field.offset, strict=True):
        scale.append(size / float(rate))
        translation.append(size * offset)
    named = [] if analysis is None else list(zip(class_names(analysis), palette(max(2, analysis.classes)), strict=True))
    return {
        "scale": scale,
        "translation": translation if any(translation) else None,
        "unit": image.unit,
        "label": plan.kind == "mask",
        "classes": [(value, *name) for value, name in enumerate(named)] if plan.kind == "mask" else (),
        "channels": named[-analysis.classes :] if analysis is not None and plan.kind == "probability" else (),
    }


def class_names(analysis: Analysis) -> list[str]:
    """Names of the values of a mask, from the network's card where it has them; of one channel, 1 is its class."""
    count = analysis.classes
    names = [str(name) for name in analysis.network.card.get("class_names") or ()]
    if len(names) == max(2, count):
        return names
    if count > 1:
        return [f"class {k}" for k in range(count)]
    return ["background", names[0] if len(names) == 1 else "foreground"]
