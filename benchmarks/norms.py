"""What batch norm does on tiles: the same short training with each setting.

    python benchmarks/norms.py NUCLEI

NUCLEI: the folder that benchmarks/nuclei_data.py made. Writes benchmarks/norms.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

import pipeline

STEPS = 200
SETTINGS: dict[str, dict[str, Any]] = {
    "`norm: batch`, tiles one by one (`together: 1`)": {"norm": "batch", "together": 1},
    "`norm: batch`, four tiles together": {"norm": "batch"},
    "`norm: batch`, four tiles together, `freeze_norm: 60`": {"norm": "batch", "freeze_norm": 60},
    "`norm: none`": {"norm": "none"},
}
NETWORK = {"architecture": "unet", "base": 8, "depth": 3, "channels": 3, "classes": 2}


def trained(nuclei: Path, run: str, norm: str, **given: Any) -> dict[str, Any]:
    """The scores of the whole test images, stitched."""

    def pairs(where: str) -> dict[str, str]:
        return {"image": f"{nuclei}/{where}{{name}}.png", "label": f"{nuclei}/{where}{{name}}_label.png"}

    return pipeline.train(
        {
            "run": run,
            "network": NETWORK | {"norm": norm},
            "normalise": {"scale": 1 / 255, "mean": 0.5, "std": 0.5},
            "data": {
                "train": [pairs("train/colour-"), pairs("train/dark-0")],
                "test": [pairs("test/colour/"), pairs("test/dark/0")],
            },
            "sampling": {"core": 96},
            "batch": 4,
            "optimizer": {"name": "adam", "lr": 0.002},
            "schedule": {"name": "cosine", "warmup": 20},
            **given,
            "steps": STEPS,
            "workers": 0,
        }
    ).metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nuclei", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Batch norm on tiles",
        "",
        f"U-Net {NETWORK}, Adam at 0.002 with warm-up and cosine, {STEPS} steps of 4 tiles of 96 x 96. "
        "Scores of the whole unseen images (dark and colour), stitched, with the "
        f"network as inference runs it. torch {torch.__version__}.",
        "",
        "| | loss of the last step | IoU of the nuclei | accuracy |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, setting) in enumerate(SETTINGS.items()):
            found = trained(given.nuclei, f"{folder}/{number}", **setting)
            print(name, found, flush=True)
            test = found["test"]
            lines.append(f"| {name} | {found['loss']:.3f} | {test['iou'][1]:.3f} | {test['accuracy']:.3f} |")
    lines += ["", "Made by `python benchmarks/norms.py NUCLEI`."]
    (Path(__file__).parent / "norms.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
