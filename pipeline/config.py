"""What a run may be asked for, validated: a bad value is one line that names it, an unknown name an error."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

_UNITS = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}


def parse_bytes(value: Any) -> int:
    """Bytes of "2GB", "300 MiB" or a plain number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return int(value)
    match = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]*)\s*", str(value).lower())
    if not match or match[2] not in _UNITS or match[1].count(".") > 1 or match[1] == ".":
        raise ValueError(f"{value!r} is no amount of memory; write it like 2GB or 300MiB")
    return int(float(match[1]) * _UNITS[match[2]])


Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]
Numbers = tuple[float, ...] | None


class Options(BaseModel):
    """Options of `predict`, `plan` and the command line. None: not asked for; default or stored plan decides."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["mask", "probability", "logits"] | None = None
    engine: Literal["local"] = "local"
    workers: Annotated[int, Field(ge=1)] | None = None
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
    overwrite: bool = False

    @model_validator(mode="before")
    @classmethod
    def _single_numbers(cls, data: Any) -> Any:
        """scale=0.5 means the same as scale=(0.5,)."""
        for name in ("scale", "mean", "std"):
            if isinstance(data, dict) and isinstance(data.get(name), int | float):
                data[name] = (data[name],)
        return data


def options(**given: Any) -> Options:
    """Validated options. Raises ValueError of one line that names the option, its value and what is wrong."""
    try:
        return Options(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "options"
        if first["type"] == "extra_forbidden":
            raise ValueError(f"unknown option {name!r}; there are {', '.join(sorted(Options.model_fields))}") from None
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"option {name}={given.get(name)!r}: {reason[0].lower()}{reason[1:]}") from None
