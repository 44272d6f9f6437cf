"""What engines cost: python -m benchmarks.engines writes benchmarks/engines.md (about ten minutes on two cores).

1. A million tiles through engine and ledger, with a worker that only returns what the ledger records.
2. A plan of a million tiles.
3. An image on Ray with two actors, against the local engine with two workers, once both have started.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_suffix(".md")
SIDE = 512
"""Of a tile."""


def resident() -> float:
    """MB that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


@contextlib.contextmanager
def sampled() -> Iterator[list[float]]:
    """What this process has in memory, every 0.2 s."""
    samples: list[float] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(0.2):
            samples.append(resident())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def start() -> Callable[[Any], Any]:
    """A worker with nothing to do: one shard a tile, with a length and a checksum that need no image."""
    return lambda item: [[(4096, unit)] for unit in range(item[1], item[2])]


def run(engine: str, items: Iterator[Any]) -> Iterator[Any]:
    if engine == "ray":
        from pipeline.engines import on_ray

        return on_ray.run(start, [items], workers=2, name="a million tiles")
    from pipeline.engines import local

    return local.run(start, [items], workers=2, own_process=True)


def many_tiles(engine: str, tiles: int) -> str:
    """Row: tiles a second from the first result on, and the driver's memory in the first and the last quarter."""
    from pipeline.stitching.ledger import Ledger

    first = 0.0
    with tempfile.TemporaryDirectory() as folder, Ledger.open(Path(folder) / "ledger", "0" * 64, tiles) as ledger:
        with sampled() as samples:
            for item, records in run(engine, ((0, unit, unit + 1) for unit in range(tiles))):
                first = first or time.monotonic()
                for unit, record in zip(range(item[1], item[2]), records, strict=True):
                    ledger.add(unit, record)
            seconds = time.monotonic() - first
        assert ledger.count == tiles
    working = samples[-int(seconds / 0.2) :]
    quarter = max(1, len(working) // 4)
    early, late = statistics.median(working[:quarter]), statistics.median(working[-quarter:])
    return f"| {engine} | {tiles:,} | {tiles / seconds:,.0f} | {early:.0f} | {late:.0f} | {max(samples):.0f} |"


def planning(tiles: int) -> str:
    """Row: seconds and MB of a plan of so many tiles, with its fingerprint, its stages and where its tiles lie."""
    from pipeline.tiling.geometry import ReceptiveField
    from pipeline.tiling.grid import build_layout
    from pipeline.tiling.plan import Plan

    before, began = resident(), time.monotonic()
    field = ReceptiveField(before=(20, 20), after=(20, 20), alignment=(16, 16))
    side = SIDE * round(tiles**0.5)
    plan = Plan(
        image={"identity": "sha256:0", "dtype": "uint8", "channels": None}, network={"identity": "sha256:0"},
        kind="mask", activation="softmax", precision="float32", device="cpu", mode="exact", field=field,
        size=(side, side), planes=1, core=(SIDE, SIDE),
        layout=build_layout("yx", "uint8", (side, side), (SIDE, SIDE), whole=False),
    )  # fmt: skip
    assert plan.tiles == round(tiles**0.5) ** 2 and plan.read_amplification > 1 and plan.fingerprint
    assert all(plan.region_of(unit) for stage in plan.stages for unit in (stage[0], stage[-1]))
    return f"| {plan.tiles:,} | {plan.units:,} | {time.monotonic() - began:.4f} | {resident() - before:.1f} |"


def side_by_side(size: int, rounds: int) -> list[str]:
    """Rows: seconds between the first and the last result of each engine, in turns, and their ratio."""
    import ray

    import pipeline
    from pipeline.engines import local, on_ray

    times: list[float] = []
    for module in (local, on_ray):
        setattr(module, "run", noted(module.run, times))  # noqa: B010
    seconds: dict[str, list[float]] = {"local": [], "ray": []}
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.tif"
        subprocess.run([sys.executable, ROOT / "benchmarks/draw.py", image, "--size", str(size)], check=True)
        for number in range(rounds):
            for engine, taken in seconds.items():
                times.clear()
                output = Path(folder) / f"{engine}-{number}.zarr"
                pipeline.predict(image, None, output, engine=engine, workers=2, memory="300MB")
                taken.append(times[-1] - times[0])
                print(f"{engine}: {taken[-1]:.1f} s, {len(times)} units", flush=True)
    ray.shutdown()
    medians = {engine: statistics.median(taken) for engine, taken in seconds.items()}
    rows = [f"| {e} | {', '.join(f'{s:.1f}' for s in taken)} | {medians[e]:.1f} |" for e, taken in seconds.items()]
    return [*rows, f"| ratio | | {medians['ray'] / medians['local']:.3f} |"]


def noted(engine: Callable[..., Iterator[Any]], times: list[float]) -> Callable[..., Iterator[Any]]:
    """The same engine; the time of each of its results is noted."""

    def run(*arguments: Any, **options: Any) -> Iterator[Any]:
        for outcome in engine(*arguments, **options):
            times.append(time.monotonic())
            yield outcome

    return run


def part(name: str, *arguments: object) -> list[str]:
    """Rows of one measurement, taken in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.engines", "--part", name, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, end="", flush=True)
    return [line for line in done.stdout.splitlines() if line.startswith("|")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=8192, help="side of the image (default 8192, the demo's)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        name, *arguments = asked.part
        numbers = [int(a) if a.isdigit() else a for a in arguments]
        rows = {"many_tiles": many_tiles, "planning": planning, "side_by_side": side_by_side}[name](*numbers)
        print("\n".join([rows] if isinstance(rows, str) else rows))
        return
    lines = [
        "# What engines cost",
        "",
        f"`python -m benchmarks.engines`, {date.today()}, {len(os.sched_getaffinity(0))} cores of {machine()}, "
        f"Python {platform.python_version()}, Ray {version('ray')}, torch {version('torch')}; "
        f"load of the machine when it began {os.getloadavg()[0]:.1f}.",
        "",
        "## A million tiles whose worker only returns what the ledger records",
        "",
        "| engine | tiles | tiles a second | driver MB, first quarter | last quarter | peak |",
        "|---|---|---|---|---|---|",
        *part("many_tiles", "ray", asked.tiles),
        *part("many_tiles", "local", asked.tiles // 10),
        "",
        "## A plan of a million tiles",
        "",
        "| tiles | units with the pyramid | seconds | MB more |",
        "|---|---|---|---|",
        *part("planning", asked.tiles),
        "",
        f"## An image of {asked.size} x {asked.size} with the bundled network, two workers each, in turns",
        "",
        "Seconds from the first result to the last, so without the start.",
        "",
        "| engine | seconds | median |",
        "|---|---|---|",
        *part("side_by_side", asked.size, asked.rounds),
    ]
    TABLE.write_text("\n".join(lines) + "\n")


def machine() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
