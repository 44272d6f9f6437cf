"""Pairs of images and labels by pattern, all checked before training: what is wrong is one line that names it."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import TypeVar

import numpy as np

from pipeline.storage.image import Image, open_image
from pipeline.storage.location import is_url, local_path, name_of
from pipeline.storage.remote import matching
from pipeline.tiling.geometry import ReceptiveField, Region
from pipeline.training.pairs import Labels, Pair, Split
from pipeline.training.sampling import Cores
from pipeline.training.splitting import hold_out

NAME = "{name}"
THREADS = 4
"""Files that are checked at a time; decoding is what takes long, and frees the interpreter."""
SMALL = 64 << 20
"""Bytes up to which an image is decoded to its end, to find one that was cut short."""

T = TypeVar("T")
U = TypeVar("U")


def find_pairs(
    train: Sequence[tuple[str, str]],
    *,
    field: ReceptiveField,
    channels: int,
    classes: int,
    validation: Sequence[tuple[str, str]] = (),
    test: Sequence[tuple[str, str]] = (),
    shares: Mapping[str, tuple[float, str | None]] | None = None,
    ignore: int | None = None,
    binary: bool = False,
    seed: int = 0,
    stained: bool = False,
    cores: Callable[[Pair], Cores] | None = None,
) -> Split:
    """The pairs that the patterns (image, label) stand for, in the order of their names, and those held out of them.

    Held out are the pairs of `validation` and of `test`, or of each of these as `shares` say a fraction of the pairs
    ("image") or of each pair's rows or columns ("region"; by default where there is one pair only), drawn by the seed
    alone. All labels are read, and counted by the cores of each pair that is trained on, where `cores` says what these
    are. `stained`: images to train on are to be of 8 bits, as their stains will be changed.
    Raises ValueError of one line for a partner that is missing, for sizes, channels or classes that do not fit, for a
    file that cannot be read, and where nothing is labelled.
    """
    matched = {"train": _matched(train), "test": _matched(test), "validation": _matched(validation)}
    _check_once([pair for pairs in matched.values() for pair in pairs])
    parts = {
        part: tuple(
            _all(pairs, partial(_measured, field=field, channels=channels, stained=stained and part == "train"))
        )
        for part, pairs in matched.items()
    }
    rest = parts["train"]
    for part in ("test", "validation"):  # no image of a test is validated in part
        if share := (shares or {}).get(part):
            rest, parts[part] = hold_out(rest, part, *share, field, seed, len(parts["train"]))
    parts["train"] = rest

    counted = partial(_counted, classes=classes, ignore=ignore, binary=binary)
    found = {part: _all(pairs, partial(counted, cores=cores if part == "train" else None))
             for part, pairs in parts.items()}  # fmt: skip
    _refuse(f"{pair.label}: {_where(pair, field)} is labelled" for pairs in found.values() for pair, _ in pairs
            if not any(pair.counts))  # fmt: skip
    split = {part: tuple(pair for pair, _ in pairs) for part, pairs in found.items()}
    return Split(**split, cores=() if cores is None else tuple(counts for _, counts in found["train"]))


def _matched(patterns: Iterable[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """(name, image, label) of all patterns, sorted by name within each. Raises ValueError for a missing partner."""
    found = []
    for image, label in patterns:
        if image == label:
            raise ValueError(f"{image} is both image and label")
        if NAME in image:
            found += _partners(image, label)
        else:
            found.append((name_of(image), image, label))
    return found


def _partners(image: str, label: str) -> list[tuple[str, str, str]]:
    images, labels = _names(image), _names(label)
    # A file that fits both patterns, as a_label.png fits {name}.png, is what the longer pattern says.
    if len(label) > len(image):
        images -= {name for name in images if _name_in(image.replace(NAME, name), label)}
    else:
        labels -= {name for name in labels if _name_in(label.replace(NAME, name), image)}
    if not images | labels:
        raise ValueError(f"no file is called like {image}")
    _refuse(
        f"{image.replace(NAME, name)} has no label: there is no {label.replace(NAME, name)}"
        if name in images
        else f"{label.replace(NAME, name)} has no image: there is no {image.replace(NAME, name)}"
        for name in sorted(images ^ labels)
    )
    return [(name, image.replace(NAME, name), label.replace(NAME, name)) for name in sorted(images)]


def _names(pattern: str) -> set[str]:
    """What {name} may be, from the files that there are."""
    pattern = local_path(pattern)
    escaped = "*".join(glob.escape(part) for part in pattern.split(NAME))
    files = matching(escaped) if is_url(pattern) else glob.glob(escaped)
    return {name for file in files if (name := _name_in(file, pattern)) is not None}


def _name_in(file: str, pattern: str) -> str | None:
    """The part of a file's name that {name} stands for."""
    before, _, after = local_path(pattern).partition(NAME)
    match = re.fullmatch(f"{re.escape(before)}([^/]+){re.escape(after)}", file)
    return match[1] if match else None


def _check_once(found: Sequence[tuple[str, str, str]]) -> None:
    """Raises ValueError for an image that is there twice, so that nothing is validated that was trained on."""
    seen = set[str]()
    for _, image, _label in found:
        place = image if is_url(image) else os.path.realpath(image)
        if place in seen:
            raise ValueError(f"{image} is there twice: an image may be in train, in validation or in test, and once")
        seen.add(place)


def _measured(pair: tuple[str, str, str], *, field: ReceptiveField, channels: int, stained: bool) -> Pair:
    """The pair with its sizes. Raises ValueError where they do not fit each other or the network."""
    name, image, label = pair
    with _opened(image, channels) as opened:
        if len(opened.shape) != 3 or opened.shape[0] != channels:
            raise ValueError(f"{image} has shape {opened.shape}: the network takes images of ({channels}, y, x)")
        if opened.dtype.kind not in "buif":
            raise ValueError(f"{image} holds {opened.dtype}: give its magnitude, or its parts as channels")
        if stained and opened.dtype != np.uint8:
            raise ValueError(f"{image} holds {opened.dtype}, and augment.stain is for RGB of 8 bits: leave it out")
        size = (opened.shape[1], opened.shape[2])
        if opened.dtype.itemsize * channels * size[0] * size[1] <= SMALL:
            opened.read(Region.of(size[0] - 1, size[0], size[1] - 1, size[1]))
        identity = opened.identity()
    output = field.output_shape(*size)
    if 0 in output or any(n < least for n, least in zip(field.extended(*size), field.least, strict=True)):
        raise ValueError(f"{image} is {_by(size)}, too small for the network: it has no output there")
    with _opened(label, labels=True) as opened:
        if len(opened.shape) != 3 or opened.shape[0] != 1:
            raise ValueError(f"{label} has shape {opened.shape}: a label has one channel, the class of each pixel; "
                             "save the indices of a palette, not its colours")  # fmt: skip
        if opened.dtype.kind not in "iub":
            raise ValueError(f"{label} holds {opened.dtype} numbers: a label is a whole number, the pixel's class")
        labelled = (opened.shape[1], opened.shape[2])
    everything = Region.of(0, output[0], 0, output[1])
    same_rate = all(rate == 1 for rate in field.rate)
    if labelled == size and same_rate:
        top, left = (-surplus // 2 if surplus < 0 else 0 for surplus in field.surplus)
        return Pair(name, image, label, size, everything, (top, left), identity=identity)
    if labelled == output:
        return Pair(name, image, label, size, everything, identity=identity)
    wanted = f"the image's {_by(size)}" if same_rate else f"the {_by(output)} of the network's output"
    raise ValueError(f"{label} is {_by(labelled)}, and not {wanted}")


def _counted(
    pair: Pair, cores: Callable[[Pair], Cores] | None, classes: int, ignore: int | None, binary: bool
) -> tuple[Pair, np.ndarray]:
    """The pair with its labels counted, and the counts by core. Raises ValueError for a label that is no class."""
    digest = sha256()
    with Labels(pair, classes=classes, ignore=ignore, binary=binary) as labels:
        counts = labels.count(
            None if cores is None else cores(pair), lambda part: digest.update(part.astype(np.int16).tobytes())
        )
    return replace(pair, counts=tuple(counts.sum(axis=0).tolist()), classes=digest.hexdigest()), counts


def _opened(source: str, channels: int | None = None, labels: bool = False) -> Image:
    """The image. Raises ValueError, which names the file, for all that is wrong with it."""
    try:
        return open_image(source, channels=channels, labels=labels)
    except FileNotFoundError:
        raise ValueError(f"{source}: there is no such file") from None
    except ValueError as error:
        raise ValueError(str(error) if source in str(error) else f"{source}: {error}") from None


def _all(items: Iterable[T], check: Callable[[T], U]) -> list[U]:
    """check(item) for all items, in order. Raises ValueError with the first thing that is wrong, and how many are."""

    def tried(item: T) -> U | ValueError:
        try:
            return check(item)
        except (ValueError, OSError) as error:
            return ValueError(str(error))

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(tried, items))
    _refuse(str(result) for result in results if isinstance(result, ValueError))
    return [result for result in results if not isinstance(result, ValueError)]


def _refuse(problems: Iterable[str]) -> None:
    """Raises ValueError with the first problem and the number of the others, if there are any."""
    first, *others = problems if (problems := list(problems)) else [None]
    if first is not None:
        raise ValueError(first + (f" (and {len(others)} more like it)" if others else ""))


def _where(pair: Pair, field: ReceptiveField) -> str:
    """What has no label, in words."""
    assert pair.region is not None
    if pair.region.shape == field.output_shape(*pair.size):
        return "nothing in it"
    y, x = pair.region.y, pair.region.x
    return f"nothing in rows {y.start} to {y.stop} and columns {x.start} to {x.stop}"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"
