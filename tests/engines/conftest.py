from __future__ import annotations

import sys
from collections.abc import Iterator

import cloudpickle
import pytest

from tests.engines import watching


@pytest.fixture(scope="module")
def by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """Functions of the test's module travel whole: workers of a cluster that was there before cannot import it."""
    modules = [sys.modules[request.module.__name__], watching]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)
