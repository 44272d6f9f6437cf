"""Tiles with their halo against random crops with zero padding: the same network, the same number of steps, real data.

    python benchmarks/accuracy.py NUCLEI_FOLDER [--steps 600] [--seeds 3] [--out benchmarks/accuracy.md]

NUCLEI_FOLDER holds NAME.png and NAME_label.png; every fifth name is held out. `tiles` is `pipeline.train`; `crops` is
a plain PyTorch loop over random crops of the size of a tile's core, which sees zeros beyond each crop's edge. Both
start from the same weights, take the same optimiser, rate and number of labelled pixels a step, and are scored alike:
IoU of the nuclei in the whole held-out images, stitched by `pipeline.predict`. Runs two trainings at a time, a thread
each.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

import pipeline
from pipeline.network.builtin import build
from pipeline.network.folder import save_network
from pipeline.network.normalise import Normalisation
from pipeline.training.task import Schedule

ARGUMENTS = {"base": 8, "depth": 3, "channels": 3, "classes": 2}
NORMALISE: Normalisation = {"scale": 1 / 255, "mean": 0.5, "std": 0.5}
METHODS = ("tiles", "crops")
SCHEDULE = Schedule("cosine", warmup=50)


@dataclass(frozen=True)
class Setting:
    """What both methods share; it is sent to their processes."""

    folder: Path
    train: Sequence[str]
    held: Sequence[str]
    steps: int
    batch: int
    core: int
    norm: str
    rate: float

    @property
    def arguments(self) -> dict[str, Any]:
        return {**ARGUMENTS, "norm": self.norm}


@dataclass(frozen=True)
class Outcome:
    method: str
    seed: int
    iou: float
    seconds: float


def run(setting: Setting, method: str, seed: int) -> Outcome:
    """One training and its score on the whole held-out images."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        (with_tiles if method == "tiles" else with_crops)(setting, seed, Path(folder) / "network")
        seconds = time.monotonic() - began
        return Outcome(method, seed, iou(setting, Path(folder) / "network", Path(folder) / "out"), seconds)


def with_tiles(setting: Setting, seed: int, run: Path) -> None:
    """Trains as anyone would with this package."""
    pairs = [{"image": str(image), "label": str(label)} for image, label in map(paths_of(setting), setting.train)]
    pipeline.train(
        {
            "run": str(run),
            "network": {"architecture": "unet", **setting.arguments},
            "data": {"train": pairs, "binary": True},
            "normalise": dict(NORMALISE),
            "sampling": {"kind": "tiles", "core": setting.core},
            "batch": setting.batch,
            "optimizer": {"name": "adam", "lr": setting.rate},
            "schedule": {"name": SCHEDULE.name, "warmup": SCHEDULE.warmup},
            "steps": setting.steps,
            "workers": 0,
            "seed": seed,
        }
    )


def with_crops(setting: Setting, seed: int, run: Path) -> None:
    """Trains as is common: random crops, each padded with zeros by the network's own convolutions."""
    paths = paths_of(setting)
    data = [read(*paths(name)) for name in setting.train]
    areas = [label.size for _, label in data]
    torch.manual_seed(seed)
    module = build("unet", setting.arguments, NORMALISE).train()
    optimizer = torch.optim.Adam(module.parameters(), setting.rate)
    draw = random.Random(seed)
    for step in range(1, setting.steps + 1):
        optimizer.param_groups[0]["lr"] = setting.rate * SCHEDULE.factor(step, setting.steps)
        crops = [crop(*one, setting.core, draw) for one in draw.choices(data, areas, k=setting.batch)]
        images, labels = (torch.from_numpy(np.stack(part)) for part in zip(*crops, strict=True))
        optimizer.zero_grad()
        F.cross_entropy(module(images.float()), labels).backward()
        optimizer.step()
    save_network(run, "unet", setting.arguments, module, normalise=NORMALISE)


def crop(image: np.ndarray, label: np.ndarray, side: int, draw: random.Random) -> tuple[np.ndarray, np.ndarray]:
    y, x = (draw.randrange(n - side + 1) for n in label.shape)
    return image[:, y : y + side, x : x + side], label[y : y + side, x : x + side]


def paths_of(setting: Setting) -> Callable[[str], tuple[Path, Path]]:
    """From a name to its image and its label."""
    return lambda name: (setting.folder / f"{name}.png", setting.folder / f"{name}_label.png")


def read(image: Path, label: Path) -> tuple[np.ndarray, np.ndarray]:
    """(3, y, x) as stored, and the class of each pixel."""
    pixels = np.asarray(Image.open(image).convert("RGB")).transpose(2, 0, 1)
    return pixels, (np.asarray(Image.open(label)) > 0).astype(np.int64)


def iou(setting: Setting, network: Path, out: Path) -> float:
    """Of the nuclei, over all pixels of the held-out images, from their stitched predictions."""
    paths = paths_of(setting)
    results = pipeline.predict([str(paths(name)[0]) for name in setting.held], str(network), str(out), workers=1)
    both = either = 0
    for name, result in zip(setting.held, results, strict=True):
        truth, predicted = read(*paths(name))[1] > 0, result.array[:] > 0
        both += int((truth & predicted).sum())
        either += int((truth | predicted).sum())
    return both / max(1, either)


def table(setting: Setting, outcomes: Sequence[Outcome]) -> str:
    """The result as Markdown."""
    seeds = sorted({outcome.seed for outcome in outcomes})
    by = {(outcome.method, outcome.seed): outcome for outcome in outcomes}
    lines = [
        "# Tiles with a halo against random crops",
        "",
        f"U-Net {setting.arguments}, Adam at {setting.rate} with warm-up and cosine, {setting.steps} steps of "
        f"{setting.batch} cores or crops of {setting.core} x {setting.core} pixels; {len(setting.train)} images to "
        f"train on, {len(setting.held)} held out. IoU of the nuclei in the whole held-out images, stitched. "
        f"torch {torch.__version__}.",
        "",
        "| method | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean | spread | seconds of training |",
        "|---|" + "---|" * (len(seeds) + 3),
    ]
    for method in METHODS:
        scores = [by[method, seed].iou for seed in seeds]
        seconds = statistics.mean(by[method, seed].seconds for seed in seeds)
        lines.append(
            f"| {method} | " + " | ".join(f"{score:.4f}" for score in scores) + f" | {statistics.mean(scores):.4f} "
            f"| {max(scores) - min(scores):.4f} | {seconds:.0f} |"
        )
    return "\n".join(lines) + "\n\nMade by `python benchmarks/accuracy.py NUCLEI_FOLDER`.\n"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, metavar="NUCLEI_FOLDER")
    p.add_argument("--steps", type=int, default=600)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--core", type=int, default=96)
    p.add_argument("--norm", default="none", choices=("batch", "none"), help="none: tiles have the exact gradient")
    p.add_argument(
        "--rate", type=float, default=2e-3, help="of Adam, which rises for 50 steps and falls to 0 as a cosine"
    )
    p.add_argument("--images", type=int, default=120, help="images that are used, a fifth of them held out")
    p.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    p.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    asked = p.parse_args()
    names = sorted(path.name.removesuffix("_label.png") for path in asked.folder.glob("*_label.png"))
    names = names[:: max(1, len(names) // asked.images)][: asked.images]
    held = names[4::5]
    train = [name for name in names if name not in held]
    setting = Setting(asked.folder, train, held, asked.steps, asked.batch, asked.core, asked.norm, asked.rate)
    with ProcessPoolExecutor(asked.jobs, multiprocessing.get_context("spawn")) as pool:
        runs = [pool.submit(run, setting, method, seed) for seed in range(asked.seeds) for method in METHODS]
        outcomes = []
        for done in runs:
            outcomes.append(done.result())
            print(outcomes[-1], flush=True)
    asked.out.write_text(table(setting, outcomes))
    print(f"wrote {asked.out}")


if __name__ == "__main__":
    main()
