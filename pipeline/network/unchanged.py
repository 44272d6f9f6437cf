"""Networks that change themselves while they run are found, and are as they were afterwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class ChangesItself(ValueError):
    """The network writes into a parameter or buffer of its own."""


class Unchanged(TorchDispatchMode):
    """While open, no operation changes what the module holds: one that does raises ChangesItself, and is undone.

    Writing what is there already is no change. Parts in training mode may change: they keep count of what they see.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: dict[int, str] = {}
        """What is held, by its memory, which views of it share."""
        for path, part in module.named_modules():
            if not part.training:
                for kind, held in ("parameter", part._parameters), ("buffer", part._buffers):
                    for name, tensor in held.items():
                        if tensor is not None:
                            self.names[_memory(tensor)] = f"{kind} {f'{path}.{name}'.removeprefix('.')}"

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation imports torch._dynamo, which takes two seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not func._schema.is_mutable:
            return func(*args, **kwargs)
        held = []
        for position, argument in enumerate(func._schema.arguments):
            if argument.is_write:
                held += self._held(args[position] if position < len(args) else kwargs.get(argument.name))
        before = [tensor.clone() for tensor, _ in held]
        result = func(*args, **kwargs)
        for (tensor, name), was in zip(held, before, strict=True):
            if not torch.equal(tensor, was):
                for (other, _), old in zip(held, before, strict=True):
                    other.copy_(old)
                raise ChangesItself(
                    f"the network changes its {name} in forward, in eval mode too: what it makes of an image would "
                    "depend on those before it; leave that out where not self.training"
                )
        return result

    def _held(self, written: Any) -> list[tuple[Tensor, str]]:
        """Of what is written into, the tensors that the module holds, with their names."""
        tensors = [t for t in (written if isinstance(written, list | tuple) else [written]) if isinstance(t, Tensor)]
        named = [(tensor, self.names.get(_memory(tensor))) for tensor in tensors if tensor.numel()]
        return [(tensor, name) for tensor, name in named if name is not None]


def _memory(tensor: Tensor) -> int:
    """What tensors have in common that lie in the same memory."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:  # sparse
        return id(tensor)
