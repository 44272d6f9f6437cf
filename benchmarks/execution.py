"""Depth-first execution against other ways to run a network: writes benchmarks/execution.md.

    make bench-execution                                                # all but memory: 25 minutes on two slow cores
    .bench/bin/python -m benchmarks.execution --part memory             # an image of a gigapixel: 40 minutes
    .bench/bin/python -m benchmarks.execution --part time,count --quick # small images, to see whether it works

Each part writes its own section of the report and leaves the others as they are:

time      other ways to run the same network on the same image, in turn, each run in a process of its own
count     operations executed over those of the whole image's forward pass, counted
profile   where the seconds of a run in bands go, and how fast its convolutions could be
memory    an image that is wide and tall and never stored
workers   the whole command against the network alone, and two workers against one
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from benchmarks.engines import machine
from benchmarks.subjects import NETWORKS, save_subject
from benchmarks.ways import WAYS

ROOT = Path(__file__).parents[1]
REPORT = Path(__file__).with_suffix(".md")
HEAD = """# Depth-first execution in numbers

Rerun: `make bench-execution`; the part on memory: `.bench/bin/python -m benchmarks.execution --part memory`.
A fair comparison wants a machine that does nothing else.
"""


@dataclass(frozen=True)
class Sizes:
    """How large everything is: enough for the numbers to mean something."""

    side: int = 4096
    rounds: int = 3
    others: int = 2048
    """Side of the image for the networks other than the first, which are run once."""
    width: int = 16384
    rows: tuple[int, ...] = (8192, 65536)
    """Heights of the images that are never stored."""
    workers: int = 8192
    """Side of the image that one worker and two workers are run on."""
    networks: tuple[str, ...] = tuple(NETWORKS)
    """Those that are timed."""


QUICK = Sizes(512, 1, 512, 1024, (512, 2048), 1024)
"""How small everything can be and still run."""


def child(*arguments: object) -> Any:
    """What a module of benchmarks/, run in a process of its own, prints as JSON on its last line."""
    return next(side_by_side([arguments]))


def side_by_side(commands: Sequence[Sequence[object]]) -> Iterator[Any]:
    """What each of several modules prints that run at the same time."""
    started = [
        subprocess.Popen([sys.executable, "-m", *map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for command in commands
    ]
    try:
        for process in started:
            printed, _ = process.communicate()
            if process.returncode:
                raise SystemExit(f"{process.args} ended with status {process.returncode}")
            yield json.loads(printed.splitlines()[-1])
    finally:
        for process in started:
            process.kill()  # of no effect on those that have ended


def draw(path: Path, side: int) -> Path:
    subprocess.run([sys.executable, ROOT / "benchmarks/draw.py", path, "--size", str(side)], check=True)
    return path


def timed(folder: Path, sizes: Sizes) -> list[str]:
    """Tables of all ways, for each network."""
    save_image(folder, draw(folder / "drawn.tif", max(sizes.side, sizes.others)))
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "monai", "tiler", "dask"))
    lines = [
        f"Float32, on drawn tissue; {versions}. Each run is a process of its own, and what it does before (start, "
        "weights, a warm-up on 512 x 512 pixels) is not counted. Medians of rounds in which all ways take turns; those "
        "that no bar depends on are run in the first alone. The error is the greatest difference to (1), as a share of "
        "the largest logit: other orders of summation differ by some 1e-6. tiler has no tiles that end at the "
        "image's edge, so the image is reflected around itself, and differs there.",
    ]
    for name in sizes.networks:
        label, _ = NETWORKS[name]
        side, rounds = (sizes.side, sizes.rounds) if name == "unet" else (sizes.others, 1)
        lines += ["", f"### {label}, {side} x {side} pixels", "", *compared(folder, name, side, rounds)]
    return lines


def compared(folder: Path, name: str, side: int, rounds: int) -> list[str]:
    """One table: the ways in turn, so many times."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    errors: dict[str, float] = {}
    for number in range(rounds):
        for way, told in WAYS.items():
            if number and not told.every_round:
                continue
            found = child("benchmarks.ways", folder, name, way, side)
            seconds[way].append(found["seconds"])
            errors[way] = max(errors.get(way, 0.0), found["error"])
            print(f"{name} {way}: {found['seconds']:.2f} s, error {found['error']:.1e}", flush=True)
    medians = {way: statistics.median(taken) for way, taken in seconds.items()}
    lines = [
        "| way | rounds | seconds | times as fast as (1) | as (2) | as (4) | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, told in WAYS.items():
        times = " | ".join(f"{medians[other] / medians[way]:.2f}" for other in ("whole", "folded", "monai"))
        lines.append(f"| {told.label} | {len(seconds[way])} | {medians[way]:.2f} | {times} | {errors[way]:.1e} |")
    return lines


def counted(folder: Path, sizes: Sizes) -> list[str]:
    return list(child("benchmarks.counting"))


def profiled(folder: Path, sizes: Sizes) -> list[str]:
    return list(child("benchmarks.profiling", sizes.side))


def remembered(folder: Path, sizes: Sizes) -> list[str]:
    """Table of the memory that tall images take; two processes of one thread each share two cores."""
    lines = [
        f"U-Net, base 16, depth 4, batch norm, on noise that is made as it is asked for, {sizes.width} pixels wide. "
        "Peak of the process above what it held with its libraries loaded and a small image run, in MB of 1e6 bytes. "
        "The stream takes all columns at once; `predict` cuts tiles for `memory=\"500MB\"`, and writes its output. "
        "Counted is what the package's own forecast says: of the stream what its tensors take, of `predict` all.",
        "",
        "| run | rows | MB | of these before the first row | counted MB | seconds |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for rows in sizes.rows:
        for found in side_by_side(
            [("benchmarks.tall", way, rows, sizes.width, folder) for way in ("stream", "predict")]
        ):
            peak, prepared, counted = (f"{found[name] / 1e6:.0f}" for name in ("peak", "prepared", "counted"))
            lines.append(f"| {found['run']} | {rows} | {peak} | {prepared} | {counted} | {found['seconds']:.0f} |")
            print(lines[-1], flush=True)
    return lines


def shared(folder: Path, sizes: Sizes) -> list[str]:
    """Tables of the command's seconds with one worker and with two, beside the network alone in as many processes."""
    side = sizes.workers
    image, tiny = draw(folder / "large.tif", side), draw(folder / "tiny.tif", 256)
    save_image(folder, image)
    net = save_subject(folder / "network")
    taken: dict[str, list[float]] = {name: [] for name in ("two", "one", "alone")}
    begun = {workers: command_seconds(tiny, net, folder / "out.zarr", workers) for workers in (1, 2)}
    for _ in range(sizes.rounds):
        for name, workers in (("two", 2), ("one", 1)):
            taken[name].append(command_seconds(image, net, folder / "out.zarr", workers) - begun[workers])
        taken["alone"].append(child("benchmarks.ways", folder, "unet", "halves", side)["seconds"])
        print({name: round(seconds[-1], 1) for name, seconds in taken.items()}, flush=True)
    two, one, alone = (statistics.median(seconds) for seconds in taken.values())
    return [
        f"`python -m pipeline.infer` from a deflate BigTIFF of {side} x {side} to its output, a zstd Zarr with its "
        f"pyramid, with the {NETWORKS['unet'][0]}, tiles as the planner chooses them. Beside it the network alone: "
        "the same pixels in memory as float32, in bands, by two processes of one thread, half of the rows each. "
        f"Medians of rounds in turn, {sizes.rounds} in number. What the command takes for 256 x 256 pixels, "
        f"{begun[2]:.1f} s (one worker: {begun[1]:.1f} s), is start and end, and is taken off.",
        "",
        "| | seconds | times the network alone |",
        "|---|---|---|",
        f"| network alone, two processes | {alone:.1f} | |",
        f"| command, two workers | {two:.1f} | {two / alone:.2f} |",
        f"| command, one worker | {one:.1f} | |",
        "",
        f"Two workers are {one / two:.2f} times as fast as one.",
    ]


def command_seconds(image: Path, net: Path, output: Path, workers: int) -> float:
    began = time.perf_counter()
    command = [sys.executable, "-m", "pipeline.infer", str(image), "--network", str(net), "-o", str(output)]
    subprocess.run([*command, "--overwrite", "--workers", str(workers)],
                   cwd=ROOT, stdout=subprocess.DEVNULL, check=True)  # fmt: skip
    return time.perf_counter() - began


def save_image(folder: Path, image: Path) -> None:
    """What `benchmarks.ways` reads."""
    pixels = tifffile.imread(image).transpose(2, 0, 1)[None]
    np.save(folder / "image.npy", np.ascontiguousarray(pixels, np.float32) / 255)


PARTS: dict[str, tuple[str, Callable[[Path, Sizes], list[str]]]] = {
    "time": ("Time", timed),
    "count": ("Operations executed", counted),
    "profile": ("Where the time goes", profiled),
    "memory": ("Memory", remembered),
    "workers": ("The whole command, and a second worker", shared),
}


def write(report: Path, title: str, lines: list[str]) -> None:
    """Puts a section into the report; the others stay."""
    kept = report.read_text().split("\n## ")[1:] if report.exists() else []
    sections = {section.split("\n", 1)[0]: section for section in kept}
    sections[title] = "\n".join([title, "", *lines]).rstrip() + "\n"
    ordered = [sections[name] for name, _ in PARTS.values() if name in sections]
    report.write_text(HEAD + "".join(f"\n## {section}" for section in ordered))


def circumstances() -> str:
    return (
        f"{date.today()}, {len(os.sched_getaffinity(0))} cores of {machine()}, Python {platform.python_version()}, "
        f"torch {version('torch')}; load of the machine when it began {os.getloadavg()[0]:.1f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="time,count,profile,workers", help="of time,count,profile,memory,workers")
    parser.add_argument("--side", type=int, help=f"of the image that is timed (default {Sizes.side})")
    parser.add_argument("--rounds", type=int, help=f"of timing (default {Sizes.rounds})")
    parser.add_argument("--networks", help=f"that are timed, of {','.join(NETWORKS)} (default all)")
    parser.add_argument("--rows", help="of the images that are never stored (default 8192,65536)")
    parser.add_argument("--quick", action="store_true", help="small images: to see whether it works")
    parser.add_argument("--report", type=Path, default=REPORT, help=f"default {REPORT.name} beside this file")
    asked = parser.parse_args()
    given = {"side": asked.side, "rounds": asked.rounds, "rows": asked.rows and tuple(map(int, asked.rows.split(",")))}
    given["networks"] = asked.networks and tuple(asked.networks.split(","))
    sizes = replace(QUICK if asked.quick else Sizes(), **{name: value for name, value in given.items() if value})
    chosen = asked.part.split(",")
    if unknown := set(chosen) - PARTS.keys():
        parser.error(f"--part {min(unknown)}: one of {', '.join(PARTS)}")
    for part in chosen:
        title, measure = PARTS[part]
        with tempfile.TemporaryDirectory() as folder:
            when = circumstances()
            write(asked.report, title, [when, "", *measure(Path(folder), sizes)])
    print(f"written: {asked.report}")


if __name__ == "__main__":
    main()
