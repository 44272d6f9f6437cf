"""Anything that is a network to its user becomes a `Network`: module, card, identity."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.network.builtin import build_untrained
from pipeline.network.folder import read_folder
from pipeline.network.identity import identify
from pipeline.network.names import BUILTIN, BUNDLED, UNTRAINED, builtin_names, resolve
from pipeline.network.normalise import Normalisation, check_normalisation
from pipeline.network.prepare import evaluating, infer_channels, prepare
from pipeline.network.pt2 import from_program, read_pt2

Key = str | int | None
COMPLETE = {"channels", "classes", "activation", "normalise"}
"""What `load_network` writes into every card."""


@dataclass(frozen=True)
class Network:
    """A network in eval mode and what is known of it; made by `load_network`.

    `module` takes stored values (n, c, y, x), normalises them as its first step and returns one tensor of logits
    (n, classes, y, x). It shares its weights with the module that it was made from.
    """

    module: nn.Module
    card: dict[str, Any] = field(default_factory=dict)
    """Name, architecture, arguments, channels, classes, class_names, activation, normalise, ...: plain JSON."""

    @property
    def name(self) -> str:
        """What it is called; of a file's name that is no UTF-8, what is none becomes a question mark."""
        return str(self.card["name"]).encode(errors="replace").decode()

    @property
    def channels(self) -> int | None:
        """Input channels; None where neither a card nor the weights tell."""
        return self.card.get("channels")

    @property
    def classes(self) -> int | None:
        """Output channels; None where neither a card nor a trial tells."""
        return self.card.get("classes")

    @property
    def activation(self) -> str | None:
        """What turns logits into probability: softmax, sigmoid, none; None where the number of classes is unknown."""
        return self.card.get("activation")

    @cached_property
    def identity(self) -> str:
        """ "sha256:..." of weights, structure and normalisation; the same in every process."""
        return identify(self.module, self.card)

    def to(self, device: str | torch.device, dtype: torch.dtype) -> nn.Module:
        """The module on that device in that precision; a copy unless it is so already."""
        device = torch.device(device)

        def cast(tensor: torch.Tensor) -> torch.Tensor:
            # .to(dtype) of a module would leave the real part of a complex parameter
            like = dtype.to_complex() if tensor.is_complex() else dtype if tensor.is_floating_point() else tensor.dtype
            return tensor.to(device, like)

        if all(cast(tensor) is tensor for tensor in (*self.module.parameters(), *self.module.buffers())):
            return self.module
        copied = evaluating(self.module, share=False)
        copied._apply(cast)
        return copied


def load_network(
    net: nn.Module | torch.export.ExportedProgram | str | os.PathLike[str] | Network | None,
    *,
    output: Key = None,
    scale: Any = None,
    mean: Any = None,
    std: Any = None,
    device: str = "cpu",
) -> Network:
    """The network that `net` stands for: a module, a .pt2 file, a network folder, or a name; None is "nuclei".

    `output` names the key (or index) of the result where the network returns a dict or a tuple. The module then sees
    (value * scale - mean) / std, one number for all channels or one each; only for what has no normalisation of its
    own. Nothing of a caller's module is changed, and no file is unpickled.

    Raises: ValueError for what is no network, is not in eval mode where that matters, or does not fit its card;
    FileNotFoundError for a missing file.
    """
    given: dict[str, object] = {"scale": scale, "mean": mean, "std": std}
    if isinstance(net, Network):
        if output is scale is mean is std is None and device == "cpu" and net.card.keys() >= COMPLETE:
            return net
        module, card = net.module, dict(net.card)
    elif isinstance(net, nn.Module):
        net = getattr(net, "_orig_mod", net)  # what torch.compile wraps
        module, card = evaluating(net), {"name": type(net).__name__}
    elif isinstance(net, torch.export.ExportedProgram):
        module, card = from_program(net)
        card["name"] = "program"
    elif net is None or isinstance(net, str | os.PathLike):
        module, card = _load(net)
    else:
        raise ValueError(f"{type(net).__name__} is no network: give a torch.nn.Module, a file or a name")
    channels = card.get("channels") or infer_channels(module)
    normalise = check_normalisation(given, channels)
    if normalise and card.get("normalise"):
        raise ValueError(f"network {card['name']} has its own normalisation; scale, mean and std are for one without")
    module, classes = prepare(module, channels, normalise, output)
    if (place := choose_device(device)) != "cpu":
        module = evaluating(module, share=False).to(place)
    return Network(module, _completed(card, channels, classes, normalise))


def choose_device(device: str) -> str:
    """The device by its name; "auto" is a GPU where there is one.

    Raises: ValueError for a GPU where there is none.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r}: one of auto, cpu, cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: this machine has no GPU that torch can use")
    return device


def _load(source: str | os.PathLike[str] | None) -> tuple[nn.Module, dict[str, Any]]:
    if source is None or resolve(source).startswith(BUILTIN):
        return _load_builtin(resolve(source).removeprefix(BUILTIN))
    path = Path(source)
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"{source}: no such file or folder, nor a built-in: {', '.join(builtin_names())}")
    if path.suffix != ".pt2":
        raise ValueError(f"{source}: not a network: give a .pt2 of torch.export, a network folder or a built-in's name")
    return read_pt2(path)


def _load_builtin(name: str) -> tuple[nn.Module, dict[str, Any]]:
    if name in UNTRAINED:
        architecture, arguments = UNTRAINED[name]
        card = {"name": name, "architecture": architecture, "arguments": arguments}
        return build_untrained(name), {**card, "data": "none: untrained, weights are random from seed 0"}
    if name not in builtin_names():
        raise FileNotFoundError(f"{BUILTIN}{name}: no such built-in: {', '.join(builtin_names())}")
    return read_folder(BUNDLED / name)


def _completed(
    card: dict[str, Any], channels: int | None, classes: int | None, normalise: Normalisation
) -> dict[str, Any]:
    """The card with what loading found out, where it does not say itself."""
    classes = card.get("classes") or classes
    found = {
        "channels": channels,
        "classes": classes,
        "activation": None if classes is None else "softmax" if classes > 1 else "sigmoid",
        "normalise": dict(normalise) or None,
    }
    return {**card, **{k: v for k, v in found.items() if card.get(k) is None}}
