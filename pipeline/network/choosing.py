"""Chooses the step for each operation of a network, by its name and by how its rows come from those of its inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pipeline.network import moving, pooling, windows
from pipeline.network.flows import CannotStream, Place, Shape, chain
from pipeline.network.graph import Node, Ref, leaves, replaced
from pipeline.network.layouts import Rows, Tracked
from pipeline.network.operations import elementwise, rule_of
from pipeline.network.relations import SAME, Pad, Relation, Resample, Transposed, Window, moves_nothing, repeat
from pipeline.network.sliding import RESIZES
from pipeline.network.steps import GroupNorm, Step
from pipeline.network.tables import Beside, Join, Table, table

VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy"}
SLICES = {"slice", "slice_copy", "narrow"}
WINDOWS: dict[str, type[Step]] = {
    "convolution": windows.Convolution, "_convolution": windows.Convolution,
    "max_pool2d_with_indices": pooling.MaxPool, "max_pool3d_with_indices": pooling.MaxPool,
    "avg_pool2d": pooling.AveragePool, "avg_pool3d": pooling.AveragePool,
    "im2col": windows.Unfold, "unfold": Step,
}  # fmt: skip
"""By names of operations whose rows come from windows of rows."""
SPREADS: dict[str, type[Step]] = {
    "convolution": windows.TransposedConvolution, "_convolution": windows.TransposedConvolution,
    "max_unpool2d": pooling.MaxUnpool, "col2im": windows.Fold,
}  # fmt: skip
"""By names of operations that spread each row over several."""
RESIZED = {
    *RESIZES, "pixel_shuffle", "pixel_unshuffle", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d",
    "adaptive_max_pool3d",
}  # fmt: skip
BESIDE = {"cat", "copy", "slice_scatter"}
"""Operations, beside those element by element, that lay constants over rows and columns as these lie."""


@dataclass(frozen=True)
class Source:
    """How the rows of an operation's results come from those of one of its inputs."""

    relation: Relation
    groups: int
    """Rows that the input holds together, and the operation takes one by one."""


def source(rows: Rows, tracked: Tracked, operands: set[Rows]) -> Source:
    """How rows of a result come from those of an operand that was tracked, one of several.

    Raises:
        CannotStream: they do not, or in a way that no single relation describes.
    """
    place = Place.of(tracked)
    relations = chain(rows, tracked.rows["y"], operands)
    groups = 1
    if place.blocks > 1 and relations and relations[-1] == repeat(place.blocks):
        relations, groups = relations[:-1], place.blocks
    if len(relations) > 1:
        raise CannotStream("its rows come from several places")
    return Source(relations[0] if relations else SAME, groups)


@dataclass(frozen=True)
class Choice:
    """An operation, in two captures, of which the step is to be chosen."""

    nodes: tuple[Node, Node]
    inputs: tuple[int, ...]
    outputs: tuple[int | None, ...]
    """None for what nobody reads."""
    operands: tuple[Tracked, ...]
    """What is tracked of its inputs, with rows that it takes one by one."""
    relations: tuple[Relation, ...]
    """Between the rows of its results and those of each input."""
    result: Tracked
    """What is tracked of its first result that somebody reads."""

    @property
    def name(self) -> str:
        return self.nodes[0].name

    @property
    def place(self) -> Place:
        return Place.of(self.result)

    @property
    def made(self) -> dict[str, Any]:
        """What every step has."""
        return {
            "node": self.nodes[0], "inputs": self.inputs, "outputs": self.outputs, "dim": self.place.dim,
            "shape": Shape.of(self.result), "relation": self.relations[0],
        }  # fmt: skip

    @property
    def plain(self) -> bool:
        """Whether rows lie in the same dimension before and after, and nothing else does."""
        places = {Place.of(tracked) for tracked in (*self.operands, self.result)}
        return len(places) == 1 and self.place.plain

    def works_on(self, argument: str = "dim") -> int:
        """The dimension that the operation is told."""
        return int(self.nodes[0].bound()[argument]) % self.operands[0].ndim

    def step(self) -> Step:
        """The step.

        Raises:
            CannotStream: there is none.
        """
        step = self._moving() or self._over_windows()
        if step is not None:
            return step
        rows = {tracked.rows["y"].sizes for tracked in (*self.operands, self.result)}
        if len(rows) > 1 or not all(map(moves_nothing, self.relations)):
            raise CannotStream("runs on whole maps only")
        return self._row_by_row()

    def _moving(self) -> Step | None:
        """For operations that move elements about."""
        name, relation = self.name, self.relations[0]
        if name in VIEWS:
            if "dtype" in self.nodes[0].bound():
                raise CannotStream("takes the bits of numbers for those of another type")
            return moving.Reshape(**self.made)
        if name in ("expand", "expand_copy"):
            return moving.Expand(**self.made)
        if name in SLICES and isinstance(relation, Window) and self.operands[0].axes([self.works_on()]):
            return moving.Slice(**self.made)
        if name in ("index", "index_select") and self._picks():
            return moving.Pick(**self.made, columns=self._columns())
        if name == "cat" and isinstance(relation, Pad) and self.plain:
            return self._beside(Join)
        if name == "slice_scatter" and self.result.axes([self.works_on()]) and self.plain:
            return self._write()
        return None

    def _write(self) -> Step | None:
        put = self.relations[-1]
        told = [isinstance(self.nodes[0].bound()[argument], Ref) for argument in ("self", "src")]
        if not told[1] or sum(told) != len(self.inputs) or not isinstance(put, Transposed | Window):
            return None
        write = moving.Write(**self.made, source=put if isinstance(put, Transposed) else moving.ONE_BY_ONE)
        return replace(write, node=self._with_tables())

    def _picks(self) -> bool:
        """Whether rows or columns are picked, which lie in dimensions of their own."""
        dims = self._indexed()
        alone = all(len(self.operands[0].layout[dim]) == 1 for dim in dims)
        return alone and self.plain and bool(self.operands[0].axes(dims))

    def _indexed(self) -> list[int]:
        bound = self.nodes[0].bound()
        if self.name == "index_select":
            return [self.works_on()]
        return [dim for dim, index in enumerate(bound["indices"]) if index is not None]

    def _columns(self) -> Relation:
        columns = chain(self.result.rows["x"], self.operands[0].rows["x"], {self.operands[0].rows["x"]})
        return columns[0] if columns else SAME

    def _over_windows(self) -> Step | None:
        """For operations over windows, and those that resize."""
        name, relation, made = self.name, self.relations[0], self.made
        kind = (SPREADS if isinstance(relation, Transposed) else WINDOWS).get(name)
        folds = name in ("im2col", "col2im") and self._folds()
        if kind is not None and folds:
            return kind(**made)
        if not self.plain:
            return None
        back = self.result.ndim - self.place.dim
        if self._counts_places(back):
            raise CannotStream("its places are counted in other dimensions than rows and columns")
        if kind is not None and self._extends(back) and isinstance(relation, Window | Transposed):
            return kind(**made)
        if name in RESIZED and isinstance(relation, Resample | Window):
            return self._resize(relation)
        if isinstance(relation, Pad):
            return windows.Padding(**made)
        return None

    def _folds(self) -> bool:
        """Whether windows of rows and columns, which are the last two dimensions, become one, or become them."""
        image, lines = sorted((self.operands[0], self.result), key=lambda tracked: Place.of(tracked).merged)
        place = Place.of(image)
        return place.plain and place.dim == image.ndim - 2 and Place.of(lines) == Place(lines.ndim - 1, 1, True)

    def _extends(self, back: int) -> bool:
        """Whether windows extend along rows: these lie in one of the last 1, 2 or 3 dimensions."""
        counts = (n for n in (1, 2, 3) if f"{n}d" in self.name)
        return self.name == "unfold" or back <= next(counts, self.result.ndim - 2)

    def _counts_places(self, back: int) -> bool:
        """Whether places of maxima matter, that are not y * columns + x."""
        read = self.name == "max_unpool2d" or (self.name.startswith("max_pool") and self.outputs[1] is not None)
        return read and not (back == 2 and "2d" in self.name and self.result.axes([-1]) == {"x"})

    def _resize(self, relation: Resample | Window) -> Step:
        if any(number is not None for number in self.outputs[1:]):
            raise CannotStream("its places are those in a part of the image")
        return windows.Resize(**self.made, period=windows.period_of(relation))

    def _row_by_row(self) -> Step:
        """For operations of which every row is computed from the same row of every input."""
        if self._tables():
            if self.name not in BESIDE and rule_of(self.nodes[0]) is not elementwise:
                raise CannotStream("is told values that depend on the image's size")
            return self._beside(Beside)
        if self.name == "native_group_norm":
            return GroupNorm(**self.made)
        self._same_numbers()
        return Step(**self.made)

    def _beside(self, kind: type[Beside]) -> Step:
        self._same_numbers()
        return kind(**{**self.made, "node": self._with_tables()})

    def _with_tables(self) -> Node:
        tables, node = self._tables(), self.nodes[0]

        def put(leaf: Any) -> Any:
            return tables.get(id(leaf), leaf)

        return replace(node, args=replaced(node.args, put), kwargs=replaced(node.kwargs, put))

    def _tables(self) -> dict[int, Table]:
        """By their identity, the constants that are larger for larger images.

        Raises:
            CannotStream: there is one that does not repeat.
        """
        pairs = zip(*(_leaves(node) for node in self.nodes), strict=True)
        return {
            id(a): table((a, b), self.result, self.place.dim)
            for a, b in pairs
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape != b.shape
        }

    def _same_numbers(self) -> None:
        """Raises CannotStream where the operation is told other numbers for images of another size."""
        told = ([a for a in _leaves(node) if not isinstance(a, Tensor | Ref)] for node in self.nodes)
        if not all(a == b or (a != a and b != b) for a, b in zip(*told, strict=True)):
            raise CannotStream("is told sizes that depend on the image's")


def _leaves(node: Node) -> list[Any]:
    """What the operation is told: numbers, constants, and references to what depends on the image."""
    return leaves((node.args, node.kwargs))
