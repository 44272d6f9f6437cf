"""The workers that take a training step together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class Group:
    """Those of torch's process group; where there is none, this process alone. All must make the same calls."""

    def __init__(self, device: str = "cpu") -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        self.device = device

    def add(self, tensor: Tensor) -> None:
        """Adds up over the workers, in place; every worker gets the same bits."""
        if self.world > 1:
            there = tensor.to(self.device)
            dist.all_reduce(there)
            tensor.copy_(there)

    def share(self, value: Any) -> Any:
        """The first worker's value."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=torch.device(self.device))
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all, by rank."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def each(self, make: Callable[[], T]) -> T:
        """What `make` returns on this worker.

        Raises ValueError, on all workers, where it raised one on any, or an OSError, as of a file that one does not
        see: none is left waiting for one that has ended.
        """
        problem: Exception | None = None
        try:
            made = make()
        except (ValueError, OSError) as error:
            problem = error
        problems = [said for said in self.gather(None if problem is None else str(problem)) if said is not None]
        if problems:
            raise ValueError(problems[0]) from problem
        return made
