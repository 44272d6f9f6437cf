"""The networks that have a name of their own, and what a name or a path stands for. Needs no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

CARD = "network.json"
"""The file that makes a folder a network folder."""
BUNDLED = Path(__file__).parent / "bundled"
"""One network folder for each trained network that comes with the package."""
BUILTIN = "builtin:"
"""How a name begins that means a built-in, whatever lies in the working directory."""
DEFAULT = f"{BUILTIN}nuclei"

VGG16 = {"widths": [64, 128, 256, 512, 512], "head": 4096}
TINY = {"widths": [4, 8, 8, 16, 16], "convolutions": [1, 1, 1, 1, 1], "head": 16}
UNTRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "unet-tiny": ("unet", {"base": 4, "depth": 2}),
    "unet": ("unet", {"base": 16, "depth": 4}),
    "unet-large": ("unet", {"base": 64, "depth": 4}),
    **{f"fcn{v}s-tiny": ("fcn", {"variant": v, **TINY}) for v in (32, 16, 8)},
    **{f"fcn{v}s": ("fcn", {"variant": v}) for v in (32, 16, 8)},
    **{f"fcn{v}s-vgg16": ("fcn", {"variant": v, **VGG16}) for v in (32, 16, 8)},
}
"""Architecture and arguments by name; their weights are random, from a fixed seed."""


def builtin_names() -> list[str]:
    """Every name that `load_network` takes, trained ones first."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CARD}")) + sorted(UNTRAINED)


def resolve(net: str | os.PathLike[str] | None, folder: str = "") -> str:
    """What a network's name or path stands for, so that it means the same anywhere: "builtin:NAME" or an absolute path.

    None is "builtin:nuclei"; a Path is never a name; a path is relative to `folder`, or else the working directory. A
    word for which there is nothing, and a URL, stay as they are. Resolving again changes nothing.
    Raises ValueError for a built-in's name where a network folder of that name lies there, too.
    """
    if net is None:
        return DEFAULT
    given = os.fspath(net)
    path = os.path.abspath(os.path.join(folder, given))
    if isinstance(net, str) and (name := given.removeprefix(BUILTIN)) in builtin_names():
        if name == given and os.path.isfile(os.path.join(path, CARD)):
            raise ValueError(f"{name} is a built-in, and the network folder {path}: give {BUILTIN}{name} or ./{name}")
        return BUILTIN + name
    if "://" in given:
        return given
    is_path = not isinstance(net, str) or os.sep in given or given.endswith(".pt2") or os.path.exists(path)
    return path if is_path else given
