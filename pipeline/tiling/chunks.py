"""Where tiles lie on an array that comes in chunks of its own, and which chunks a read needs.

One axis, alignment 4, halo 3 + 3, chunks of 10, 2, 1, 13 rows:

    chunks     |--- 10 ---|2|1|----- 13 -----|
    cores      |---- 12 ----|------ 14 ------|      bounds at multiples of 4; what is smaller than the halo is merged
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from pipeline.tiling.geometry import Interval
from pipeline.tiling.grid import Axis

MERGED = 4
"""Chunks smaller than the halo are put together until a core has at least as many halos."""


def bounds(axis: Axis, chunks: Sequence[int]) -> tuple[list[int], bool]:
    """Rows of the extended image at which cores begin and end, and whether chunks smaller than the halo were merged."""
    a, halo = axis.alignment, axis.before + axis.after
    snapped = [(at + a // 2) // a * a for at in accumulate(chunks[:-1])]
    cuts = [0]
    need, merged = 0, False
    for at in [*sorted({at for at in snapped if 0 < at < axis.extended}), axis.extended]:
        size = at - cuts[-1]
        if not need:
            need = halo if size >= halo else MERGED * halo
        if size >= need:
            cuts.append(at)
            need = 0
        else:
            merged = True
    if 0 < axis.extended - cuts[-1] < halo:  # what is left over goes to the core before
        cuts[max(1, len(cuts) - 1) :] = []
    if cuts[-1] != axis.extended:
        cuts.append(axis.extended)
    return cuts, merged and len(chunks) > 1


def split(cuts: Sequence[int], limit: int, alignment: int) -> list[int]:
    """The same bounds with more between them: no core has more rows than `limit`, a multiple of the alignment."""
    finer = [cuts[0]]
    for start, stop in pairwise(cuts):
        parts = -(-(stop - start) // limit)
        step = -(-(stop - start) // (parts * alignment)) * alignment
        finer += [*range(start + step, stop, step), stop]
    return finer


def cores(axis: Axis, cuts: Sequence[int]) -> list[Interval]:
    """Output rows of each core between the bounds; together all rows of the output, none of them empty."""
    starts = [row for row in (int(at * axis.rate) for at in cuts[:-1]) if row < axis.output]
    return [Interval(*pair) for pair in pairwise([*starts, axis.output])]


def parts(rows: Interval, chunks: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """The chunks that hold the rows, in order, each with the slice of it that is needed."""
    ends = list(accumulate(chunks))
    number = bisect_right(ends, rows.start)
    while rows.size:
        start = ends[number] - chunks[number]
        piece = rows.clip(start, ends[number])
        yield number, piece.shift(-start).slice
        rows = Interval(piece.stop, rows.stop)
        number = bisect_right(ends, rows.start)
