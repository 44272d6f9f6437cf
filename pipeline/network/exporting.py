"""A network as a .pt2, which needs neither this package nor a Python class to run."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch.export import Dim

from pipeline.network.graph import blank
from pipeline.network.loading import Network, load_network
from pipeline.network.receptive_field import receptive_field
from pipeline.network.sizes import least_size


def export_network(network: Network, path: str | os.PathLike[str], channels: int) -> Path:
    """Writes the network, its normalisation included, as a program of torch.export for images of any size.

    What was written is loaded again and tried at other sizes before it gets its name.
    Raises ValueError for a path that is no .pt2 or is there already, and for a network that cannot be exported.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"{path}: the name of an exported network ends in .pt2")
    if path.exists():
        raise ValueError(f"{path}: there is something already: give another name, or remove it")
    module = network.module
    field = receptive_field(module, channels)
    y, x = (size + 2 * by for size, by in zip(least_size(module, channels, field), field.alignment, strict=True))
    example = blank(module, channels, (y, x + field.alignment[1]))
    sizes = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself
            program = torch.export.export(module, (torch.cat([example, example]),), dynamic_shapes=sizes)
    except Exception as error:  # whatever a stranger's module meets in torch's depths
        said = str(error).strip().partition("\n")[0]
        raise ValueError(f"network {network.name}: torch cannot export it: {said}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        torch.export.save(program, partial)
        _check(network, load_network(partial), [example.shape, (1, channels, 2 * y, 2 * x)])
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _check(network: Network, written: Network, shapes: list[tuple[int, ...]]) -> None:
    """Raises ValueError where both predict something else for noise of these shapes."""
    like = next(network.module.parameters(), torch.zeros(()))
    for shape in shapes:
        image = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(like.dtype) * 255
        with torch.inference_mode():
            expected = network.module(image)
            difference = (written.module(image) - expected).abs().max()
        if not difference <= 1e-5 * max(1.0, float(expected.abs().max())):
            raise ValueError(f"network {network.name}: its export differs by {difference:g} at {tuple(shape[2:])}")
