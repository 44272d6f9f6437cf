"""The first step of a network: from stored values to what it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn

Numbers = float | Sequence[float] | None


class Normalisation(TypedDict, total=False):
    """Part of a card: a network sees (value * scale - mean) / std; one number for all channels, or one each."""

    scale: float | list[float]
    mean: float | list[float]
    std: float | list[float]


class Normalise(nn.Module):
    """(value * scale - mean) / std for each channel of (n, c, y, x).

    The numbers are no part of the state dict: they stand in the card, in readable form.
    """

    def __init__(self, scale: Numbers = None, mean: Numbers = None, std: Numbers = None) -> None:
        super().__init__()
        a, m, s = (_column(v, default) for v, default in ((scale, 1.0), (mean, 0.0), (std, 1.0)))
        self.register_buffer("factor", (a / s).float().view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", (m / s).float().view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        factor, shift = self.get_buffer("factor"), self.get_buffer("shift")
        return x * factor - shift


def normalise_step(card: Normalisation | None) -> nn.Module:
    """The module of a card's normalisation; nothing is done where there is none."""
    return Normalise(**card) if card else nn.Identity()


def check_normalisation(given: dict[str, object], channels: int | None) -> Normalisation:
    """The given numbers as they stand in a card, without those that are None.

    Raises: ValueError for what is no finite number, for a scale or std of 0, and for as many numbers as the network has
    no channels.
    """
    result: Normalisation = {}
    for key in ("scale", "mean", "std"):
        value = given.get(key)
        if value is None:
            continue
        value = value.tolist() if hasattr(value, "tolist") else value
        numbers = [value] if isinstance(value, int | float) else value
        if not isinstance(numbers, list | tuple) or not all(isinstance(v, int | float) for v in numbers):
            raise ValueError(f"{key} {value!r}: give one number, or one for each channel")
        if len(numbers) not in (1, channels or len(numbers)):
            raise ValueError(f"{key} has {len(numbers)} numbers, but the network takes {channels} channels")
        if not all(torch.isfinite(torch.tensor(v, dtype=torch.float64)) for v in numbers) or (
            key in ("scale", "std") and 0 in numbers
        ):
            raise ValueError(f"{key} {value!r}: give finite numbers, and for scale and std none that is 0")
        result[key] = float(numbers[0]) if len(numbers) == 1 else [float(v) for v in numbers]
    if unknown := sorted(set(given) - {"scale", "mean", "std"}):
        raise ValueError(f"normalise has an unknown key {unknown[0]!r}: scale, mean and std are known")
    return result


def _column(value: Numbers, default: float) -> Tensor:
    return torch.tensor(default if value is None else value, dtype=torch.float64).reshape(-1)
