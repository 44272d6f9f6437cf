"""python -m pipeline.verify OUT: recompute windows from larger reads and compare checksums."""

from __future__ import annotations

from pipeline.commands import Parser, run


def main() -> int:
    p = Parser(prog="python -m pipeline.verify", description=__doc__)
    p.add_argument("output", metavar="OUT")
    p.add_argument("--image", help="where the output cannot name it, or it has moved")
    p.add_argument("--network", help="where the output cannot name it, or it has moved")
    given = p.parse_args()
    from pipeline import api

    report = api.verify(given.output, given.image, given.network)
    for place in report.places:
        print(place)
    verdict = "sound" if report.ok else "NOT SOUND"
    print(
        f"{given.output}: {verdict}: {report.windows} windows, {report.shards} shards, max difference "
        f"{report.max_difference:g} ({report.where})"
    )
    return 0 if report.ok else 1


if __name__ == "__main__":
    run(main)
