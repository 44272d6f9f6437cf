"""A caller's module made ready: eval mode without touching the original, one tensor out, normalised in."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.jit._script import RecursiveScriptModule
from torch.nn.parameter import is_lazy

from pipeline.network.normalise import Normalisation, Normalise
from pipeline.network.unchanged import ChangesItself, Unchanged

TRIAL_SIZES = (64, 96, 224, 256, 320, 512, 100, 572)
"""Squares on which to look at what a network returns: most networks take one of the first three."""


class Prepared(nn.Module):
    """normalise, then the network, then the one tensor of what it returns."""

    def __init__(self, network: nn.Module, normalise: nn.Module, output: str | int | None) -> None:
        super().__init__()
        self.normalise = normalise
        self.network = network
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        result = self.network(self.normalise(x))
        tensor: Tensor = result if self.output is None else tensors_of(result)[self.output]
        return tensor


def evaluating(module: nn.Module, *, share: bool = True) -> nn.Module:
    """The module in eval mode; a copy (which shares the weights unless told not to) if it is not in eval mode.

    Raises: ValueError where a batch norm or dropout that is in training mode would make eval mode another network, and
    for what cannot be run and looked into.
    """
    for path, part in module.named_modules():
        _check(path, part)
        if part.training and _acts_in_training(part):
            where = f"{path} ({type(part).__name__})" if path else type(part).__name__
            raise ValueError(f"network is in training mode, where {where} acts differently: call .eval()")
    if share and not any(part.training for part in module.modules()):
        return module
    copied = copied_module(module, share=share)
    for part in copied.modules():  # not .eval(), which exported programs refuse
        part.training = False
    return copied


def copied_module(module: nn.Module, *, share: bool) -> nn.Module:
    """A copy of the module and its parts, with the same tensors or with copies of them.

    Raises: ValueError where it holds what cannot be copied.
    """
    held = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    if share:
        held += [*module.parameters(), *module.buffers()]
    same = {id(t): t if share else t.detach().clone() for t in held}  # deepcopy refuses results of autograd
    try:
        return copy.deepcopy(module, same)
    except Exception as error:  # whatever what it holds says to that
        raise ValueError(_not_copied(module) or f"the network cannot be copied: {error}") from error


def _not_copied(module: nn.Module) -> str | None:
    """Of what the parts of a module hold, the first that cannot be copied."""
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            try:
                copy.deepcopy(value if name != "_modules" else None)
            except Exception as error:
                where = f"{path}.{name}".removeprefix(".")
                return (
                    f"the network's attribute {where} ({type(value).__name__}) cannot be copied ({error}), and each "
                    "worker takes a copy: make it in forward, or leave it out in __getstate__"
                )
    return None


def _check(path: str, part: nn.Module) -> None:
    """Raises ValueError for a part of which there is no telling what it does."""
    where = f"{path} ({type(part).__name__})" if path else type(part).__name__
    if isinstance(part, RecursiveScriptModule):
        raise ValueError(f"{where} is of torch.jit.script, which cannot be analysed: give the module itself")
    if any(is_lazy(tensor) for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False))):
        raise ValueError(f"{where} is lazy and has no weights yet: run the network once on an image first")


def _acts_in_training(part: nn.Module) -> bool:
    if isinstance(part, nn.modules.batchnorm._NormBase):
        return part.track_running_stats and part.running_mean is not None
    if isinstance(part, nn.modules.dropout._DropoutNd):
        return part.p > 0
    return isinstance(part, nn.RReLU)


def infer_channels(module: nn.Module) -> int | None:
    """Input channels by the traced input, the normalisation or the first convolution; None where there is none.

    A convolution may see more, or other, channels than the image has, where pixels are shuffled into channels or
    features are computed before it: what does not run with its number is tried with others.
    """
    if isinstance(module, GraphModule):
        image = next((node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"), None)
        if isinstance(image, Tensor) and image.dim() == 4:
            return int(image.shape[1])
    for part in module.modules():
        if isinstance(part, Normalise) and part.get_buffer("factor").shape[1] > 1:
            return int(part.get_buffer("factor").shape[1])
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d) and part.in_channels > 0:  # 0: lazy, not seen an input yet
            first = part.in_channels
            shuffled = [first // n**2 for n in (2, 3, 4) if first % n**2 == 0]
            others = dict.fromkeys([first, *shuffled, 3, 1, 4, 2])
            return next((n for n in others if _runs(module, n)), first)
    return None


def _runs(module: nn.Module, channels: int) -> bool:
    try:
        return try_shapes(module, channels) is not None
    except ChangesItself:  # which is said, or made good, later
        return True


def prepare(
    module: nn.Module, channels: int | None, normalise: Normalisation, output: str | int | None
) -> tuple[nn.Module, int | None]:
    """The module with that normalisation and output, and the number of its classes where a trial tells.

    Raises: ValueError where it returns several tensors and none of them is named, or changes itself each time.
    """
    try:
        result = None if channels is None else try_shapes(module, channels)
    except ChangesItself:  # once may be all, as where convolutions are made one: then a copy is what runs from now on
        module = copied_module(module, share=False)
        assert channels is not None
        _settle(module, channels)
        result = try_shapes(module, channels)
    if result is not None and not isinstance(result, Tensor):
        output = _choose(tensors_of(result), output)
        result = tensors_of(result)[output]
    elif result is not None:
        output = None
    if normalise or output is not None:
        step = Normalise(**normalise) if normalise else nn.Identity()
        module = Prepared(module, step, output).eval()
    return module, int(result.shape[1]) if isinstance(result, Tensor) and result.dim() == 4 else None


def try_shapes(module: nn.Module, channels: int) -> Any:
    """What the network returns for a small image of zeros; None if it takes no size that is tried.

    Raises: ValueError where it changes itself.
    """
    module = copied_module(module, share=True)  # a network may keep what it made for the last image
    return _tried(module, channels, Unchanged(module))


def _settle(module: nn.Module, channels: int) -> None:
    """Runs the network once, whatever it changes."""
    _tried(module, channels, nullcontext())


def _tried(module: nn.Module, channels: int, watch: AbstractContextManager[Any]) -> Any:
    held = (*module.parameters(), *module.buffers())
    like = next((tensor for tensor in held if tensor.is_floating_point()), torch.empty(0))
    for size in TRIAL_SIZES:
        image = torch.zeros(1, channels, size, size, dtype=like.dtype, device=like.device)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), watch:
                return module(image)
        except ChangesItself:
            raise
        except Exception:  # any size may fail in any way; what fails on the real image is said there
            continue
    return None


def tensors_of(result: Any) -> dict[str | int, Tensor]:
    """The tensors of a dict, a dataclass or a sequence, by their keys; a tensor alone is number 0."""
    if isinstance(result, Tensor):
        return {0: result}
    if isinstance(result, list | tuple) and not hasattr(result, "_fields"):
        pairs: Any = enumerate(result)
    elif isinstance(result, Mapping):
        pairs = result.items()
    else:
        pairs = result._asdict().items() if hasattr(result, "_asdict") else vars(result).items()
    return {key: value for key, value in pairs if isinstance(value, Tensor)}


def _choose(entries: dict[str | int, Tensor], output: str | int | None) -> str | int:
    if isinstance(output, str) and output not in entries and output.lstrip("-").isdigit():
        output = int(output)
    if output in entries:
        return output
    if output is None and len(entries) == 1:
        return next(iter(entries))
    listed = ", ".join(f"{key!r} {tuple(tensor.shape)}" for key, tensor in entries.items()) or "no tensor"
    if output is not None:
        raise ValueError(f"network has no output {output!r}: it returns {listed}")
    raise ValueError(f"network returns {listed}: {naming(next(iter(entries), 0))}")


def naming(key: str | int) -> str:
    """How one of a network's outputs is named, for messages: in a command and in Python."""
    return f"name one, as in --key {key}, or in Python load_network(net, output={key!r})"
