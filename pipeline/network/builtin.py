"""The architectures that a network folder can name, built with random weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pipeline.network.fcn import FCN
from pipeline.network.names import UNTRAINED
from pipeline.network.normalise import Normalisation
from pipeline.network.unet import UNet

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"unet": UNet, "fcn": FCN}


def build(architecture: str, arguments: Mapping[str, Any], normalise: Normalisation | None = None) -> nn.Module:
    """A new network of that architecture, in eval mode, with random weights.

    Raises: ValueError for an unknown architecture, an unknown argument or a value that does not fit, be it memory.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture {architecture!r} is unknown: one of {', '.join(sorted(ARCHITECTURES))}")
    make = ARCHITECTURES[architecture]
    _check_arguments(architecture, make, arguments)
    try:
        return make(**arguments, normalise=normalise).eval()
    except (RuntimeError, TypeError) as error:  # of memory that torch cannot get, or numbers that it cannot count to
        said = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise ValueError(f"{architecture} with {said} needs more memory than there is") from error


def build_untrained(name: str, seed: int = 0) -> nn.Module:
    """The named built-in with weights from the seed; torch's own random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*UNTRAINED[name])


def _check_arguments(architecture: str, make: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> None:
    known = {k: p.default for k, p in inspect.signature(make).parameters.items() if k != "normalise"}
    for key, value in arguments.items():
        if key not in known:
            raise ValueError(f"{architecture} has no argument {key!r}: it takes {', '.join(known)}")
        default = known[key]
        whole = [value] if isinstance(default, int) else value if isinstance(default, tuple) else []
        right = isinstance(value, str) if isinstance(default, str) else isinstance(whole, list | tuple)
        if not right or not all(type(n) is int and n >= (0 if key == "depth" else 1) for n in whole):
            kind = "a word" if isinstance(default, str) else "whole numbers" if whole is value else "a whole number"
            raise ValueError(f"{architecture} argument {key} is {value!r}: it must be {kind} above 0")
