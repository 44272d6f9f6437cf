"""How much memory a forward pass takes, from the tensors that are alive while it runs."""

from __future__ import annotations

import ctypes
import weakref
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.network.graph import blank
from pipeline.tiling.geometry import ReceptiveField

_measured: weakref.WeakKeyDictionary[nn.Module, float] = weakref.WeakKeyDictionary()


class Alive(TorchDispatchMode):
    """Bytes of all results that are still referred to; `reorders`: a convolution also holds its operands reordered."""

    def __init__(self, reorders: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reorders = reorders
        self.now = self.peak = 0
        self.seen: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation imports torch._dynamo, which takes two seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata in self.seen:
                continue
            self.seen.add(storage._cdata)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        scratch = 0
        if self.reorders and "convolution" in func.name():
            scratch = sum(t.numel() * t.element_size() for t in (*tensors, args[0]))
        self.peak = max(self.peak, self.now + scratch)
        return result

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def forward_bytes(
    module: nn.Module, channels: int, field: ReceptiveField, read: tuple[int, int], dtype: torch.dtype
) -> int:
    """Peak bytes of a forward pass over a read of that many rows and columns, above the weights."""
    if module not in _measured:
        side = [max(a, 256 // a * a) for a in field.alignment]
        with torch.inference_mode(), Alive() as alive:
            module(image := blank(module, channels, side))
        _measured[module] = alive.peak / (side[0] * side[1] * image.element_size())
    return int(_measured[module] * read[0] * read[1] * dtype.itemsize)


def give_back() -> None:
    """What this process has freed goes back to the system, where its allocator can be told so: glibc keeps it."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
