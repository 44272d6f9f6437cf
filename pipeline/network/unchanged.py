"""Networks that change themselves while they run are found before anything has changed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class ChangesItself(ValueError):
    """The network writes into a parameter or buffer of its own."""


class Unchanged(TorchDispatchMode):
    """While open, no operation writes into what the module holds: one that is about to raises ChangesItself.

    Parts in training mode may: they keep count of what they see.
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
        if func._schema.is_mutable:
            for position, argument in enumerate(func._schema.arguments):
                if argument.is_write:
                    self.refuse(args[position] if position < len(args) else kwargs.get(argument.name))
        return func(*args, **kwargs)

    def refuse(self, written: Any) -> None:
        """Raises ChangesItself where one of the tensors that are about to be written into is held."""
        for tensor in written if isinstance(written, list | tuple) else [written]:
            name = self.names.get(_memory(tensor)) if isinstance(tensor, Tensor) and tensor.numel() else None
            if name is not None:
                raise ChangesItself(
                    f"the network changes its {name} in forward, in eval mode too: what it makes of an image would "
                    "depend on those before it; leave that out where not self.training"
                )


def _memory(tensor: Tensor) -> int:
    """What tensors have in common that lie in the same memory."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:  # sparse
        return id(tensor)
