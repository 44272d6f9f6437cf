"""Blended windows: the same bytes for any tiles, and no seams where windows differ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stitching.blending import Kind, blend, weights
from pipeline.tiling.geometry import Region

KINDS: list[Kind] = ["hann", "gaussian"]


def image(shape: tuple[int, int], channels: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(channels, *shape)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 7, 512])
def test_weights_fade_evenly_to_both_edges_and_are_never_0(kind: Kind, size: int) -> None:
    fade = weights(size, kind)
    np.testing.assert_allclose(fade, fade[::-1])
    assert (fade > 0).all() and fade.max() == fade[size // 2] <= 1
    assert (np.diff(fade[: (size + 1) // 2]) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_is_local_comes_out_as_it_is(kind: Kind) -> None:
    """The weights of each pixel sum to 1."""
    pixels = image((70, 50))
    result = blend(Region.of(0, 70, 0, 50), (70, 50), (32, 16), lambda r: pixels[:, *r.slices], kind=kind)
    np.testing.assert_allclose(result, pixels, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(KINDS),
)
def test_any_tiles_give_the_same_bytes(
    blocks: tuple[int, int], window: tuple[int, int], core: tuple[int, int], kind: Kind
) -> None:
    """Also tiles that are no multiple of anything; the network answers by what its window holds."""
    shape = blocks[0] * 4, blocks[1] * 4
    pixels = image(shape)

    def run(r: Region) -> np.ndarray:
        part = pixels[:, *r.slices]
        return part - part.mean(axis=(1, 2), keepdims=True)

    def blended(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        sides = window[0] * 4, window[1] * 4
        return blend(Region.of(y0, y1, x0, x1), shape, sides, run, alignment=(4, 4), kind=kind)

    whole = blended(0, shape[0], 0, shape[1])
    for y in range(0, shape[0], core[0]):
        for x in range(0, shape[1], core[1]):
            y1, x1 = min(y + core[0], shape[0]), min(x + core[1], shape[1])
            assert blended(y, y1, x, x1).tobytes() == whole[:, y:y1, x:x1].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_no_seam_where_windows_disagree(kind: Kind) -> None:
    """Every window answers with another number; side by side they would jump by 1, blended by less than a tenth."""
    result = blend(
        Region.of(0, 64, 0, 512), (64, 512), (64, 128), lambda r: np.full((1, *r.shape), r.x.start / 64.0), kind=kind
    )
    assert result[0, 0, 0] == 0 and result[0, 0, -1] == 6
    assert np.abs(np.diff(result[0], axis=1)).max() < 0.1


def test_float64_stays_float64_and_small_floats_become_float32() -> None:
    for dtype, result in (("float64", "float64"), ("float32", "float32"), ("float16", "float32")):
        values = blend(Region.of(0, 8, 0, 8), (8, 8), (8, 8), lambda r, d=dtype: np.ones((1, *r.shape), d))
        assert values.dtype == result


def test_a_window_of_another_size_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="size of the window"):
        blend(Region.of(0, 8, 0, 8), (8, 8), (8, 8), lambda r: np.ones((1, 4, 4)))
