"""How a step's passes through the network are computed: in bfloat16, and with less kept for the way back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.training.statistics import Statistics


@contextmanager
def passes(module: nn.Module, statistics: Statistics, *, mixed: bool, recompute: bool) -> Iterator[None]:
    """Meanwhile the module computes as asked; nothing of it is changed afterwards.

    mixed: in bfloat16 where torch's autocast finds that safe, from and to tensors in the weights' own precision.
    recompute: of each stage only the input is kept, and the stage is run again on the way back (Chen et al. 2016,
    arXiv:1604.06174). Its gradient is the same; `statistics` count what it sees once.
    """
    with ExitStack() as stack:
        if recompute:
            for stage in stages(module):
                stack.enter_context(_calling(stage, partial(_twice, stage.forward, statistics)))
        if mixed:
            stack.enter_context(_calling(module, partial(_mixed, module.forward)))
        yield


def stages(module: nn.Module) -> list[nn.Module]:
    """The module's own parts that have weights, those in lists one by one."""
    parts = [part for child in module.children() for part in (child if isinstance(child, nn.ModuleList) else [child])]
    return [part for part in parts if next(part.parameters(), None) is not None]


@contextmanager
def _calling(module: nn.Module, forward: Any) -> Iterator[None]:
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def _mixed(forward: Any, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        result: Tensor = forward(x)
    return result.to(x.dtype)


def _twice(forward: Any, statistics: Statistics, *inputs: Tensor) -> Any:
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), statistics.unseen()))
