"""What editors and type checkers are told of options is what pipeline.config validates: names and types."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

import pipeline
from pipeline import keywords
from pipeline.api import COPY, LAZY
from pipeline.config import Options, options
from pipeline.network.loading import load_network

MORE: dict[str, Any] = {"memory": str, "channels": int, "scale": float, "mean": float, "std": float}
"""What these may be beside what they are once they are validated."""


def members(hint: Any) -> set[Any]:
    """The types that a union allows; sequences, which are taken where tuples of any length are kept, as these."""
    found = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return {tuple[get_args(part)[0], ...] if get_origin(part) is Sequence else part for part in found}


@pytest.mark.parametrize(
    ("told", "names"),
    [
        (keywords.PlanOptions, set(Options.model_fields)),
        (keywords.PredictOptions, {*Options.model_fields, "report"}),
        (keywords.LazyOptions, LAZY),
        (keywords.ConvertOptions, COPY | {"report"}),
    ],
)
def test_options_have_the_names_and_types_that_are_validated(told: type, names: set[str]) -> None:
    validated, hints = get_type_hints(Options), get_type_hints(told)
    assert set(hints) == names
    for name in names - {"report"}:
        more = {MORE[name]} if name in MORE else set()
        assert members(hints[name]) == members(validated[name]) | more, name


def test_what_may_be_given_beside_is_taken() -> None:
    given = options(memory="2GB", channels=1, scale=0.5, mean=[0.5, 0.25], std=2)
    assert (given.memory, given.channels, given.scale, given.mean, given.std) == (
        2_000_000_000, (1,), (0.5,), (0.5, 0.25), (2,),
    )  # fmt: skip


def test_a_network_is_loaded_with_the_options_that_its_loader_has() -> None:
    public, inner = (inspect.signature(f).parameters for f in (pipeline.load_network, load_network))
    assert {n: p.default for n, p in public.items() if n != "net"} == {
        n: p.default for n, p in inner.items() if n != "net"
    }
