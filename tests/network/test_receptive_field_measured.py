"""The derived reach is exactly what footprints show."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.network.receptive_field import receptive_field
from tests.footprints import measured
from tests.zoo import PLAIN, ZOO, Architecture, random_network

pytestmark = pytest.mark.no_cover  # the same code as elsewhere, on many networks

names = [a.name for a in ZOO]


def test_the_zoo_is_large_enough():
    assert len(names) == len(set(names)) and len(ZOO) >= 25
    assert sum(not a.unet for a in PLAIN) >= 10


@pytest.mark.parametrize("architecture", ZOO, ids=names)
def test_footprints_show_exactly_the_derived_reach(architecture: Architecture):
    torch.manual_seed(0)
    module = architecture.build().eval()
    field = receptive_field(module, architecture.channels)
    assert field.is_local, field.nonlocal_operations
    before, after = measured(module, architecture.channels, field)
    if architecture.hidden:
        assert all(a <= b for a, b in zip(before + after, field.before + field.after, strict=True))
    else:
        assert (before, after) == (field.before, field.after)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_footprints_of_random_networks(seed: int):
    torch.manual_seed(0)
    module = random_network(seed)
    field = receptive_field(module, 2)
    assert measured(module, 2, field) == (field.before, field.after)
