"""The JSON files of an output: one of the group, one of each level. https://zarr-specs.readthedocs.io/en/latest/v3/"""

from __future__ import annotations

import json
from typing import Any

from numpy.typing import NDArray

from pipeline.storage.cloud import StoreError
from pipeline.storage.location import Location
from pipeline.storage.shards import codecs
from pipeline.tiling.grid import Layout

FILE = "zarr.json"


def array_metadata(layout: Layout, fill: NDArray[Any], level: int) -> dict[str, Any]:
    """What the file of a level holds."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(layout.shapes[level]),
        "data_type": layout.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(layout.shards[level])}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill.item() if fill.dtype.kind != "c" else [float(fill.real), float(fill.imag)],
        "codecs": codecs(fill.dtype, layout.chunk),
        "dimension_names": list(layout.axes),
        "storage_transformers": [],
        "attributes": {},
    }


def names_levels(group: Any, layout: Layout) -> bool:
    """Whether a reader takes it for a group, whose `ome` attribute leads to the levels of the layout."""
    try:
        kind = group["zarr_format"], group["node_type"]
        (image,) = group["attributes"]["ome"]["multiscales"]
        paths = [level["path"] for level in image["datasets"]]
        axes = [axis["name"] for axis in image["axes"]]
    except (KeyError, TypeError, ValueError):
        return False
    names = [str(level) for level in range(len(layout.shapes))]
    return (kind, paths, axes) == ((3, "group"), names, list(layout.axes))


def read_json(target: Location, key: str) -> Any:
    """What a file holds; None where there is none, or no JSON. Raises StoreError where an object store is silent."""
    try:
        return json.loads(target.read(key))
    except StoreError:
        raise
    except (OSError, ValueError):
        return None


def to_json(content: dict[str, Any]) -> bytes:
    """Text that any reader takes: of a name that is no UTF-8, what is none becomes a question mark."""
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False).encode(errors="replace")
