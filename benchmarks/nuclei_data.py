"""Prepares the files that jobs/train-nuclei.yaml trains the bundled network on, from real and from drawn images.

    python benchmarks/nuclei_data.py NUCLEI_FOLDER nuclei

NUCLEI_FOLDER holds NAME.png and NAME_label.png (2018 Data Science Bowl). Every fifth name is kept for the test, as it
is, in nuclei/test/KIND. The others are in nuclei/train as views at several scales and in other light, of which there
are more where a kind has few images; drawn tissue (tissue.py) is a kind of its own. The same bytes for the same seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tissue import field
from torch import Tensor
from torch.nn import functional as F

from pipeline.tiling.geometry import Region

VIEWS = {"dark": 3, "bright": 12, "colour": 7, "procedural": 6}
"""Of each image of a kind: so that tiles of bright and colour images, which are few, are not."""
SCALES = (0.6, 1.7)
DRAWN = 512
"""Side of a drawn image; those of the test are cut from the plane of seed 0, those of training have a seed each."""
FIRST_SEED, SEEDS = 1000, 32


class Pair(NamedTuple):
    """RGB (y, x, 3) and nucleus or not (y, x)."""

    name: str
    kind: str
    image: NDArray[np.uint8]
    nucleus: NDArray[np.bool_]


def real(folder: Path) -> Iterator[tuple[bool, Pair]]:
    """All images in the order of their names, and of each whether it is kept for the test."""
    for number, path in enumerate(sorted(folder.glob("*_label.png"))):
        name = path.name.removesuffix("_label.png")
        image = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))
        yield number % 5 == 4, Pair(name, kind_of(image), image, np.asarray(Image.open(path)) > 0)


def kind_of(image: NDArray[np.uint8]) -> str:
    """Colour; or grey with a dark or a bright ground."""
    if (image.max(axis=2) != image.min(axis=2)).any():
        return "colour"
    return "bright" if np.median(image) > 128 else "dark"


def drawn() -> Iterator[tuple[bool, Pair]]:
    places = [(True, 0, number) for number in range(4)]
    places += [(False, FIRST_SEED + number, number) for number in range(SEEDS)]
    for held, seed, number in places:
        image, label = field(Region.of(0, DRAWN, number * DRAWN, (number + 1) * DRAWN), seed)
        yield held, Pair(f"drawn-{seed}-{number}", "procedural", image, label > 0)


def view(pair: Pair, rng: np.random.Generator) -> Pair:
    """The pair at another scale and in other light."""
    factor = float(np.exp(rng.uniform(*np.log(SCALES))))
    height, width = (max(8, round(n * factor)) for n in pair.nucleus.shape)
    image = torch.from_numpy(pair.image.transpose(2, 0, 1).astype(np.float32))
    nucleus = torch.from_numpy(pair.nucleus.astype(np.float32))[None]
    image, nucleus = (
        F.interpolate(x[None], (height, width), mode="bilinear", align_corners=False, antialias=factor < 1)[0]
        for x in (image, nucleus)
    )
    pixels = relit(image, pair.kind, rng).numpy().astype(np.uint8).transpose(1, 2, 0)
    return Pair(pair.name, pair.kind, pixels, nucleus[0].numpy() > 0.5)


def relit(image: Tensor, kind: str, rng: np.random.Generator) -> Tensor:
    """RGB (3, y, x) in 0..255 in other light, stain, contrast and focus; still in that range."""
    if kind == "dark":
        image = image * float(np.exp(rng.uniform(-0.7, 1.1))) + float(rng.uniform(-4, 14))
        if rng.random() < 0.05:
            image = 255 - image.clamp(0, 255)
    else:
        image = 255 * (image.clamp(1, 255) / 255) ** float(np.exp(rng.uniform(-0.35, 0.35)))
        image = image * float(rng.uniform(0.8, 1.15))
    if kind in ("colour", "procedural"):
        density = -torch.log(image.clamp(1, 255) / 255)
        gains = torch.from_numpy(np.exp(rng.uniform(-0.25, 0.25, (3, 1, 1))).astype(np.float32))
        image = 255 * torch.exp(-density * gains)
        if rng.random() < 0.12:
            image = image.mean(dim=0, keepdim=True).expand(3, -1, -1)
    if rng.random() < 0.2:
        image = F.avg_pool2d(image[None], 3, 1, 1, count_include_pad=False)[0]
    return image.clamp(0, 255).round()


def write(folder: Path, pair: Pair, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pair.image).save(folder / f"{name}.png", compress_level=1)
    Image.fromarray(pair.nucleus.astype(np.uint8)).save(folder / f"{name}_label.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nuclei", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(given.seed)
    for pairs in (real(given.nuclei), drawn()):
        for held, pair in pairs:
            if held:
                write(given.out / "test" / pair.kind, pair, pair.name)
                continue
            for number in range(VIEWS[pair.kind]):
                write(given.out / "train", view(pair, rng), f"{pair.kind}-{pair.name}-{number}")


if __name__ == "__main__":
    main()
