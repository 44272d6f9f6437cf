"""Half-open regions and the receptive field: the vocabulary in which tiles are described."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Interval:
    """Rows [start, stop) of one axis."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)

    def shift(self, by: int) -> Interval:
        return Interval(self.start + by, self.stop + by)

    def clip(self, start: int, stop: int) -> Interval:
        """The part within [start, stop); empty (size 0) where there is none."""
        low = min(max(self.start, start), stop)
        return Interval(low, max(low, min(self.stop, stop)))


@dataclass(frozen=True, slots=True)
class Region:
    """Pixels [y.start, y.stop) x [x.start, x.stop)."""

    y: Interval
    x: Interval

    @classmethod
    def of(cls, y0: int, y1: int, x0: int, x1: int) -> Region:
        return cls(Interval(y0, y1), Interval(x0, x1))

    @property
    def shape(self) -> tuple[int, int]:
        return self.y.size, self.x.size

    @property
    def slices(self) -> tuple[slice, slice]:
        return self.y.slice, self.x.slice

    def clip(self, height: int, width: int) -> Region:
        """The part within an image of height x width."""
        return Region(self.y.clip(0, height), self.x.clip(0, width))


@dataclass(frozen=True)
class ReceptiveField:
    """What one output of a network sees of its input; pairs are (y, x).

    With rate r, output row o stands for the input rows [o / r, (o + 1) / r); it sees at most `before` rows above
    and `after` rows below them. Shifting the input by a multiple of `alignment` shifts the output and changes
    nothing else, and on an input of a multiple of it the output has r * size + surplus rows (surplus is negative
    for valid convolutions).
    """

    before: tuple[int, int]
    after: tuple[int, int]
    alignment: tuple[int, int]
    rate: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1))
    surplus: tuple[int, int] = (0, 0)
    least: tuple[int, int] = (1, 1)
    """Fewer rows and columns than these, the network does not run on."""
    offset: tuple[float, float] = (0.0, 0.0)
    """Centre of output (0, 0), in input pixels: 0 for a network that keeps the size."""
    halo: tuple[tuple[int, int], tuple[int, int]] | None = None
    """For rows and for columns, what a core that begins and ends at multiples of the alignment needs before and after
    it: less than the reach where only outputs within such a stretch see that far. The reach where it is not known."""
    nonlocal_operations: tuple[str, ...] = field(default=())
    """One line "module.path: operation: reason" for each operation that sees the whole image."""

    def halo_of(self, axis: int) -> tuple[int, int]:
        """Before and after a core, for rows (0) or columns (1)."""
        return (self.before[axis], self.after[axis]) if self.halo is None else self.halo[axis]

    @property
    def is_local(self) -> bool:
        return not self.nonlocal_operations

    def output_shape(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the result for an image of height x width; 0 where the image is too small."""
        rows, columns = (
            max(0, -(-size * r.numerator // r.denominator) + surplus)
            for size, r, surplus in zip((height, width), self.rate, self.surplus, strict=True)
        )
        return rows, columns

    def extended(self, height: int, width: int) -> tuple[int, int]:
        """Height and width rounded up to the alignment."""
        rows, columns = (-(-size // a) * a for size, a in zip((height, width), self.alignment, strict=True))
        return rows, columns
