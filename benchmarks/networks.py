"""Runs networks that nobody here wrote: every local one must equal the whole image, every other one be refused.

    make bench-networks                                        # installs the libraries into .bench, writes networks.md
    .bench/bin/python -m benchmarks.networks "Unet resnet18"   # only those whose library and name contain this

What was found is kept in networks.json; rows of networks that were not asked for stay as they are.

Weights are random, but not the trivial ones that a library starts with: constant parameters are disturbed, and batch
norms hold the statistics of a random image, so that values neither vanish nor explode, and a wrong border shows.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import pipeline
from benchmarks.peers import Peer, add_missing_operators, peers
from pipeline.network.loading import Network
from pipeline.tiling.geometry import ReceptiveField


@dataclass
class Row:
    """What came of one network; one that is neither equal nor refused is wrong."""

    library: str
    name: str
    verdict: str
    cells: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def wrong(self) -> bool:
        return self.verdict not in ("equal", "refused")


def run(peer: Peer) -> Row:
    """Builds one network and tries it."""
    started = time.perf_counter()
    torch.manual_seed(0)
    try:
        module = disturbed(peer.build().eval())
        net = pipeline.load_network(module, output=peer.output)
        try:
            field = pipeline.receptive_field(net, (peer.channels, 256, 256))
            row = tiled(peer, module, net, field) if field.is_local else refused(peer, net, field.nonlocal_operations)
        except ValueError as unknown:
            if type(unknown).__name__ != "UnknownOperation":
                raise
            row = refused(peer, net, tuple(str(unknown).split("; ")[:-1]))
    except Exception as error:  # a crash is what this looks for
        traceback.print_exc()
        row = Row(peer.library, peer.name, f"crashed: {type(error).__name__}: {error}"[:300])
    row.seconds = time.perf_counter() - started
    return row


def disturbed(module: nn.Module) -> nn.Module:
    """With weights that are less trivial than those that a library starts with, zeros and ones among them."""
    for parameter in module.parameters():
        if parameter.is_floating_point() and (parameter == parameter.flatten()[0]).all():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return module


def settle(module: nn.Module, channels: int, field: ReceptiveField) -> None:
    """Gives batch norms the statistics of a random image."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        module(torch.rand(1, channels, *(math.ceil(192 / a) * a for a in field.alignment)))
    for norm in norms:
        norm.eval()


def tiled(peer: Peer, module: nn.Module, net: Network, field: ReceptiveField) -> Row:
    """Compares `predict` in small tiles with one pass over the whole image, cut to the result's shape."""
    settle(module, peer.channels, field)
    size, tile = sizes(field)
    image = np.random.default_rng(0).random((peer.channels, *size), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        result = pipeline.predict(
            image, net, folder + "/out.zarr", kind="logits", tile=tile, workers=1, memory="16GB",
            channels=tuple(range(peer.channels)) if net.channels is None else None,
        )  # fmt: skip
        values, plan = torch.from_numpy(result.array[:]), result.plan
    extended = torch.from_numpy(np.ascontiguousarray(pipeline.extend(image, net)))
    cut = (0, slice(None), *(slice(n) for n in values.shape[1:]))
    with torch.inference_mode():
        whole = net.module(extended[None].clone())[cut]
        exact = net.to("cpu", torch.float64)(extended[None].double())[cut]
    difference, largest = float((values - whole).abs().max()), float(whole.abs().max())
    off, rounding = float((values - exact).abs().max()), float((whole - exact).abs().max())
    tiles = [plan.grid.tile(i) for i in range(plan.tiles)]
    smaller = sum(t.read.shape != tuple(extended.shape[1:]) for t in tiles)
    halo = without_halo(net, field, extended, whole, tile)
    tolerance = 1e-5 * max(1, largest)
    # where the whole pass in float32 is itself further from float64 than that, float64 is the reference
    same = difference <= tolerance or (rounding > tolerance >= off)
    verdict = "equal" if same and values.shape == whole.shape else "differs"
    if verdict == "equal" and halo is not None and halo < 10 * max(tolerance, rounding):
        verdict = "equal, but also without a halo: shows nothing"
    cells = (
        str(peer.channels), both([f"{b}+{a}" for b, a in zip(field.before, field.after, strict=True)]),
        both(field.alignment), both(field.rate), "{} x {}".format(*size), "{} x {}".format(*tile),
        f"{smaller} of {len(tiles)}", f"{plan.band}{'' if plan.folded else ', as it is'}" if plan.band else plan.whole,
        f"{difference:.1e}", f"{off:.1e}", f"{rounding:.1e}", f"{largest:.3g}", "-" if halo is None else f"{halo:.1e}",
    )  # fmt: skip
    return Row(peer.library, peer.name, verdict, cells)


def sizes(field: ReceptiveField) -> tuple[tuple[int, int], tuple[int, int]]:
    """(image, tile): higher than what a tile reads, so that most reads stop inside, and as narrow as needs be.

    Rows and columns of the image are prime.
    """
    y, x = (b + a for b, a in zip(field.before, field.after, strict=True))
    tile = [math.ceil(n / a) * a for n, a in zip((max(64, 0.58 * y), 96), field.alignment, strict=True)]
    image = 2 * tile[0] + (y if y < 100 else -21), 2 * tile[1] + x if x < 100 else 1.6 * tile[1]
    return (next_prime(int(image[0])), next_prime(int(image[1]))), (tile[0], tile[1])


def next_prime(n: int) -> int:
    return next(m for m in range(n, 2 * n + 2) if all(m % d for d in range(2, math.isqrt(m) + 1)))


def without_halo(
    net: Network, field: ReceptiveField, extended: torch.Tensor, whole: torch.Tensor, tile: tuple[int, int]
) -> float | None:
    """How much the second tile of the first row is off if it reads its core only; None where it has no borders."""
    if any(field.surplus) or not any(field.before + field.after):
        return None
    columns = slice(tile[1], min(2 * tile[1], extended.shape[2]))
    with torch.inference_mode():
        alone = net.module(extended[None, :, : tile[0], columns].clone())[0]
    x = int(columns.start * field.rate[1])
    part = whole[:, : alone.shape[1], x : x + alone.shape[2]]
    return float((alone[:, : part.shape[1], : part.shape[2]] - part).abs().max())


def both(pair: Any) -> str:
    """One value where rows and columns agree."""
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}, {pair[1]}"


def refused(peer: Peer, net: Network, named: tuple[str, ...]) -> Row:
    """Whether `predict` refuses it too, with operations whose modules exist; and what shows that it is right."""
    paths = {path.removeprefix("network.") for path, _ in net.module.named_modules()} | {"network"}
    lost = [line for line in named if line.split(":")[0] not in paths or line.count(":") < 2]
    verdict = f"names no module: {lost[0]}" if lost else "refused"
    try:
        with tempfile.TemporaryDirectory() as folder:
            channels = tuple(range(peer.channels)) if net.channels is None else None
            image = np.zeros((peer.channels, 96, 96), np.float32)
            pipeline.predict(image, net, folder + "/out.zarr", kind="logits", channels=channels)
        verdict = "refused by receptive_field, not by predict"
    except ValueError as error:
        if named[0] not in str(error):
            verdict = f"predict says something else: {error}"[:200]
    reasons = list(dict.fromkeys(line.split(": ", 1)[1] for line in named))
    shown = [f"`{next(n for n in named if n.endswith(r))}`" for r in reasons[:3]]
    more = f" and {len(named) - len(shown)} more" if len(named) > len(shown) else ""
    return Row(
        peer.library, peer.name, verdict, (str(peer.channels), far_half(net, peer.channels), "<br>".join(shown) + more)
    )


def far_half(net: Network, channels: int) -> str:
    """By how much the result at the left edge changes if the right half of the image is cut away."""
    torch.manual_seed(0)
    image = torch.rand(1, channels, 128, 768)
    try:
        with torch.inference_mode():
            whole, half = net.module(image.clone()), net.module(image[..., :384].clone())
        edge = max(1, whole.shape[-1] // 12)
        change = float((whole[..., :edge] - half[..., :edge]).abs().max() / whole.abs().max())
    except Exception:  # strangers' modules raise anything
        return "takes no such image"
    return f"{change:.0e}" if change else "0"


def table(header: str, rows: Iterator[tuple[str, ...]]) -> str:
    names = header.split(" | ")
    lines = [f"| {header} |", "|" + " --- |" * len(names)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows]) + "\n"


def document(rows: list[Row]) -> str:
    """The page that is written."""
    equal, no, wrong = ([r for r in rows if f(r)] for f in (
        lambda r: r.verdict == "equal", lambda r: r.verdict == "refused", lambda r: r.wrong))  # fmt: skip
    clipped = sum(r.cells[6].startswith("0 ") for r in equal)
    beyond = sum(float(r.cells[8]) > 1e-5 * max(1, float(r.cells[11])) for r in equal)
    pinned = Path(__file__).with_suffix(".txt").read_text().splitlines()
    names = ["torch", *(line.partition("==")[0] for line in pinned if "==" in line)]
    libraries = ", ".join(f"{name} {version(name)}" for name in names)
    text = f"""# Networks that nobody here wrote

**{len(rows)} networks: {len(equal)} local ones equal the whole image, {len(no)} are refused with the operation and
its module named, {len(wrong)} are wrong.** Of the equal ones {len(equal) - clipped} have reads smaller than the image.

`make bench-networks`, {date.today()}, {platform.machine()}, two processes of one thread;
Python {platform.python_version()},
{libraries}.

## Equal to the whole image

`predict(..., kind="logits")` in small tiles against one pass over `extend(image)`, random weights, prime sizes.
Equal means a difference of at most 1e-5 x max(1, largest value). Where that pass in float32 is itself further than that
from the same in float64 (*whole to float64*), float64 is the reference, within the same tolerance (*to float64*):
{beyond} of them.

*Reads*: how many of the tiles read less than the whole image. *Band*: how many rows of a read go through the network
at a time (as it is where folding would round too far), or why all do. *Without halo*: how far off a tile is that reads
its core alone, to show that the comparison can fail. *Seconds*: building and analysing included. Rows are kept from
run to run.

"""
    header = "network | library | channels | reach | alignment | rate | image | tile | reads | band | max difference | to float64 | whole to float64 | largest value | without halo | seconds"  # noqa: E501
    named = ((r.name, r.library, *r.cells, f"{r.seconds:.1f}") for r in equal)
    text += table(header, named)
    text += """
## Refused

Before anything runs. *Far half*: by how much, of the largest value, the result at the left edge of a 128 x 768 image
changes when the right half of the image is cut away, which for a local network of small reach would be 0.
It is 0, too, where windows of attention wrap around the image's edge and are kept apart by adding -100 to what must
not meet: that holds only while no two scores differ by more, so it is refused. Two more are refused although they are
local, as that is true of values, not of operations: `Canny` compares with a pixel of its padding, and `ResidualUNet2D`
enlarges 2n - 1 rows to 2n, which depends on n by its rounding alone.

"""
    named = ((r.name, r.library, *r.cells) for r in no)
    text += table("network | library | channels | far half | operations", named)
    if wrong:
        text += "\n## Wrong\n\n"
        text += table("network | library | verdict", ((r.name, r.library, r.verdict) for r in wrong))
    return text


def start() -> None:
    """Prepares a process for its networks."""
    global _operators, _peers
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    _operators = add_missing_operators()  # to be kept alive
    _peers = list(peers())


def run_number(number: int) -> Row:
    return run(_peers[number])


def main(wanted: list[str]) -> int:
    start()
    labels = [f"{peer.library} {peer.name}" for peer in _peers]
    numbers = [i for i, label in enumerate(labels) if not wanted or any(word in label for word in wanted)]
    kept = Path(__file__).with_suffix(".json")
    rows = {row["library"] + " " + row["name"]: Row(**row) for row in json.loads(kept.read_text())}
    with ProcessPoolExecutor(2, get_context("spawn"), start) as pool:
        for number, row in zip(numbers, pool.map(run_number, numbers), strict=True):
            rows[labels[number]] = row
            print(f"{labels[number]}: {row.verdict} ({row.seconds:.1f} s) {' | '.join(row.cells)}", flush=True)
            found = [rows[label] for label in labels if label in rows]
            kept.write_text("[\n" + ",\n".join(json.dumps(asdict(row)) for row in found) + "\n]\n")
            kept.with_suffix(".md").write_text(document(found))
    wrong = sum(rows[labels[i]].wrong for i in numbers)
    print(f"{len(numbers)} networks, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
