"""Whether reading keeps up with training, and what a second worker gives; writes benchmarks/feeding.md.

    python benchmarks/feeding.py [--steps 9] [--rounds 3] [--out benchmarks/feeding.md]

An image of 4096 x 4096 is drawn, and stored as OME-Zarr and as tiled TIFF with deflate, its labels likewise. Tiles of
256 pixels are read with the halo of the job file's U-Net (base 16, depth 4), in the random order of training, by 1 and
by 2 threads; against that, what the same network takes in: a step forwards and back, one thread. Then the same job on
Ray with 1 and with 2 workers of one CPU each: samples a second of its steady steps; in turn, medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tifffile
import torch
from draw import draw

import pipeline
from pipeline.jobfile import validated
from pipeline.training.gradient import accumulate
from pipeline.training.loop import begin, network
from pipeline.training.task import Task
from pipeline.training_job import TrainJob
from pipeline.training_task import task_of

SIDE = 4096
TILES = 96
"""That are read for one figure."""
BATCH = 8


def settings(image: Path, label: Path, run: Path, **given: Any) -> dict[str, Any]:
    """The job file's network and tiles, without batch norm."""
    return {
        "run": str(run),
        "network": {"architecture": "unet", "base": 16, "depth": 4, "norm": "none"},
        "data": {"train": [{"image": str(image), "label": str(label)}], "binary": True},
        "normalise": {"scale": 1 / 255, "mean": 0.5, "std": 0.5},
        "batch": BATCH,
        **given,
    }


def drawn(folder: Path) -> dict[str, tuple[Path, Path]]:
    """{format: (image, label)} of the same pixels."""
    made = {"deflate TIFF": (folder / "big.tif", folder / "label.tif")}
    draw(made["deflate TIFF"][0], SIDE, SIDE, label_path=folder / "drawn.tif")
    labels = tifffile.imread(folder / "drawn.tif").astype("uint16")
    tifffile.imwrite(made["deflate TIFF"][1], labels, tile=(256, 256), compression="zlib")
    made["zarr"] = (folder / "big.ome.zarr", folder / "label.ome.zarr")
    for source, target in zip(*made.values(), strict=True):
        pipeline.convert(source, target)
    return made


def read(task: Task, threads: int) -> float:
    """Tiles a second, in the order of training; each thread has a reader of its own."""
    samples = [sample for step in range(TILES) for sample in task.sampler().step(step)][:TILES]

    def work(number: int) -> int:
        return sum(1 for _ in task.reader().reads(samples[number::threads]))

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, range(threads)))
    return done / (time.perf_counter() - began)


def consumed(task: Task, steps: int = 1) -> float:
    """Tiles a second that go through the network forwards and back, from memory."""
    torch.set_num_threads(1)
    module = network(task, begin(task)["module"], "cpu")
    reads = list(task.reader().reads([sample for step in range(steps) for sample in task.sampler().step(step)]))
    accumulate(module, iter(reads[:1]), task.loss)
    began = time.perf_counter()
    accumulate(module, iter(reads), task.loss)
    return len(reads) / (time.perf_counter() - began)


def trained(image: Path, label: Path, workers: int, steps: int) -> float:
    """Samples a second, by the median of the steps once all is under way."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline.train(settings(image, label, Path(folder) / "run", workers=workers, steps=steps))
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    return BATCH / statistics.median(json.loads(line)["seconds"] for line in lines[2:])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=9, help="of each training")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    asked = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = drawn(Path(folder))
        tasks = {
            name: task_of(validated(TrainJob, settings(*paths, Path(folder) / "run"))) for name, paths in images.items()
        }
        fed: dict[tuple[str, int], list[float]] = {(name, threads): [] for name in tasks for threads in (1, 2)}
        taken: list[float] = []
        sampled: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(asked.rounds):
            for (name, threads), rates in fed.items():
                rates.append(read(tasks[name], threads))
            taken.append(consumed(tasks["zarr"]))
            for workers, rates in sampled.items():
                rates.append(trained(*images["zarr"], workers, asked.steps))
            print(fed, taken, sampled, flush=True)
    need = statistics.median(taken)
    lines = [
        "# Feeding, and a second worker",
        "",
        f"Tiles of 256 pixels with their halo, of an image of {SIDE} x {SIDE}; U-Net of base 16 and depth 4 without "
        f"norm, float32, one thread a worker; {platform.machine()}, torch {torch.__version__}; medians of "
        f"{asked.rounds} rounds, by `python benchmarks/feeding.py`.",
        "",
        f"The network takes in {need:.2f} tiles a second.",
        "",
        "| read from | threads | tiles a second | times what the network takes in |",
        "|---|---|---|---|",
    ]
    for (name, threads), rates in fed.items():
        rate = statistics.median(rates)
        lines.append(f"| {name} | {threads} | {rate:.0f} | {rate / need:.0f} |")
    one, two = (statistics.median(rates) for rates in sampled.values())
    lines += [
        "",
        "| workers on Ray | samples a second | times one worker |",
        "|---|---|---|",
        f"| 1 | {one:.2f} | |",
        f"| 2 | {two:.2f} | {two / one:.2f} |",
    ]
    asked.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
