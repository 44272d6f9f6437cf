"""python -m pipeline.verify OUT: recompute windows from larger reads and compare checksums."""

from __future__ import annotations

from pipeline.commands import Parser, is_sound, run


def main() -> int:
    p = Parser(prog="python -m pipeline.verify", description=__doc__)
    p.add_argument("output", metavar="OUT")
    p.add_argument("--image", help="where the output cannot name it, or it has moved")
    p.add_argument("--network", help="where the output cannot name it, or it has moved")
    given = p.parse_args()
    from pipeline import api

    return 0 if is_sound(given.output, api.verify(given.output, given.image, given.network)) else 1


if __name__ == "__main__":
    run(main)
