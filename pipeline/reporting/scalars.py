"""The numbers of a training run's log by name, as they are drawn elsewhere: each step once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Scalar = tuple[str, float, int]
"""Name, value and step."""
FIRST = {"training": "training/lr", "validation": "validation/mean_iou", "test": "test/mean_iou"}
"""Of each part of the log a number that its lines have."""


class Scalars:
    """What a log that is read as it grows has of numbers.

    Lines of a step that was done again, after a worker's death, are passed over. `seen`: of each part of the log, the
    last step that is known already.
    """

    def __init__(self, seen: Mapping[str, int] | None = None) -> None:
        self.seen = dict.fromkeys(FIRST, 0) | dict(seen or {})

    def new(self, lines: Iterable[Mapping[str, Any]]) -> Iterator[Scalar]:
        """Those of lines of metrics.jsonl; what has no value is left out."""
        for line in lines:
            step = line["step"]
            for part, values in _parts(line):
                if step > self.seen[part]:
                    self.seen[part] = step
                    yield from ((f"{part}/{key}", value, step) for key, value in values.items() if value is not None)


def _parts(line: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float | None]]]:
    if "loss" in line:
        yield "training", {key: line.get(key) for key in ("loss", "lr", "seconds")}
    for part in ("validation", "test"):
        if part in line:
            by_class = {f"iou/{number}": score for number, score in enumerate(line[part]["iou"])}
            yield part, {"mean_iou": line[part]["mean_iou"], **by_class}


def as_utf8(name: str) -> str:
    """The name with \\udce4 in place of a byte that is none of UTF-8, as a file's name may hold and no text may."""
    return name.encode(errors="backslashreplace").decode()
