"""Colours: contrast that shows something, classes that can be told apart."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from pipeline.stitching.drawing import contrast, draw_lines, overlay, palette, resize, to_rgb

GREEN = palette(2)[1]


def grey(height: int, width: int, value: int = 100) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_21_classes_differ_and_the_background_is_black() -> None:
    colours = palette(21)
    assert len(colours) == 21 and colours[0] == (0, 0, 0)
    assert min(sum(abs(a - b) for a, b in zip(p, q, strict=True)) for p, q in combinations(colours, 2)) > 60
    assert palette(3) == colours[:3]


def test_8_bit_keeps_its_brightness_unless_it_would_be_black() -> None:
    bright = np.linspace(0, 255, 300).reshape(3, 10, 10).astype(np.float32)
    assert contrast(bright, True).tolist() == [[0, 0, 0], [255, 255, 255]]
    dim = bright / 10
    low, high = contrast(dim, True)
    assert low.tolist() == [0, 0, 0] and 16 < high[0] < 30


def test_percentiles_ignore_what_is_not_finite() -> None:
    values = np.linspace(1000, 2000, 1000, dtype=np.float32).reshape(1, 10, 100)
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    low, high = contrast(values, False)
    assert 1000 < low[0] < 1020 and 1980 < high[0] < 2000


def test_an_image_of_one_bit_is_black_and_white() -> None:
    image = np.array([[[True, False]]])
    assert to_rgb(image, contrast(image, False))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_an_image_of_one_value_or_none_can_be_shown(value: float) -> None:
    image = np.full((1, 4, 4), value, np.float32)
    assert to_rgb(image, contrast(image, False)).shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("channels", "colour"), [(1, (255, 255, 255)), (2, (0, 255, 0)), (3, (255, 0, 0)), (5, (255, 0, 0))]
)
def test_the_first_channel_is_grey_green_or_red(channels: int, colour: tuple[int, int, int]) -> None:
    image = np.zeros((channels, 1, 1), np.float32)
    image[0] = 1
    limits = np.array([[0.0] * channels, [1.0] * channels])
    assert tuple(to_rgb(image, limits)[0, 0]) == colour


def test_background_stays_classes_are_tinted_and_outlined() -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[2:7, 2:7] = 1
    result = overlay(grey(9, 9), mask, palette(2))
    assert tuple(result[0, 0]) == tuple(result[1, 4]) == (100, 100, 100)
    assert tuple(result[2, 4]) == tuple(result[6, 6]) == GREEN
    assert result[4, 4].tolist() != [100, 100, 100] and tuple(result[4, 4]) != GREEN
    thick = overlay(grey(9, 9), mask, palette(2), thickness=2)
    assert tuple(thick[3, 4]) == GREEN and tuple(thick[4, 4]) == tuple(result[4, 4])


def test_resizing_takes_the_nearest_pixel() -> None:
    mask = np.arange(4).reshape(2, 2)
    assert resize(mask, (4, 4)).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert resize(np.arange(9).reshape(9, 1), (3, 1)).ravel().tolist() == [1, 4, 7]


def test_edges_of_tiles_are_drawn_where_they_lie() -> None:
    panel = grey(50, 100)
    draw_lines(panel, ([200], [100, 300]), (0.1, 0.1))
    changed = (panel != 100).any(axis=2)
    assert changed[20].all() and changed[:, 10].all() and changed[:, 30].all()
    assert changed.sum() == 100 + 2 * 50 - 2


def test_edges_that_would_cover_the_picture_are_left_out() -> None:
    panel = grey(50, 100)
    draw_lines(panel, (range(10, 500, 10), [0, 500, 1000]), (0.1, 0.1))
    changed = (panel != 100).any(axis=2)
    assert changed[:, 50].all() and changed.sum() == 50
