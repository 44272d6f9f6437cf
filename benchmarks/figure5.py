"""Figure 5 of Long, Shelhamer & Darrell 2015 again: loss against steps and against time, by what a step samples.

    python benchmarks/figure5.py NUCLEI_FOLDER [--steps 300] [--images 40] [--out benchmarks/figure5]

NUCLEI_FOLDER holds NAME.png and NAME_label.png. The same U-Net, weights to start from, optimiser and number of steps,
each time by `pipeline.train` with one thread: whole images; whole images of whose outputs a half or a quarter keep
their loss, with as many more images a step; and patches, each one output with its receptive field. The loss is each
step's own, as a running mean. Writes OUT.md, OUT-steps.svg and OUT-time.svg.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from svg import alone

import pipeline
from pipeline.reporting.charts import Line, line_chart

SIDE = (256, 256)
WAYS: dict[str, dict[str, Any]] = {
    "whole": {"sampling": {"kind": "whole"}, "batch": 2},
    "loss_keep 0.5": {"sampling": {"kind": "whole", "loss_keep": 0.5}, "batch": 2},
    "loss_keep 0.25": {"sampling": {"kind": "whole", "loss_keep": 0.25}, "batch": 2},
    "patches": {"sampling": {"kind": "patches"}, "batch": 64},
}
MEAN = 0.95
"""Share that the running mean keeps a step."""


@dataclass(frozen=True)
class Curve:
    """Of one way: after each step the seconds so far and the running mean of the loss."""

    way: str
    seconds: list[float]
    losses: list[float]
    outputs: int
    """That are labelled, whether their loss is kept or not, over all steps."""

    def when(self, loss: float) -> tuple[int, float] | None:
        """Steps and seconds until the loss was first so low; None where it never was."""
        found = next((n for n, mean in enumerate(self.losses) if n >= 10 and mean <= loss), None)
        return None if found is None else (found + 1, self.seconds[found])


def run(way: str, pairs: list[dict[str, str]], steps: int, folder: Path) -> Curve:
    pipeline.train(
        {
            "run": str(folder),
            "network": {"architecture": "unet", "base": 8, "depth": 2, "norm": "none", "channels": 3, "classes": 2},
            "data": {"train": pairs, "binary": True},
            "normalise": {"scale": 1 / 255, "mean": 0.5, "std": 0.5},
            "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
            "steps": steps,
            "workers": 0,
            **WAYS[way],
        }
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = accumulate((line["loss"] for line in lines), lambda mean, loss: MEAN * mean + (1 - MEAN) * loss)
    seconds = accumulate(line["seconds"] for line in lines)
    return Curve(way, list(seconds), list(losses), sum(line["pixels"] for line in lines))


def report(curves: list[Curve], images: int, steps: int) -> str:
    aim = max(curve.losses[-1] for curve in curves if curve.way != "patches") * 1.02
    lines = [
        "# Loss against steps and against time",
        "",
        f"A U-Net (base 8, depth 2, no norm) on {images} images of nuclei of {SIDE[0]} x {SIDE[1]} pixels, {steps} "
        "steps of SGD; a step is 2 whole images (2 / loss_keep of them), or 64 patches. One thread, "
        f"{platform.machine()}, torch {torch.__version__}; by `python benchmarks/figure5.py NUCLEI_FOLDER`.",
        "",
        "| a step samples | loss at the end | labelled outputs of its samples | seconds a step "
        f"| steps to a loss of {aim:.3f} | seconds to it |",
        "|---|---|---|---|---|---|",
    ]
    for curve in curves:
        found = curve.when(aim)
        reached = f"{found[0]} | {found[1]:.0f}" if found else "not reached | "
        each = curve.seconds[-1] / steps
        lines.append(f"| {curve.way} | {curve.losses[-1]:.4f} | {curve.outputs:,} | {each:.2f} | {reached} |")
    pictures = [f"![loss against {name}](figure5-{name}.svg)" for name in ("steps", "time")]
    return "\n\n".join(["\n".join(lines), *pictures]) + "\n"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, metavar="NUCLEI_FOLDER")
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--images", type=int, default=40)
    p.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""))
    asked = p.parse_args()
    labels = [path for path in sorted(asked.folder.glob("*_label.png")) if Image.open(path).size == SIDE][
        : asked.images
    ]
    pairs = [{"image": str(path).replace("_label.png", ".png"), "label": str(path)} for path in labels]
    curves = []
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            curves.append(run(way, pairs, asked.steps, Path(folder) / way.replace(" ", "-")))
            print(way, curves[-1].losses[-1], curves[-1].seconds[-1], flush=True)
    asked.out.with_suffix(".md").write_text(report(curves, len(pairs), asked.steps))
    by_step = [Line(c.way, [(n + 1.0, loss) for n, loss in enumerate(c.losses)]) for c in curves]
    by_time = [Line(c.way, list(zip(c.seconds, c.losses, strict=True))) for c in curves]
    for name, lines, x in (("steps", by_step, "steps"), ("time", by_time, "seconds of training")):
        asked.out.with_name(f"{asked.out.name}-{name}.svg").write_text(alone(line_chart(lines, x=x, y="loss")))


if __name__ == "__main__":
    main()
