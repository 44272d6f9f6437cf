"""The preview: each of its pixels comes from exactly one tile, and any image gives a picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stitching.drawing import palette
from pipeline.stitching.preview import SIDE, compose, factor, thumbnail
from pipeline.tiling.geometry import Region


@settings(deadline=None, max_examples=80)
@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 25), st.integers(1, 25)),
    st.integers(1, 9),
)
def test_tiles_give_each_pixel_once(size: tuple[int, int], core: tuple[int, int], by: int) -> None:
    """Also tiles that are smaller than a pixel of the preview."""
    image = np.random.default_rng(0).integers(0, 255, (2, *size)).astype(np.uint8)
    rows, columns = (-(-n // by) for n in size)
    times = np.zeros((rows, columns), int)
    picture = np.full((2, rows, columns), np.nan, np.float32)
    for y in range(0, size[0], core[0]):
        for x in range(0, size[1], core[1]):
            region = Region.of(y, min(y + core[0], size[0]), x, min(x + core[1], size[1]))
            at_y, at_x, values = thumbnail(image[:, *region.slices], region, by)
            times[at_y[:, None], at_x] += 1
            picture[:, at_y[:, None], at_x] = values
            for i, j in ((i, j) for i in range(len(at_y)) for j in range(len(at_x))):
                top, left = at_y[i] * by, at_x[j] * by
                cell = image[:, top : min(top + by, region.y.stop), left : min(left + by, region.x.stop)]
                np.testing.assert_allclose(values[:, i, j], cell.mean(axis=(1, 2)), rtol=1e-5)
    assert (times == 1).all() and np.isfinite(picture).all()


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "float16", "float64", ">u2"])
def test_any_stored_values_can_be_averaged(dtype: str) -> None:
    _, _, values = thumbnail(np.ones((1, 8, 8), dtype), Region.of(0, 8, 0, 8), 4)
    assert values.dtype == np.float32 and (values == 1).all() and values.shape == (1, 2, 2)


@pytest.mark.parametrize("shape", [(1, 1), (SIDE, 1), (SIDE + 1, 1), (98765, 4), (3, 8192)])
def test_the_factor_is_the_least_that_fits(shape: tuple[int, int]) -> None:
    by = factor(shape)
    assert -(-max(shape) // by) <= SIDE
    assert by == 1 or -(-max(shape) // (by - 1)) > SIDE


def count(page: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((page == np.array(colour)).all(axis=2).sum())


def test_the_picture_holds_image_mask_tiles_and_legend() -> None:
    image = np.full((3, 700, 700), 90, np.float32)
    mask = np.zeros((350, 350), np.uint8)
    mask[50:100, 50:100], mask[200:300, 200:300] = 1, 2
    colours = palette(3)
    options = {"size": (7000, 7000), "eight_bit": True, "classes": ["ground", "cat", "dog"]}
    page = np.asarray(compose(image, mask, **options))  # type: ignore[arg-type]
    assert page.shape[1] > 2 * 700
    # Outlines of 100 and 200 pixels of the picture a side, and a square in the legend.
    assert abs(count(page, colours[1]) - (4 * 100 - 4)) < 300 and count(page, colours[2]) > 4 * 200 - 4
    lined = np.asarray(compose(image, mask, lines=([3500], [3500]), **options))  # type: ignore[arg-type]
    assert (lined != page).any(axis=2).sum() >= 700 + 700 - 100


def test_the_mask_lies_where_it_says() -> None:
    """A network of valid convolutions says nothing of the image's margin."""
    image = np.full((1, 700, 700), 90, np.float32)
    mask = np.ones((50, 50), np.uint8)
    whole = np.asarray(compose(image, mask, size=(700, 700)))
    inner = np.asarray(compose(image, mask, size=(700, 700), extent=Region.of(100, 600, 100, 600)))
    tinted = np.abs(whole.astype(int) - inner).any(axis=2).sum()
    assert 700**2 - 500**2 <= tinted <= 700**2 - 500**2 + 4 * 700


@pytest.mark.parametrize(
    ("shape", "channels"),
    [*((shape, 3) for shape in ((1, 1), (1, 700), (700, 1), (3, 700), (768, 768), (300, 768))),
     *((shape, channels) for shape in ((1, 1), (3, 700), (200, 150)) for channels in (1, 2, 7))],
)  # fmt: skip
def test_any_shape_gives_a_picture(shape: tuple[int, int], channels: int) -> None:
    image = np.random.default_rng(0).normal(size=(channels, *shape)).astype(np.float32)
    mask = np.random.default_rng(0).integers(0, 21, shape).astype(np.uint16)
    size = shape[0] * 8, shape[1] * 8
    lines = range(512, size[0], 512), range(512, size[1], 512)
    classes = [f"a class with a long name {n}" for n in range(21)]
    page = compose(
        image,
        mask,
        size=size,
        lines=lines,
        title="x" * 400,
        facts=["many", "facts"] * 30,
        classes=classes,
    )
    assert page.width < 3200 and page.height < 3200


def test_the_same_picture_every_time() -> None:
    image = np.random.default_rng(0).normal(size=(3, 60, 60)).astype(np.float32)
    pages = [compose(image, None, size=(60, 60), title="a") for _ in range(2)]
    assert pages[0].tobytes() == pages[1].tobytes()
