"""The options of the public functions, for editors and type checkers. pipeline.config is what validates them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict


class Where(TypedDict, total=False):
    """What is read, and where work runs."""

    axes: str | None
    level: int | None
    engine: Literal["local", "ray", "dask"]
    workers: int | None
    worker_cpus: float
    worker_gpus: float
    address: str | None
    scheduler: str | None
    overwrite: bool


class How(TypedDict, total=False):
    """What the network is given, and how it is run."""

    channels: int | Sequence[int] | None
    scale: float | Sequence[float] | None
    mean: float | Sequence[float] | None
    std: float | Sequence[float] | None
    key: str | int | None
    reach: int | None
    tile: tuple[int, int] | None
    precision: Literal["float32", "float64", "bfloat16", "float16"] | None
    device: Literal["auto", "cpu", "cuda"]


class LazyOptions(How, total=False):
    """Of `predict_lazy`."""

    memory: int | str


class PlanOptions(Where, How, total=False):
    """Of `plan`."""

    memory: int | str
    kind: Literal["mask", "probability", "logits"] | None
    activation: Literal["softmax", "sigmoid", "none"] | None
    store: Literal["uint8", "float32"] | None
    mode: Literal["exact", "blend"] | None
    window: int | None
    tune: bool


class PredictOptions(PlanOptions, total=False):
    """Of `predict`; `report` is told of progress: tiles, done, failed, pixels, seconds."""

    report: Callable[[Any], None] | None


class ConvertOptions(Where, total=False):
    """Of `convert`; `report` as of `predict`."""

    memory: int | str
    report: Callable[[Any], None] | None
