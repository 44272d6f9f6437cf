"""Whether another machine sees what a run reads and writes: asked of every node before anything starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

from pipeline.storage.location import is_url, location_of
from pipeline.storage.reference import Reference

TOKEN = "ledger/token"
"""File in an output's ledger folder that holds a number of this run's own, so that no copy can be taken for it."""
MOST = 32
"""Images and outputs that are looked at, evenly among more of them."""


@dataclass(frozen=True)
class Preflight:
    """What a node must see, and a call that says what it does not. Made where the run is started."""

    images: Sequence[Reference]
    outputs: Sequence[str]
    number: str

    def __call__(self) -> str | None:
        """One line on what is wrong here, if anything. Raises what opening an image raises."""
        for image in self.images:
            with image.reopen() as opened:
                if not opened.is_same():
                    return f"{opened} is not the image of that name where the run was started"
        for output in self.outputs:
            try:
                seen = location_of(output).read(TOKEN) == self.number.encode()
            except FileNotFoundError:
                seen = False
            if not seen:
                return f"the output {output} is not seen: give a folder that all nodes share"
            if not is_url(output) and not os.access(output, os.W_OK):
                return f"the output {output} cannot be written"
        return None

    def close(self) -> None:
        for output in self.outputs:
            location_of(output).remove(TOKEN)


def preflight(images: Sequence[Reference], outputs: Sequence[str]) -> Preflight:
    """Leaves a token in the outputs."""
    number = uuid4().hex
    step = -(-len(images) // MOST)
    for output in outputs[::step]:
        location_of(output).write(TOKEN, [number.encode()])
    return Preflight(images[::step], outputs[::step], number)
