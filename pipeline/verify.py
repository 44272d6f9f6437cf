"""python -m pipeline.verify OUT...: recompute windows from larger reads and compare checksums."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.commands import Parser, is_sound, one_line, run


def main() -> int:
    p = Parser(prog="python -m pipeline.verify", description=__doc__)
    p.add_argument("outputs", nargs="+", metavar="OUT", help="an output, or a folder with outputs directly in it")
    p.add_argument("--image", help="of a single output: where it cannot name its image, or that has moved")
    p.add_argument("--network", help="where the output cannot name it, or it has moved")
    given = p.parse_args()
    from pipeline import api

    outputs = api.outputs_asked_for(given.outputs)
    if outputs == given.outputs and len(outputs) == 1:
        return 0 if is_sound(outputs[0], api.verify(outputs[0], given.image, given.network)) else 1
    if given.image is not None and len(outputs) > 1:
        raise ValueError(f"--image is for one output, and these are {len(outputs)}: {outputs[0]} ...")
    return verify_all(outputs, given.image, given.network)


def verify_all(outputs: Sequence[str], image: str | None, network: str | None) -> int:
    """A line for each and one for all; 1 where one is not sound, else 2 where one could not be verified."""
    from pipeline import api

    sound, unsound = 0, 0
    for output in outputs:
        try:
            ok = is_sound(output, api.verify(output, image, network))
        except (ValueError, OSError) as error:
            said = one_line(error)
            print("error: " + (said if said.startswith(output) else f"{output}: {said}"), file=sys.stderr)
            continue
        sound, unsound = sound + ok, unsound + (not ok)
    print(f"{sound} of {len(outputs)} outputs are sound")
    return 1 if unsound else 0 if sound == len(outputs) else 2


if __name__ == "__main__":
    run(main)
