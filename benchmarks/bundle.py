"""Scores a network on the unseen images of benchmarks/nuclei_data.py, and bundles it where that is asked for.

    python benchmarks/bundle.py nuclei runs/nuclei [--write]

Of each kind of image: the IoU of the nuclei over all pixels, its mean over the images that have any, and their number;
of the whole images in one pass, which tiles equal. With --write, weights and scores replace those that are bundled.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from nuclei_data import FIRST_SEED, SEEDS, VIEWS
from PIL import Image
from torch import nn

import pipeline
from pipeline.network.folder import save_network
from pipeline.network.loading import load_network
from pipeline.network.names import BUNDLED
from pipeline.tiling.geometry import ReceptiveField

BEGUN = "from weights of 3600 steps on random crops of the same training images (benchmarks/train_nuclei.py, 166c762)"


def scores(module: nn.Module, test: Path) -> dict[str, dict[str, float]]:
    """By kind of image."""
    field, found = pipeline.receptive_field(module, (3, 64, 64)), {}
    for kind in VIEWS:
        labels = sorted((test / kind).glob("*_label.png"))
        counts = np.array([overlap(module, field, label) for label in labels])
        each = counts[counts[:, 1] > 0]
        found[kind] = {
            "iou": round(float(counts[:, 0].sum() / counts[:, 1].sum()), 3),
            "mean_iou": round(float((each[:, 0] / each[:, 1]).mean()), 3),
            "images": len(labels),
        }
        print(kind, found[kind], flush=True)
    return found


@torch.no_grad()
def overlap(module: nn.Module, field: ReceptiveField, label: Path) -> tuple[int, int]:
    """Pixels in the intersection and in the union."""
    image = np.asarray(Image.open(label.with_name(label.name.replace("_label", ""))), np.float32)
    nucleus = np.asarray(Image.open(label)) > 0
    height, width = nucleus.shape
    more = [(0, n - size) for n, size in zip(field.extended(height, width), (height, width), strict=True)]
    extended = np.pad(image.transpose(2, 0, 1), [(0, 0), *more], mode="edge")
    found = module(torch.from_numpy(extended)[None]).argmax(dim=1)[0, :height, :width].numpy() == 1
    return int((found & nucleus).sum()), int((found | nucleus).sum())


def card(trained: dict[str, Any], metrics: dict[str, dict[str, float]], begun: Any) -> dict[str, Any]:
    """The bundled network's card with where these weights come from, and how they score; `begun`: the job's network."""
    kept = dict(load_network("nuclei").card)
    data = kept["data"] | {
        "procedural": f"benchmarks/tissue.py, seeds {FIRST_SEED} to {FIRST_SEED + SEEDS - 1}",
        "views": {kind: f"{number} of each image, at 0.6 to 1.7 times its size" for kind, number in VIEWS.items()},
        "steps": trained["training"]["step"],
        "script": "benchmarks/nuclei_data.py, then python -m pipeline.train jobs/train-nuclei.yaml",
    }
    before = data.pop("begun", "from random weights")
    if begun == "nuclei":
        data["begun"] = f"{before}, then {kept['data']['steps']} steps on tiles"
    elif isinstance(begun, str):
        data["begun"] = BEGUN
    return kept | {"data": data, "metrics": {"unseen split, by kind of image": metrics},
                   "versions": trained["versions"]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nuclei", type=Path, help="the folder that benchmarks/nuclei_data.py made")
    parser.add_argument("network", help="a network folder, or a name")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    network = load_network(given.network)
    metrics = scores(network.module, given.nuclei / "test")
    if given.write:
        job = yaml.safe_load((Path(given.network) / "job.yaml").read_text())
        made = card(network.card, metrics, begun=job["network"])
        save_network(BUNDLED / "nuclei", made.pop("architecture"), made.pop("arguments"), network.module, **made)


if __name__ == "__main__":
    main()
