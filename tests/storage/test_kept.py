"""Few things stay open, those that were used last."""

from __future__ import annotations

import pytest

from pipeline.storage.kept import Kept


def test_the_one_that_was_used_longest_ago_is_closed_before_another_is_opened() -> None:
    said: list[str] = []

    def opened(number: int) -> str:
        said.append(f"open {number}")
        return str(number)

    kept = Kept(2, opened, lambda thing: said.append(f"close {thing}"))
    assert [kept[number] for number in (1, 2, 1, 3, 1)] == ["1", "2", "1", "3", "1"]
    assert said == ["open 1", "open 2", "close 2", "open 3"]
    del kept
    assert sorted(said[4:]) == ["close 1", "close 3"]


def test_what_cannot_be_opened_is_not_kept() -> None:
    def opened(number: int) -> int:
        raise ValueError(f"no {number}")

    kept = Kept(2, opened, lambda thing: None)
    for _ in range(2):
        with pytest.raises(ValueError, match="no 7"):
            kept[7]
