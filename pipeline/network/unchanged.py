"""Networks that change themselves while they run are found, and are as they were afterwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class ChangesItself(ValueError):
    """The network writes into a parameter or buffer of its own."""


class Unchanged(TorchDispatchMode):
    """Within it, a module runs that is to hold afterwards what it held before; where it does not, that is put back.

    Raises ChangesItself at the end then. To write what was there is no change, nor is what parts in training mode do:
    they keep count of what they see.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held: dict[int, tuple[str, Tensor, Tensor]] = {}
        """By its memory, which views of it share: the name, what is held, and the same in the memory that it had."""
        self.before: dict[int, Tensor] = {}
        """Copies of what was written into."""
        for path, part in module.named_modules():
            if not part.training:
                for kind, held in ("parameter", part._parameters), ("buffer", part._buffers):
                    for name, tensor in held.items():
                        if tensor is not None and tensor.numel():
                            said = f"{kind} {f'{path}.{name}'.removeprefix('.')}"
                            self.held[_memory(tensor)] = said, tensor, tensor.detach()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation imports torch._dynamo, which takes two seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for position, argument in enumerate(func._schema.arguments):
                if argument.is_write:
                    self.note(args[position] if position < len(args) else kwargs.get(argument.name))
        return func(*args, **kwargs)

    def note(self, written: Any) -> None:
        """Copies what is held of the tensors that are about to be written into."""
        for tensor in written if isinstance(written, list | tuple) else [written]:
            memory = _memory(tensor) if isinstance(tensor, Tensor) else 0
            if memory in self.held and memory not in self.before:
                self.before[memory] = self.held[memory][2].clone()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        changed = [said for memory, (said, *_) in self.held.items() if self._put_back(memory)]
        self.before.clear()
        if changed and kind is None:
            raise ChangesItself(
                f"the network changes its {changed[0]} in forward, in eval mode too: what it makes of an image would "
                "depend on those before it; leave that out where not self.training"
            )

    def _put_back(self, memory: int) -> bool:
        """Whether what is held in that memory was another thing, and is no more."""
        _, tensor, place = self.held[memory]
        before = self.before.get(memory, place)
        if before is place and _memory(tensor) == memory:
            return False
        changed = tensor.shape != before.shape or not torch.equal(tensor.detach(), before)
        if before is not place:
            place.copy_(before)
        tensor.data = place
        return changed


def _memory(tensor: Tensor) -> int:
    """What tensors have in common that lie in the same memory."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:  # sparse
        return id(tensor)
