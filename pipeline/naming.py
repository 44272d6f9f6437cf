"""Which images a call is about, and what their outputs are called."""

from __future__ import annotations

import glob
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.storage.location import Location, is_url, local_path, location_of, name_of
from pipeline.storage.output import is_ours
from pipeline.storage.remote import matching
from pipeline.storage.zarrs import is_zarr


def asked_for(images: str | Sequence[str]) -> tuple[list[str], bool]:
    """The images that a path, a pattern or a list of them stands for; whether their outputs go into a folder.

    They do for a pattern and a list, also where these come to one image. Raises ValueError for a folder of images.
    """
    if not isinstance(images, str):
        return expand(images), True
    _check_folder(local_path(images))
    found = expand([images])
    return found, found != [local_path(images)]


def expand(patterns: Sequence[str]) -> list[str]:
    """Paths that shell-like patterns stand for, each once; what is a file already is taken at its word."""
    found: list[str] = []
    for pattern in patterns:
        pattern = local_path(pattern)
        listed = matching if is_url(pattern) else glob.glob
        matches = [] if os.path.exists(pattern) or not glob.has_magic(pattern) else sorted(listed(pattern))
        found += matches or [pattern]
    return list(dict.fromkeys(found))


def _check_folder(path: str) -> None:
    if os.path.isdir(path) and not is_zarr(Path(path)):
        inside = os.path.join(path, "*")
        raise ValueError(f"{path} is a folder, and no Zarr array or group: for the images in it give '{inside}'")


def outputs_asked_for(places: Sequence[str]) -> list[str]:
    """The outputs that paths and patterns stand for, each once; a folder that is none for those directly in it."""
    found: list[str] = []
    for place in expand(places):
        folder, inside = location_of(place), list[str]()
        if not is_ours(place) and (is_url(place) or os.path.isdir(place)):
            inside = [path for path in (str(folder.within(name)) for name in folder.names()) if is_ours(path)]
        found += inside or [place]
    return list(dict.fromkeys(found))


def default_output(image: str) -> str:
    """big.zarr in the working directory; big.result.zarr where the image is big.zarr."""
    name = name_of(os.path.abspath(image))
    return f"{name}.result.zarr" if Path(image).name.endswith(".zarr") else f"{name}.zarr"


def outputs_within(folder: Location, images: Sequence[Any]) -> list[str]:
    """Where the output of each image goes: into the folder, under a name of its own.

    That is the image's; with as many folders before it as tell it from others of that name: case1-image.zarr. So it
    does not depend on the images' order. An image that is given twice, and an array, has a number.
    """
    places = [_place(image, number) for number, image in enumerate(images)]
    named = _told_apart(set(places))
    return [str(folder.within(f"{name}.zarr")) for name in _numbered([named[place] for place in places])]


def _place(image: Any, number: int) -> tuple[str, ...]:
    """The folders above an image, and what it is called itself, with its format."""
    if not isinstance(image, str | os.PathLike):
        return (f"image-{number}",)
    path = local_path(image)
    parts = (path if is_url(path) else os.path.abspath(path)).split("/")
    return tuple(part for part in parts if part)


def _told_apart(places: set[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """A name for each place: without its format and folders, where these are not needed to tell it from another."""
    stems = {place: (*place[:-1], name_of(place[-1])) for place in sorted(places)}
    often = Counter(stems.values())
    depths = dict.fromkeys(often, 1)
    while deeper := _equal(depths):
        depths |= {stem: depths[stem] + 1 for stem in deeper}
    names = [
        "-".join((*stem[-depths[stem] : -1], stem[-1] if often[stem] == 1 else place[-1]))
        for place, stem in stems.items()
    ]
    return dict(zip(stems, _numbered(names), strict=True))


def _equal(depths: dict[tuple[str, ...], int]) -> list[tuple[str, ...]]:
    """Of what is named by so many of its last parts, that which needs one more; never what has a name of its own."""
    shared, groups = Counter(stem[-1] for stem in depths), defaultdict(list)
    for stem, depth in depths.items():
        groups["-".join(stem[-depth:])].append(stem)
    alike = [stem for group in groups.values() if len(group) > 1 for stem in group]
    return [stem for stem in alike if shared[stem[-1]] > 1 and depths[stem] < len(stem)]


def _numbered(names: Sequence[str]) -> list[str]:
    """The names, with a number where one was there before."""
    taken, found = set(names), dict[str, None]()
    for name in names:
        if name in found:
            name = next(other for k in count(1) if (other := f"{name}-{k}") not in taken)
            taken.add(name)
        found[name] = None
    return list(found)
