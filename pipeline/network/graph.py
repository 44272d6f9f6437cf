"""What a network computes, as a list of ATen operations recorded while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from pipeline.network.prepare import Prepared, naming
from pipeline.network.unchanged import ChangesItself, Unchanged

UNINITIALISED = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"}


@dataclass(frozen=True)
class Ref:
    """Stands in a node's arguments for a tensor that depends on the input's values."""

    value: int


@dataclass(frozen=True)
class Node:
    """One operation; tensors among its arguments are constants (weights, tables), computed ones are `Ref`s."""

    op: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int | None, ...]
    """Values that it makes; None for an output that is no tensor."""
    path: str
    """Dotted path of the module that ran it, "" for the network itself."""
    module: str
    """Class name of that module."""

    @property
    def name(self) -> str:
        """The operation without its overload: "convolution"; with its namespace where that is not aten."""
        return self.op._schema.name.removeprefix("aten::")

    @cached_property
    def references(self) -> list[int]:
        """Values among its arguments, in their order; one that stands there twice is there twice."""
        return references((self.args, self.kwargs))

    @cached_property
    def constants(self) -> int:
        """How many tensors among its arguments do not depend on the input."""
        return sum(isinstance(leaf, torch.Tensor) for leaf in leaves((self.args, self.kwargs)))

    @property
    def counts(self) -> bool:
        """Whether the size of its result may depend on values, not on sizes alone."""
        if self.name != "index":
            return torch.Tag.dynamic_output_shape in self.op.tags
        return any(not isinstance(i, torch.Tensor) for i in leaves(self.args[1]) if i is not None)

    def bound(self) -> dict[str, Any]:
        """All arguments by the names of the operation's schema, defaults included."""
        bound = dict(self.kwargs)
        for position, argument in enumerate(self.op._schema.arguments):
            if position < len(self.args):
                bound[argument.name] = self.args[position]
            else:
                bound.setdefault(argument.name, argument.default_value if argument.has_default_value() else None)
        return bound


@dataclass(frozen=True)
class Graph:
    """The operations between input and output, in the order in which they ran. In-place operations and writes into
    views appear as pure ones, and what only depends on sizes or weights is folded into constants."""

    nodes: tuple[Node, ...]
    shapes: dict[int, tuple[int, ...]]
    dtypes: dict[int, torch.dtype]
    input: int
    output: int


def leaves(tree: Any) -> list[Any]:
    """What lies in an operation's arguments or results: lists, tuples and dicts of anything.

    A fraction of the time that torch's own trees of all kinds take.
    """
    found: list[Any] = []
    parts = [tree]
    while parts:
        part = parts.pop()
        if isinstance(part, (list, tuple)):
            parts.extend(part[::-1])
        elif isinstance(part, dict):
            parts.extend(reversed(part.values()))
        else:
            found.append(part)
    return found


def replaced(tree: Any, change: Callable[[Any], Any]) -> Any:
    """The same tree with each leaf as `change` returns it."""
    if isinstance(tree, list | tuple):
        return type(tree)([replaced(part, change) for part in tree])
    if isinstance(tree, dict):
        return {key: replaced(part, change) for key, part in tree.items()}
    return change(tree)


def references(tree: Any) -> list[int]:
    """Values that the arguments refer to."""
    return [leaf.value for leaf in leaves(tree) if isinstance(leaf, Ref)]


READS_VALUES = {"tolist", "numpy", "__array__", "__dlpack__"}
"""Methods of a tensor that hand its values to Python without running an operation."""


class _BelowOperations(TorchFunctionMode):
    """Records what the calls say better than the operations that they are made of, or what runs no operation.

    Circular padding is one operation, not copies of rows. Values that go to Python are read from the plain tensor.
    """

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in READS_VALUES:
            tensor = _unwrap(args[0])
            self.note(torch.ops.aten._local_scalar_dense.default, tensor, (), None)
            return func(tensor, *args[1:], **kwargs)
        result = func(*args, **kwargs)
        if "circular" in args[1:4] or kwargs.get("mode") == "circular":
            amounts = list(args[1] if len(args) > 1 else kwargs["pad"])
            self.note(torch.ops.aten.pad.default, _unwrap(args[0]), (amounts, "circular"), _unwrap(result))
        return result

    def note(self, op: Any, tensor: Any, arguments: tuple[Any, ...], result: Any) -> None:
        """Adds an operation on a tensor that depends on the input; on others there is nothing to follow."""
        recorder = self.recorder
        if tensor in recorder.values:
            path, kind = recorder.stack[-1]
            reference = Ref(recorder.values[tensor])
            output = recorder.add(result) if isinstance(result, torch.Tensor) else None
            recorder.nodes.append(Node(op, (reference, *arguments), {}, (output,), path, kind))


class _Recorder(TorchDispatchMode):
    """Records every operation that has the input or something computed from it among its arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values: Any = WeakTensorKeyDictionary()
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.dtypes: dict[int, torch.dtype] = {}
        self.nodes: list[Node] = []
        self.stack: list[tuple[str, str]] = [("", "")]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation imports torch._dynamo, which takes two seconds

    def add(self, tensor: torch.Tensor) -> int:
        number = len(self.shapes)
        self.values[tensor] = number
        self.shapes[number] = tuple(tensor.shape)
        self.dtypes[number] = tensor.dtype
        return number

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}

        def refer(leaf: Any) -> Any:
            return Ref(self.values[leaf]) if isinstance(leaf, torch.Tensor) and leaf in self.values else leaf

        referred = replaced((args, kwargs), refer)
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name in UNINITIALISED and result.numel():
            result.zero_()
        if references(referred) and not name.startswith("new_"):  # those take no more than a type from their operand
            outputs = tuple(self.add(leaf) if isinstance(leaf, torch.Tensor) else None for leaf in leaves(result))
            path, kind = self.stack[-1]
            self.nodes.append(Node(func, referred[0], referred[1], outputs, path, kind))
        return result


@contextlib.contextmanager
def _module_paths(module: nn.Module, stack: list[tuple[str, str]]) -> Iterator[None]:
    """While open, the last entry of `stack` is path and class of the module that runs."""

    def enter(path: str) -> Callable[..., None]:
        return lambda m, _: stack.append((path, type(m).__name__))

    def leave(*_: Any) -> None:
        stack.pop()

    handles = []
    try:
        for path, child in module.named_modules():
            if isinstance(module, Prepared):  # its own parts are no news to the caller
                path = path.removeprefix("network").removeprefix(".")
            handles.append(child.register_forward_pre_hook(enter(path), prepend=True))
            handles.append(child.register_forward_hook(leave))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _functional() -> Iterator[None]:
    """While open, in-place operations reach the recorder as pure ones (slice_scatter for writes into a slice)."""
    torch._enable_functionalization(reapply_views=True)
    try:
        yield
    finally:
        torch._disable_functionalization()


def _unwrap(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor) and torch._is_functional_tensor(leaf):
        torch._sync(leaf)  # type: ignore[no-untyped-call,attr-defined]
        return torch._from_functional_tensor(leaf)
    return leaf


def device_of(module: nn.Module) -> torch.device:
    """Where the module's weights are; the CPU where it has none."""
    return next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def dtype_of(module: nn.Module) -> torch.dtype:
    """The floating-point type of the module's weights; float32 where it has none."""
    held = (*module.parameters(), *module.buffers())
    return next((tensor.dtype for tensor in held if tensor.is_floating_point()), torch.float32)


def probe(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An input of fixed pseudo-random values in [0, 1), without touching torch's own generator."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(tuple(shape), generator=generator).to(device=device, dtype=dtype)


def blank(module: nn.Module, channels: int, size: Sequence[int]) -> torch.Tensor:
    """An input of zeros (1, channels, y, x) of the module's own type and on its device."""
    return torch.zeros(1, channels, *size, dtype=dtype_of(module), device=device_of(module))


def single_output(result: Any) -> torch.Tensor:
    """The network's one output tensor.

    Raises:
        ValueError: there are several, or none.
    """
    tensors = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, torch.Tensor)]
    if len(tensors) != 1:
        names = f" ({', '.join(map(str, result))})" if isinstance(result, dict) else ""
        first = next(iter(result), 0) if isinstance(result, dict) else 0
        raise ValueError(f"the network returns {len(tensors)} tensors{names}: {naming(first)}")
    return tensors[0]


class CaptureError(ValueError):
    """The network failed on an input of that size; `path` is the module in which it did."""

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


def capture(module: nn.Module, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> Graph:
    """The graph of the module for one input of shape (c, y, x), from one forward pass; nothing of the module changes.

    Raises:
        CaptureError: the network fails on that input.
        ValueError: its output is not one tensor, or does not depend on the input, or it changes itself.
    """
    recorder = _Recorder()
    buffers = [(b, b.clone()) for m in module.modules() if m.training for b in m.buffers(recurse=False)]
    image = probe((1, *shape), dtype, device_of(module))
    number = recorder.add(image)
    try:
        # in a caller's inference mode operations are not broken down to the ones that the rules are for
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
            _module_paths(module, recorder.stack),
            Unchanged(module.network if isinstance(module, Prepared) else module),
            _BelowOperations(recorder),
            recorder,
        ):
            wrapped = torch._to_functional_tensor(image)
            with _functional():
                result = tree_map(_unwrap, module(wrapped))
    except ChangesItself:
        raise
    except Exception as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CaptureError(text, recorder.stack[-1][0]) from error
    finally:
        for buffer, before in buffers:
            buffer.data.copy_(before)
    output = recorder.values.get(single_output(result))
    if output is None:
        raise ValueError("the network's output does not depend on its input")
    return _without_dead_ends(Graph(tuple(recorder.nodes), recorder.shapes, recorder.dtypes, number, output))


def _without_dead_ends(graph: Graph) -> Graph:
    """The graph without operations that do not lead to the output; those that steer Python code are kept.

    As does one of which Python may ask for no more than how many elements its result has.
    """
    needed, kept = {graph.output}, []
    for node in reversed(graph.nodes):
        steers = all(value is None for value in node.outputs) or node.counts
        if needed.intersection(node.outputs) or steers:
            needed.update(node.references)
            kept.append(node)
    return replace(graph, nodes=tuple(reversed(kept)))
