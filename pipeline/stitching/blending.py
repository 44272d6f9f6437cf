"""For networks that are not local: overlapping windows, averaged with weights that fade towards their edges.

An approximation, as such a network's answer depends on the window that it sees. But a reproducible one: the windows
lie where the image alone says, whatever the tiles are, and each pixel adds up its windows in the same order.

Source of the weights: Hann as in Pielawski & Waehlby (2020), https://doi.org/10.1371/journal.pone.0229839; the
Gaussian of an eighth of the window as in nnU-Net, https://doi.org/10.1038/s41592-020-01008-z
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.tiling.geometry import Region
from pipeline.tiling.windows import half_step, windows

Kind = Literal["hann", "gaussian"]


def weights(size: int, kind: Kind = "hann") -> NDArray[np.float64]:
    """Weight of each of a window's pixels along an axis: symmetric, above 0, largest in the middle."""
    centred = np.arange(size) + 0.5 - size / 2
    if kind == "hann":
        return np.asarray(np.cos(np.pi * centred / size) ** 2)
    return np.asarray(np.exp(-0.5 * (centred / (size / 8)) ** 2))


def blend(
    core: Region,
    shape: tuple[int, int],
    window: tuple[int, int],
    run: Callable[[Region], NDArray[Any]],
    *,
    alignment: tuple[int, int] = (1, 1),
    kind: Kind = "hann",
) -> NDArray[Any]:
    """(k, h, w) weighted average over the core of what `run` gives for each window: (k, window's h, w).

    `shape` is that of the extended image; neighbours overlap by half. Any partition into cores gives the same bytes,
    at the price that a window on a junction runs for each of its tiles.
    """
    step = half_step(window[0], alignment[0]), half_step(window[1], alignment[1])
    total: NDArray[Any] | None = None
    weight = np.zeros(core.shape)
    for place in windows(core, shape, window, step):
        values = run(place)
        assert values.shape[-2:] == place.shape, "the output has the size of the window"
        if total is None:
            total = np.zeros((values.shape[0], *core.shape), np.result_type(values, np.float32))
        part = Region(place.y.clip(core.y.start, core.y.stop), place.x.clip(core.x.start, core.x.stop))
        to = part.y.shift(-core.y.start).slice, part.x.shift(-core.x.start).slice
        of = part.y.shift(-place.y.start).slice, part.x.shift(-place.x.start).slice
        fade = weights(place.y.size, kind)[of[0], None] * weights(place.x.size, kind)[of[1]]
        weight[to] += fade
        total[:, *to] += values[:, *of] * fade.astype(total.dtype)
    assert total is not None, "windows cover the image"
    total /= weight.astype(total.dtype)
    return total
