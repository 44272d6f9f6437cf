"""Time and memory of `python -m pipeline.infer` against the network alone; writes benchmarks/infer.md.

    python benchmarks/infer.py [--folder FOLDER] [--rounds 3] [--largest 16384] [--photographs 300]

Memory: the same command on squares of growing side. Time: whole runs of the command, start-up included, against the
network alone, which gets the same pixels from memory, in pieces of the size that it is fastest on, without halos and
without writing anything; the same number of processes, one thread each; in turn, medians.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import psutil
import tifffile
import torch
from draw import draw
from numpy.typing import NDArray
from PIL import Image

import pipeline

DRAWN = 4096
"""Side of the image that is drawn; larger ones repeat it."""
WORKERS = 2
PIECE = 512
"""Side of the pieces that the network alone runs on: of 256, 512, 1024 and 2048 the one that took least time."""
SIDE = 980
"""Of a photograph."""
REPORT = Path(__file__).with_suffix(".md")


def mosaic(source: Path, path: Path, side: int) -> Path:
    """A square of that side, tiled BigTIFF with deflate, that repeats the drawn image; nothing is held whole."""
    drawn = tifffile.imread(source)
    tiles = (drawn[y % DRAWN :][:256, x % DRAWN :][:, :256] for y in range(0, side, 256) for x in range(0, side, 256))
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(tiles, shape=(side, side, 3), dtype=np.uint8, tile=(256, 256), photometric="rgb",
                     compression="adobe_deflate", compressionargs={"level": 1}, metadata=None)  # fmt: skip
    return path


def infer(arguments: list[str]) -> tuple[float, float, list[float]]:
    """(seconds, peak MB of the command's own process, peak MB of each worker) of one run of the command."""
    began = time.monotonic()
    command = psutil.Popen(
        [sys.executable, "-m", "pipeline.infer", *arguments, "--workers", str(WORKERS), "--overwrite"],
        stdout=subprocess.DEVNULL,
    )
    peaks: dict[int, float] = {}
    while command.poll() is None:
        for process in (command, *command.children(recursive=True)):  # workers are forks of a child
            peaks[process.pid] = max(peaks.get(process.pid, 0.0), _peak(process.pid))
        time.sleep(0.1)
    seconds = time.monotonic() - began
    if command.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with status {command.returncode}")
    own = peaks.pop(command.pid)
    return seconds, own, sorted(peaks.values())


def _peak(pid: int) -> float:
    """Peak resident memory of a process so far, in MB; 0 where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e3 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def pieces(source: Path, part: int) -> Iterator[NDArray[np.uint8]]:
    """What one of the processes that run the network alone gets, as (c, y, x)."""
    if source.is_dir():
        for path in sorted(source.iterdir())[part::WORKERS]:
            yield np.ascontiguousarray(np.asarray(Image.open(path)).transpose(2, 0, 1))
        return
    image = tifffile.imread(source)
    rows = range(0, len(image), PIECE)[part::WORKERS]
    for y in rows:
        for x in range(0, image.shape[1], PIECE):
            yield np.ascontiguousarray(image[y : y + PIECE, x : x + PIECE].transpose(2, 0, 1))


def alone(source: Path, part: int) -> None:
    """Load a part of the pixels, say so, wait for the word, run the network on them and print the seconds."""
    torch.set_num_threads(1)
    net = pipeline.load_network("nuclei")
    inputs = [torch.from_numpy(pipeline.extend(piece, net)) for piece in pieces(source, part)]
    with torch.inference_mode():
        net.module(inputs[0][None].float())
        print("ready", flush=True)
        sys.stdin.readline()
        began = time.monotonic()
        for piece in inputs:
            net.module(piece[None].float())
    print(time.monotonic() - began, flush=True)


def network_alone(source: Path) -> float:
    """Seconds until the last of the processes has run the network on its part of the pixels."""
    processes = [
        subprocess.Popen([sys.executable, __file__, "--alone", str(part), "--folder", source],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for part in range(WORKERS)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return max(float(process.communicate()[0]) for process in processes)


def measure_time(source: str, folder: Path, rounds: int) -> tuple[float, float, float]:
    """Medians of (infer, network alone, their ratio), in turn."""
    pairs = []
    images = [str(p) for p in sorted(Path(source).iterdir())] if Path(source).is_dir() else [source]
    for _ in range(rounds):
        seconds, _, _ = infer([*images, "-o", str(folder / f"{Path(source).stem}.out")])
        pairs.append((seconds, network_alone(Path(source))))
    ratio = statistics.median(a / b for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def photographs(source: Path, folder: Path, count: int) -> Path:
    """A folder of photographs cut from the drawn image."""
    folder.mkdir(exist_ok=True)
    drawn, generator = tifffile.imread(source), np.random.default_rng(0)
    for number in range(count):
        y, x = generator.integers(0, DRAWN - SIDE, 2)
        Image.fromarray(drawn[y : y + SIDE, x : x + SIDE]).save(folder / f"photograph-{number:03d}.jpg", quality=90)
    return folder


def report(folder: Path, rounds: int, largest: int, count: int) -> str:
    """All measurements, as the text of the report."""
    drawn = folder / "4096.tif"
    draw(drawn, DRAWN, DRAWN)
    images = [mosaic(drawn, folder / f"{side}.tif", side) if side != DRAWN else drawn
              for side in (4096, 8192, 16384) if side <= largest]  # fmt: skip
    lines = [
        "# `python -m pipeline.infer` in numbers",
        "",
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, {date.today()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}. Rerun: `make bench`. "
        f"{WORKERS} workers, the bundled network, all other options "
        "as they are by default. A fair comparison wants a machine that does nothing else.",
        "",
        "## Memory",
        "Peaks in MB, the interpreter and its libraries (about 300 MB a process) included. The forecast is what "
        "`--dry-run` says of a worker, with those 300 MB. All processes are the command, its workers, and the one that "
        "these are forks of; what they share with it, some 150 MB, is counted in each.",
        "",
        "| image | the command's own process | largest worker | forecast | all processes | growth | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    before = None
    for image in images:
        plan = pipeline.plan(str(image))
        seconds, own, workers = infer([str(image), "-o", str(folder / "measured.zarr")])
        total = own + sum(workers)
        growth = "" if before is None else f"{total / before - 1:+.1%}"
        lines.append(f"| {image.stem} x {image.stem} | {own:.0f} | {workers[-1]:.0f} | {plan.memory / 1e6 + 300:.0f} "
                     f"| {total:.0f} | {growth} | {seconds:.0f} |")  # fmt: skip
        before = total
        print(lines[-1], flush=True)
    lines += [
        "",
        "## Time",
        (f"Medians of {rounds} alternating rounds" if rounds > 1 else "One round") + ", in seconds, start-up included. "
        f"The network alone runs on pieces of {PIECE} x {PIECE} "
        "(photographs whole), in memory, in as many processes.",
        "",
        "| images | infer | the network alone | ratio |",
        "|---|---|---|---|",
    ]
    taken = photographs(drawn, folder / "photographs", count)
    timed = images[min(1, len(images) - 1)]
    for name, source in ((f"one of {timed.stem} x {timed.stem}", timed),
                         (f"{count} photographs of {SIDE} x {SIDE}", taken)):  # fmt: skip
        seconds, network, ratio = measure_time(str(source), folder, rounds)
        lines.append(f"| {name} | {seconds:.1f} | {network:.1f} | {ratio:.2f} |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where images and outputs go (default: a temporary folder)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--largest", type=int, default=16384, help="side of the largest image")
    parser.add_argument("--photographs", type=int, default=300)
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone is not None:
        alone(asked.folder, asked.alone)
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        REPORT.write_text(report(Path(folder), asked.rounds, asked.largest, asked.photographs))
    print(f"written: {REPORT}")


if __name__ == "__main__":
    main()
