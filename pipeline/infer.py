"""python -m pipeline.infer IMAGE: the network's prediction, stitched without seams."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Any

from pipeline import Plan
from pipeline.commands import Parser, predict, run

DTYPES = "float32", "float64", "bfloat16", "float16"
ACTIVATION = "of probability (default: as the network's card says, else softmax, or sigmoid of one channel)"


def numbers(kind: type[int] | type[float], count: int = 0) -> Callable[[str], tuple[float, ...]]:
    """A parser of numbers with commas between them."""

    def parse(text: str) -> tuple[float, ...]:
        try:
            found = tuple(kind(part) for part in text.split(","))
            if count in (0, len(found)):
                return found
            raise ValueError(f"{len(found)} numbers")
        except ValueError:
            what = "whole numbers" if kind is int else "numbers"
            example = "512,512" if kind is int else "0.5,0.5,0.5"
            raise ArgumentTypeError(f"{text!r} is not {what} with commas between them, such as {example}") from None

    return parse


def parse() -> dict[str, Any]:
    p = Parser(prog="python -m pipeline.infer", description=__doc__)
    p.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or patterns such as 'photos/*.jpg'")
    p.add_argument("-o", "--output", help="the output; a folder for several images or a pattern, or FOLDER/")
    p.add_argument("--network", help="a .pt2 file, a network folder or a built-in's name (default: nuclei)")
    p.add_argument("--kind", choices=("mask", "probability", "logits"), help="what is stored (default: mask)")
    p.add_argument("--engine", choices=("local", "ray", "dask"), help="where work runs (default: local)")
    p.add_argument("--workers", type=int, help="processes (default: as many as CPUs and memory allow), or Ray actors")
    p.add_argument("--worker-cpus", type=float, metavar="N", help="CPUs that a Ray actor asks for (default: 1)")
    p.add_argument("--worker-gpus", type=float, metavar="N", help="GPUs that a Ray actor asks for (default: 0)")
    p.add_argument("--address", help="HOST:PORT of a Ray cluster's head, or auto (default: RAY_ADDRESS, else our own)")
    p.add_argument("--scheduler", metavar="URL", help="tcp://HOST:PORT of a Dask scheduler (default: our own)")
    p.add_argument("--memory", help="what one worker may use, such as 2GB (default)")
    p.add_argument("--tile", type=numbers(int, 2), metavar="Y,X", help="core of a tile in pixels")
    p.add_argument("--channels", type=numbers(int), metavar="0,1,2", help="channels of the image, in order")
    for name in ("scale", "mean", "std"):
        p.add_argument(f"--{name}", type=numbers(float), help="(value * scale - mean) / std, where no card says it")
    p.add_argument("--axes", help="axes of the image where it does not name them, such as CYX")
    p.add_argument("--level", type=int, help="resolution level of the image, 0 the finest")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), help="cuda is untried on hardware")
    p.add_argument("--precision", choices=DTYPES, help="numbers that the network computes with (default: float32)")
    p.add_argument("--mode", choices=("exact", "blend"), help="blend approximates networks that are not local")
    p.add_argument("--window", type=int, help="side of the windows of --mode blend")
    p.add_argument("--reach", type=int, help="pixels that an unknown operation's network sees on each side")
    p.add_argument("--key", help="of the output to take, where the network returns several")
    p.add_argument("--activation", choices=("softmax", "sigmoid", "none"), help=ACTIVATION)
    p.add_argument("--store", choices=("uint8", "float32"), help="of probability (default: uint8)")
    p.add_argument("--tune", action="store_true", help="measure which height of bands is fastest here, before the run")
    p.add_argument("--overwrite", action="store_true", help="begin anew in place of an output that is there")
    p.add_argument("--dry-run", action="store_true", help="say what would be done and what it takes, and do nothing")
    p.add_argument("--verify", action="store_true", help="recompute parts of the result afterwards, and compare")
    return {k: v for k, v in vars(p.parse_args()).items() if v is not None and v is not False}


def main() -> int:
    given = parse()
    from pipeline import api

    typed = given.pop("images")
    images, several = api.asked_for(typed if len(typed) > 1 else typed[0])
    output, net, verify = given.pop("output", None), given.pop("network", None), given.pop("verify", False)
    if given.pop("dry_run", False):
        for image, (plan, seconds) in zip(images, api.forecasts(images, net, **given), strict=True):
            print(describe(image, plan, seconds))
        return 0
    if several and output is None:
        raise ValueError("several images, or a pattern, need a folder for their outputs: -o FOLDER")
    folder = several or ((output or "").endswith("/") and not (output or "").endswith(".zarr/"))
    target = api.default_output(images[0]) if output is None else output
    return predict(images, target, net, folder=folder, verify=verify, given=given)


def describe(image: str, plan: Plan, seconds: float) -> str:
    """What a run would do, for --dry-run."""
    f = plan.field
    return "\n".join(
        (
            f"{image}: {plan.size[0]} rows x {plan.size[1]} columns, {plan.planes} planes",
            f"network {plan.network['name'] if plan.network else ''}: reach {f.before} before, {f.after} after, "
            f"alignment {f.alignment}, rate {float(f.rate[0]):g} x {float(f.rate[1]):g}",
            f"{plan.tiles} tiles of {plan.core[0]} x {plan.core[1]}, read amplification {plan.read_amplification:.3f}, "
            + (f"in bands of {plan.band} rows" if plan.band else f"whole, not in bands: {plan.whole}"),
            f"memory of a worker: {plan.memory / 1e6:.0f} MB and about 300 MB of interpreter and libraries",
            f"output: {plan.kind}, {plan.layout.dtype}, {plan.output_bytes / 1e6:.0f} MB before compression",
            f"time: about {seconds:.0f} s, by the speed of one piece",
        )
    )


if __name__ == "__main__":
    run(main)
