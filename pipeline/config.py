"""What a run may be asked for, validated: a bad value is one line that names it, an unknown name an error."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from pipeline.jobfile import DataPath, NetworkPath, validated

_UNITS = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}


def parse_bytes(value: Any) -> int:
    """Bytes of "2GB", "300 MiB" or a plain number."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]*)\s*", str(value).lower())
    with suppress(ValueError, OverflowError):  # of two points, or of what is infinite or no number
        if isinstance(value, int | float) and not isinstance(value, bool):
            return int(value)
        if match and match[2] in _UNITS:
            return int(float(match[1]) * _UNITS[match[2]])
    raise ValueError(f"{value!r} is no amount of memory; write it like 2GB or 300MiB")


Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]
Numbers = tuple[float, ...] | None
ONLY_FOR = {
    "worker_cpus": ("engine", "ray"),
    "worker_gpus": ("engine", "ray"),
    "address": ("engine", "ray"),
    "scheduler": ("engine", "dask"),
    "window": ("mode", "blend"),
}
"""Options that say something only where another one has that value."""


class Settings(BaseModel):
    """Values that stay as they were validated, and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Options(Settings):
    """Options of `predict`, `plan` and the command line. None: not asked for; default or stored plan decides."""

    passed_over: ClassVar[frozenset[str]] = frozenset()
    """Of ONLY_FOR, those that are no mistake where nothing reads them."""

    kind: Literal["mask", "probability", "logits"] | None = None
    engine: Literal["local", "ray", "dask"] = "local"
    workers: Annotated[int, Field(ge=1)] | None = None
    worker_cpus: Annotated[float, Field(gt=0)] = 1
    worker_gpus: Annotated[float, Field(ge=0)] = 0
    address: str | None = None
    scheduler: str | None = None
    memory: Bytes = 2_000_000_000
    tile: tuple[int, int] | None = None
    precision: Literal["float32", "float64", "bfloat16", "float16"] | None = None
    mode: Literal["exact", "blend"] | None = None
    reach: Annotated[int, Field(ge=0)] | None = None
    window: Annotated[int, Field(ge=1)] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    channels: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    scale: Numbers = None
    mean: Numbers = None
    std: Numbers = None
    axes: str | None = None
    level: Annotated[int, Field(ge=0)] | None = None
    key: str | int | None = None
    activation: Literal["softmax", "sigmoid", "none"] | None = None
    store: Literal["uint8", "float32"] | None = None
    tune: bool = False
    overwrite: bool = False

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, data: Any) -> Any:
        """scale=0.5 means the same as scale=(0.5,), and tile="512,512" the same as tile=(512, 512)."""
        for name in ("scale", "mean", "std", "tile", "channels"):
            value = data.get(name) if isinstance(data, dict) else None
            if isinstance(value, str):
                data[name] = value.split(",")
            elif isinstance(value, int | float) and name != "tile":
                data[name] = (value,)
        return data

    @field_validator(*ONLY_FOR)
    @classmethod
    def _has_effect(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses what nothing would read. A default asks for nothing, so it may be spelled out anywhere."""
        name = str(info.field_name)
        other, wanted = ONLY_FOR[name]
        found = info.data.get(other, wanted)  # what is not there was refused itself
        if found != wanted and value != cls.model_fields[name].default and name not in cls.passed_over:
            raise ValueError(f"is for {other} {wanted}, not {found or 'exact'}")
        return value


def options(**given: Any) -> Options:
    """Validated options. Raises ValueError of one line that names the option, its value and what is wrong."""
    return validated(Options, given)


class InferJob(Options):
    """A job of `jobs/infer.py`: the options of the command, what it reads and where it writes."""

    passed_over = frozenset({"worker_cpus", "worker_gpus", "address"})
    """A job file says what its workers on Ray need, and engine=local may be laid over it."""

    image: DataPath | Annotated[tuple[DataPath, ...], Field(min_length=1)]
    """A path, a pattern such as photos/*.jpg, or a list of them."""
    output: DataPath
    """A folder where image is a pattern or a list."""
    network: NetworkPath | None = None
    verify: bool = False

    def options(self) -> dict[str, Any]:
        """What `pipeline.predict` is given beside image, network and output."""
        others = set() if self.engine == "ray" else self.passed_over
        return self.model_dump(exclude_unset=True, include=set(Options.model_fields) - others)
