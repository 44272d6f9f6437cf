"""Exact tiled inference of fully convolutional networks on images too large for memory.

Every function here imports what it needs when it is called, so that `import pipeline` takes no torch with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from pipeline.tiling.geometry import ReceptiveField
from pipeline.tiling.plan import Plan

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import Unpack

    import numpy as np

    from pipeline.api import Report, Result, TilesFailed
    from pipeline.keywords import ConvertOptions, LazyOptions, PlanOptions, PredictOptions
    from pipeline.network.loading import Network
    from pipeline.storage.image import Image
    from pipeline.training_run import Trained

__version__ = "0.1.0"
__all__ = [
    "Plan",
    "ReceptiveField",
    "Report",
    "Result",
    "TilesFailed",
    "convert",
    "export",
    "extend",
    "load_network",
    "open_image",
    "plan",
    "predict",
    "predict_lazy",
    "receptive_field",
    "train",
    "verify",
]


if not TYPE_CHECKING:  # where it would be a type for any name

    def __getattr__(name: str) -> Any:
        if name not in ("Report", "Result", "TilesFailed"):
            raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
        from pipeline import api

        return getattr(api, name)


def open_image(source: Any, *, axes: str | None = None, level: int = 0) -> Image:
    """Open an image, reading only its metadata: path, URL, NumPy, dask or Zarr array: (y, x), (c, y, x), (c, z, y, x).

    `axes` names the axes where the metadata does not, for instance "YXC"; `level` picks a resolution, 0 the finest.
    Raises ValueError for what is no image that can be read, FileNotFoundError for a missing file.
    """
    from pipeline.storage.image import open_image

    return open_image(source, axes=axes, level=level)


def load_network(
    net: Any = None,
    *,
    output: str | int | None = None,
    scale: float | Sequence[float] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    device: str = "cpu",
) -> Network:
    """The network of an nn.Module, a .pt2 file, a network folder, or a built-in's name; None is "nuclei".

    `.module` is the torch.nn.Module that takes stored values (n, c, y, x) and returns logits. `scale`, `mean` and
    `std` normalise what has no card of its own, `output` picks from a dict or tuple of outputs.
    Raises ValueError for what is no network; no file is ever unpickled.
    """
    from pipeline.network.loading import load_network

    return load_network(net, output=output, scale=scale, mean=mean, std=std, device=device)


def receptive_field(net: Any, shape: tuple[int, int, int] | None = None) -> ReceptiveField:
    """What one output of the network sees, derived from its graph; `shape` (c, y, x) is one that it accepts.

    Raises ValueError where the only obstacle is an operation that the analysis does not know, naming it.
    """
    from pipeline import api

    return api.receptive_field(net, shape)


def plan(image: Any, net: Any = None, output: str | os.PathLike[str] = "", **options: Unpack[PlanOptions]) -> Plan:
    """The plan of `predict` with the same arguments; nothing is run or written."""
    from pipeline import api

    return api.plan(image, net, output, **options)


@overload
def predict(
    image: list[Any] | tuple[Any, ...],
    net: Any = None,
    output: str | os.PathLike[str] = "",
    **options: Unpack[PredictOptions],
) -> list[Result]: ...


@overload
def predict(
    image: Any, net: Any = None, output: str | os.PathLike[str] = "", **options: Unpack[PredictOptions]
) -> Result: ...


def predict(image: Any, net: Any = None, output: str | os.PathLike[str] = "", **options: Unpack[PredictOptions]) -> Any:
    """Write the network's prediction for an image to `output`, equal to the whole-image forward pass.

    image: a path, URL, NumPy or dask array (c, y, x), or a list of them (`output` is then a folder); net: anything
    that `load_network` takes. Options and defaults: kind="mask", engine="local", workers=None, memory="2GB",
    tile=None, precision="float32", and those of the command line. Returns a Result (a list for a list of images).
    Raises ValueError for what the caller can mend, TilesFailed where tiles or images failed and the rest is done.
    """
    from pipeline import api

    return api.predict(image, net, output, **options)


def predict_lazy(array: Any, net: Any = None, **options: Unpack[LazyOptions]) -> Any:
    """The network's logits (k, y', x') for a dask array (c, y, x), as a dask array; nothing is computed until asked.

    Equal to the whole-image forward pass whatever the chunks; the result has chunks like the array's, or of
    `tile=(y, x)` input pixels each. Options and defaults: tile=None, memory="2GB" (what one task may use),
    precision="float32", device="cpu", and channels, scale, mean, std, key, reach as in `predict`. The network is
    taken as it is now. Warns where chunks smaller than the halo are taken together. Raises ValueError for what the
    caller can mend.
    """
    from pipeline import api

    return api.predict_lazy(array, net, **options)


def extend(array: np.ndarray, net: Any = None) -> np.ndarray:
    """The input (c, y, x) whose whole-image forward pass the result equals: last row and column repeated up to the
    network's alignment."""
    from pipeline import api

    return api.extend(array, net)


def verify(output: str | os.PathLike[str], image: Any = None, net: Any = None) -> Report:
    """Recompute windows of a finished output from larger reads and compare all checksums with the ledger.

    Image and network are needed only where the output cannot name them itself (arrays, modules).
    """
    from pipeline import api

    return api.verify(output, image, net)


def train(job: Any) -> Trained:
    """Train a network as a job says: a dict, or the path of a job file, with the keys of jobs/train.yaml.

    The gradient of a step on tiles is that of the whole images. The same job goes on from its last checkpoint; one
    that is finished returns at once. `.path` is the network folder that results, `.metrics` its loss and scores.
    Raises ValueError for what the caller can mend, RuntimeError where workers die too often.
    """
    from pipeline import api

    return api.train(job)


def export(net: Any, path: str | os.PathLike[str]) -> str:
    """Write a network, anything that `load_network` takes, to a .pt2 of torch.export for images of any size.

    Its normalisation is its first step; `load_network` takes the file. Returns the path. Raises ValueError for a file
    that is there already, and for a network that torch cannot export.
    """
    from pipeline import api

    return api.export(net, path)


def convert(image: Any, output: str | os.PathLike[str], **options: Unpack[ConvertOptions]) -> Result:
    """Copy any image that opens into a sharded OME-Zarr 0.5 with its pyramid, pixels unchanged; resumable.

    Options as in `predict`: axes, level, overwrite, memory, engine, workers and what else an engine is told.
    """
    from pipeline import api

    return api.convert(image, output, **options)
