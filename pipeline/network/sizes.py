"""Which sizes of image a network runs on."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.tiling.geometry import ReceptiveField


def fails_at(module: nn.Module, channels: int, size: tuple[int, int]) -> str | None:
    """None where the module runs on an image of this size, else one line that says why it does not."""
    try:
        with torch.inference_mode():
            result = module(torch.zeros(1, channels, *size))
    except Exception as error:  # whatever a stranger's module raises
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None if result.numel() else "its output is empty"


def least_size(module: nn.Module, channels: int, field: ReceptiveField) -> tuple[int, int]:
    """The least multiples of the alignment at which the module runs, the same number of them on both axes."""
    reason: str | None = ""
    for times in (*range(1, 33), *range(36, 129, 4)):
        size = (field.alignment[0] * times, field.alignment[1] * times)
        reason = fails_at(module, channels, size)
        if reason is None:
            return size
    raise ValueError(f"the network fails on every image up to {size[0]} x {size[1]}: {reason}")
