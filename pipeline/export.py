"""python -m pipeline.export NETWORK OUT.pt2: a network as a program that runs without this package."""

from __future__ import annotations

from pipeline.commands import Parser, run


def main() -> int:
    p = Parser(prog="python -m pipeline.export", description=__doc__)
    p.add_argument("network", metavar="NETWORK", help="the folder of a training run, or a built-in's name")
    p.add_argument("output", metavar="OUT.pt2", help="a new file")
    given = p.parse_args()
    from pipeline import api

    print(f"{api.export(given.network, given.output)}: images of any size; stored values in, logits out")
    return 0


if __name__ == "__main__":
    run(main)
