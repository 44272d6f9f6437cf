"""A hash by which a network is known again: weights, structure, normalisation; never a path, a time or an address."""

from __future__ import annotations

import hashlib
import json
import re
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule


def identify(module: nn.Module, card: dict[str, Any]) -> str:
    """ "sha256:..." of the module; a card that names an architecture stands for the module's code."""
    digest = hashlib.sha256()
    keys = ("architecture", "arguments", "normalise", "channels")
    named = {key: card.get(key) for key in keys}
    digest.update(json.dumps(named, sort_keys=True, default=str).encode())
    if not card.get("architecture"):
        for line in structure(module):
            digest.update(f"{line}\n".encode())
    for key, tensor in tensors(module):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return f"sha256:{digest.hexdigest()}"


def structure(module: nn.Module) -> Iterator[str]:
    """A line for each part: its path, class, settings and, unless the class is torch's own, its code."""
    for path, part in module.named_modules():
        settings = {k: _plain(v) for k, v in sorted(vars(part).items()) if not k.startswith("_") and k != "training"}
        yield f"{path} {type(part).__name__} {re.sub(r' at 0x[0-9a-f]+', '', part.extra_repr())} {settings}"
        if isinstance(part, GraphModule):
            yield part.code
        else:
            yield from _code_of(type(part))


def tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers (also those outside the state dict) and tensors that are plain attributes."""
    yield from module.named_parameters()
    yield from module.named_buffers()
    for path, part in module.named_modules():
        yield from ((f"{path}.{k}", v) for k, v in sorted(vars(part).items()) if isinstance(v, Tensor))


def _plain(value: object, depth: int = 3) -> object:
    """What of the value is the same in every process."""
    if isinstance(value, str | int | float | bool | type(None) | torch.dtype | torch.Size):
        return repr(value)
    if isinstance(value, list | tuple):
        return [_plain(v, depth) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(str(_plain(v, depth)) for v in value)
    if isinstance(value, dict):
        return {str(k): _plain(v, depth) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, types.FunctionType) and not value.__module__.startswith("torch."):
        return _code_text(value.__code__)
    name = getattr(value, "__name__", type(value).__name__)
    inner = {} if isinstance(value, type | nn.Module | Tensor) or not depth else getattr(value, "__dict__", {})
    return [name, {k: _plain(v, depth - 1) for k, v in sorted(inner.items())}] if inner else name


def _code_of(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        if base.__module__.startswith("torch.") or base is object:
            return
        for name, value in sorted(vars(base).items()):
            if isinstance(value, types.FunctionType):
                yield f"{name} {_code_text(value.__code__)}"


def _code_text(code: types.CodeType) -> str:
    constants = [_code_text(c) if isinstance(c, types.CodeType) else _constant(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {constants}"


def _constant(value: object) -> str:
    """Sets have no fixed order from process to process."""
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
