"""A network on a dask array equals the network on the whole image, whatever the chunks and whoever computes them."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pipeline
from pipeline import lazy
from pipeline.analysis import Analysis
from pipeline.config import options
from pipeline.network.loading import Network, load_network
from pipeline.network.sizes import least_size
from pipeline.storage.reading import extend_to
from tests.zoo import ZOO, integer_weights_, random_network

BUILD = {architecture.name: architecture.build for architecture in ZOO}
NETWORKS = [
    "valid", "coarse", "coarse-valid", "edsr", "fsrcnn", "espcn-unshuffle", "fcn-8s", "deeplab", "anisotropic",
    "even-same", "stride-3", "reflect", "replicate", "ceil-pool", "segnet", "median", "nearest-exact", "fold", "crop",
    "shifted", "dictionary", "unet", "unet-valid", "unet-pad-to-match", "unet-reflect",
]  # fmt: skip
"""Of the zoo: all kinds of rate, alignment, asymmetry, border, and output smaller or larger than the input."""


@cache
def analysis(name: str) -> Analysis:
    """The network of the zoo, or the random one of that number, with small integers for weights, in float64."""
    module = random_network(int(name)) if name.isdigit() else BUILD[name]()
    network = load_network(Network(integer_weights_(module).float(), {"name": name, "channels": 2}))
    return Analysis(network, options(precision="float64", device="cpu"))


def whole(found: Analysis, image: np.ndarray) -> np.ndarray:
    """The whole-image forward pass on the extended image, cropped to the result's shape."""
    size = image.shape[1], image.shape[2]
    extended = extend_to(image, found.field.extended(*size))
    with torch.inference_mode():
        logits = found.network.to("cpu", torch.float64)(torch.from_numpy(extended)[None].double())[0].numpy()
    height, width = found.field.output_shape(*size)
    return logits[:, :height, :width]


def pixels(height: int, width: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 16, (channels, height, width)).astype(np.uint8)


@st.composite
def chunks(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    """Any way to cut `size` rows, many of one row among them."""
    cuts = draw(st.sets(st.integers(1, size - 1), max_size=8)) if size > 1 else set()
    ones = draw(st.sampled_from([range(0), range(1, size), range(size // 2, size)]))
    bounds = sorted({0, size, *cuts, *ones})
    return tuple(b - a for a, b in pairwise(bounds))


def least(found: Analysis) -> tuple[int, int]:
    """A small size that the network takes and of whose output something is left."""
    rows, columns = least_size(found.network.module, 2, found.field)
    rows, columns = rows - found.field.alignment[0] + 1, columns - found.field.alignment[1] + 1
    while 0 in found.field.output_shape(rows, columns):
        rows, columns = rows + 1, columns + 1
    return rows, columns


def check(found: Analysis, draw: Any) -> None:
    low = least(found)
    size = draw(st.integers(low[0], low[0] + 40)), draw(st.integers(low[1], low[1] + 40))
    image = pixels(*size)
    cut = ((1, 1), draw(chunks(size[0])), draw(chunks(size[1])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = lazy.predict_lazy(da.from_array(image, chunks=cut), found)
    expected = whole(found, image)
    assert result.shape == expected.shape and result.dtype == np.float64
    computed = result.compute(scheduler="synchronous")
    np.testing.assert_array_equal(computed, expected)


@pytest.mark.no_cover  # the same code as with random networks, on many
@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=4, deadline=None)
@given(st.data())
def test_any_chunks_equal_the_whole_image(name: str, data: st.DataObject) -> None:
    check(analysis(name), data.draw)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 40), st.data())
def test_random_networks_equal_the_whole_image(seed: int, data: st.DataObject) -> None:
    check(analysis(str(seed)), data.draw)


def plain(kernel: int = 5) -> nn.Module:
    """Rate 1, alignment 1, halo kernel - 1."""
    return integer_weights_(nn.Conv2d(2, 2, kernel, padding=kernel // 2)).float()


def expected(module: nn.Module, image: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return module.double()(torch.from_numpy(image)[None].double())[0].numpy()


@pytest.mark.parametrize(
    ("cut", "result"),
    [
        (((2,), (20, 9, 11), (40,)), ((2,), (20, 9, 11), (40,))),
        (((1, 1), (1,) * 40, (40,)), ((2,), (16, 16, 8), (40,))),
        (((2,), (30, 3, 7), (3, 3, 34)), ((2,), (30, 10), (40,))),
    ],
)
def test_chunks_of_the_result_follow_the_array(cut: Any, result: Any) -> None:
    """Chunks as large as the halo stay; smaller ones are taken together, which is said once."""
    image, small = pixels(40, 40), cut != result
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = pipeline.predict_lazy(da.from_array(image, chunks=cut), plain(), precision="float64")
    assert found.chunks == result and len(caught) == small
    if small:
        assert "smaller than the network's halo of 4 x 4" in str(caught[0].message)
        assert caught[0].filename == __file__
    np.testing.assert_array_equal(found.compute(scheduler="synchronous"), expected(plain(), image))


def test_tile_and_memory_decide_the_chunks_of_the_result() -> None:
    array = da.from_array(pixels(300, 200), chunks=(2, 300, 200))
    found = pipeline.predict_lazy(array, plain(), tile=(128, 64))
    assert found.chunks == ((2,), (128, 128, 44), (64, 64, 64, 8)) and found.dtype == np.float32
    large = da.zeros((2, 4096, 4096), chunks=(2, 4096, 4096), dtype=np.uint8)
    found = pipeline.predict_lazy(large, plain(), memory="400MB")
    assert found.chunks == ((2,), (2048,) * 2, (2048,) * 2)
    with pytest.raises(ValueError, match=r"memory of 0.001 MB is too little.*give memory='\d+MB'"):
        pipeline.predict_lazy(large, plain(), memory="1kB")


class Counting(nn.Module):
    """Adds its number of calls to a file, from whatever process."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.conv, self.file = plain(), file

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.file.open("a") as file:
            file.write(f"{torch.get_num_threads()}\n")
        return self.conv(x)

    def calls(self) -> list[str]:
        """torch's number of threads at each call since the last time that this was asked."""
        lines = self.file.read_text().splitlines()
        self.file.write_text("")
        return lines


def test_a_slice_computes_only_the_tiles_that_it_needs(tmp_path: Path) -> None:
    module = Counting(tmp_path / "calls").eval()
    image, seen = pixels(120, 120), []

    def loaded(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        seen.append(block_info[0]["chunk-location"])
        return block

    array = da.from_array(image, chunks=(2, 40, 30)).map_blocks(loaded, dtype=np.uint8, meta=np.empty((0, 0, 0), "u1"))
    found = pipeline.predict_lazy(array, module, precision="float64")
    assert module.calls() and seen == [] and found.numblocks == (1, 3, 4)
    corner = (found + 1)[:, 45:85, 10:20].compute(scheduler="threads")
    np.testing.assert_array_equal(corner, expected(module.conv, image)[:, 45:85, 10:20] + 1)
    assert len(module.calls()) == 2 and sorted(seen) == [(0, y, x) for y in range(3) for x in range(2)]


def test_graph_holds_the_network_once_and_a_few_keys_a_tile() -> None:
    module = nn.Sequential(nn.Conv2d(2, 200, 3, padding=1), nn.Conv2d(200, 200, 3, padding=1), nn.Conv2d(200, 2, 1))
    array = da.zeros((2, 400, 400), chunks=(2, 40, 40), dtype=np.uint8)
    found = pipeline.predict_lazy(array, module.eval())
    (optimized,) = dask.optimize(found)
    graph = dict(optimized.__dask_graph__())
    weights = sum(p.numel() * 4 for p in module.parameters())
    assert weights > 1_400_000
    assert sum(len(cloudpickle.dumps(task)) for task in graph.values()) < weights + 2000 * len(graph)
    assert len(found.dask.layers[found.name]) <= 100 * 10 + 1


def test_result_is_named_for_what_it_is_and_the_network_is_taken_as_it_is() -> None:
    image, module = pixels(30, 30), plain()
    array = da.from_array(image, chunks=(2, 15, 15))
    found = pipeline.predict_lazy(array, module, precision="float64")
    assert found.name == pipeline.predict_lazy(array, plain(), precision="float64").name
    before = expected(plain(), image)
    with torch.no_grad():
        module.weight.zero_()
    assert found.name != pipeline.predict_lazy(array, module, precision="float64").name
    np.testing.assert_array_equal(found.compute(), before)


def test_threads_of_the_caller_stay_as_many(tmp_path: Path) -> None:
    """Also those of threads that use torch for the first time afterwards; each task computes with one."""
    before, module = torch.get_num_threads(), Counting(tmp_path / "calls").eval()
    seen: list[int] = []

    def other() -> None:
        seen.append(torch.get_num_threads())

    try:
        torch.set_num_threads(3)
        array = da.from_array(pixels(200, 200), chunks=(2, 10, 10))
        found = pipeline.predict_lazy(array, module)
        module.calls()
        found.compute(scheduler="threads", num_workers=8)
        assert module.calls() == ["1"] * 400
        seen.append(torch.get_num_threads())
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert seen == [3, 3]


class Keeping(nn.Module):
    """Keeps its input until it has waited for others to come in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = plain()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.image = x
        time.sleep(0.01)
        return self.conv(self.image)


def test_threads_do_not_find_what_a_network_keeps_of_others() -> None:
    image, module = pixels(60, 60), Keeping().eval()
    found = pipeline.predict_lazy(da.from_array(image, chunks=(2, 10, 10)), module, precision="float64")
    np.testing.assert_array_equal(found.compute(scheduler="threads", num_workers=4), expected(module.conv, image))


@pytest.fixture(scope="module")
def dask_cluster() -> Iterator[str]:
    """A scheduler with two worker processes; its address."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=0) as started:
        yield started.scheduler_address


@pytest.fixture
def by_value() -> Iterator[None]:
    """Classes of this module travel as those of a script or a notebook do."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize(
    "scheduler",
    ["synchronous", "threads", "processes", "distributed", pytest.param("ray", marks=pytest.mark.xdist_group("ray"))],
)
def test_works_on_every_scheduler(
    scheduler: str, request: pytest.FixtureRequest, tmp_path: Path, by_value: None
) -> None:
    """A module whose class the caller alone knows, in a graph that goes on."""
    module, image = Counting(tmp_path / "calls").eval(), pixels(50, 60)
    array = da.from_array(image, chunks=(2, 25, 20)).astype("int16") * 2
    result = pipeline.predict_lazy(array, module, precision="float64").argmax(axis=0)
    assert module.calls()
    if scheduler == "distributed":
        with Client(request.getfixturevalue("dask_cluster"), set_as_default=False) as client:
            computed = client.compute(result).result()
    elif scheduler == "ray":
        request.getfixturevalue("cluster")
        from ray.util.dask import ray_dask_get

        computed = result.compute(scheduler=ray_dask_get)
    else:
        computed = result.compute(scheduler=scheduler, num_workers=2)
    np.testing.assert_array_equal(computed, expected(module.conv, image.astype(int) * 2).argmax(axis=0))
    assert module.calls() == ["1"] * 6


@pytest.mark.parametrize(
    ("array", "given", "message"),
    [
        (np.zeros((2, 30, 30)), {}, "ndarray is no dask array"),
        (da.zeros((30, 30)), {}, "2 dimensions"),
        (da.zeros((3, 30, 30)), {}, "has 3 channels, network Conv2d takes 2"),
        (da.zeros((2, 0, 30)), {}, r"shape \(2, 0, 30\)"),
        (da.zeros((2, 30, 30))[:, da.zeros(30) > 0], {}, "unknown shape"),
        (da.zeros((2, 30, 30)), {"kind": "mask"}, "unknown option 'kind'; predict_lazy has channels"),
        (da.zeros((2, 30, 30)), {"tile": (0, 8)}, "tile of 0 rows"),
        (da.zeros((2, 30, 30)), {"channels": (0, 2)}, "channel 2"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(array: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline.predict_lazy(array, plain(), **given)


def test_another_kind_of_dask_arrays_is_refused() -> None:
    with dask.config.set({"array.query-planning": True}), pytest.raises(ValueError, match="needs it off"):
        pipeline.predict_lazy(da.zeros((2, 30, 30)), plain())


def test_channels_are_picked_in_order() -> None:
    image = pixels(30, 40, channels=4)
    found = pipeline.predict_lazy(da.from_array(image, chunks=(1, 20, 20)), plain(), channels=(3, 1), scale=2)
    np.testing.assert_allclose(found.compute(), expected(plain(), image[[3, 1]] * 2.0))
