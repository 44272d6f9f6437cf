"""What an output says of itself to readers that know OME-Zarr."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import zarr

import pipeline
from pipeline.network.builtin import build
from pipeline.network.folder import save_network


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    path = tmp_path / "stack.ome.tif"
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0}
    tifffile.imwrite(path, np.zeros((3, 40, 50), np.uint8), metadata=metadata)
    return path


def test_a_mask_names_and_colours_its_classes(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (3, 80, 90), np.uint8)
    pipeline.predict(image, "nuclei", tmp_path / "mask.zarr", workers=1)
    label = zarr.open_group(tmp_path / "mask.zarr").attrs["ome"]["image-label"]
    assert [p["name"] for p in label["properties"]] == ["background", "nucleus"]
    assert [c["label-value"] for c in label["colors"]] == [0, 1]
    assert label["colors"][0]["rgba"][3] == 0 and label["colors"][1]["rgba"][3] == 255


def test_a_network_without_names_has_its_classes_numbered(tmp_path: Path) -> None:
    net = torch.nn.Conv2d(1, 3, 3, padding=1).eval()
    image = np.zeros((1, 30, 30), np.uint8)
    pipeline.predict(image, net, tmp_path / "mask.zarr", workers=1)
    label = zarr.open_group(tmp_path / "mask.zarr").attrs["ome"]["image-label"]
    assert [p["name"] for p in label["properties"]] == ["class 0", "class 1", "class 2"]
    assert len({tuple(c["rgba"]) for c in label["colors"]}) == 3
    pipeline.predict(image, net, tmp_path / "p.zarr", kind="probability", workers=1)
    channels = zarr.open_group(tmp_path / "p.zarr").attrs["ome"]["omero"]["channels"]
    assert [c["label"] for c in channels] == ["class 0", "class 1", "class 2"]
    assert channels[0]["window"]["max"] == 255


def test_one_channel_is_foreground(tmp_path: Path) -> None:
    net = torch.nn.Conv2d(1, 1, 3, padding=1).eval()
    pipeline.predict(np.zeros((1, 30, 30), np.uint8), net, tmp_path / "p.zarr", kind="probability", workers=1)
    channels = zarr.open_group(tmp_path / "p.zarr").attrs["ome"]["omero"]["channels"]
    assert [c["label"] for c in channels] == ["foreground"] and channels[0]["color"] != "000000"


@pytest.mark.parametrize("names", [["ground", "gland"], ["gland"]])
def test_one_channel_has_the_names_of_its_card(tmp_path: Path, names: list[str]) -> None:
    arguments = {"base": 1, "depth": 0, "channels": 1, "classes": 1}
    save_network(tmp_path / "net", "unet", arguments, build("unet", arguments), class_names=names)
    image = np.zeros((1, 30, 30), np.uint8)
    pipeline.predict(image, tmp_path / "net", tmp_path / "mask.zarr", workers=1)
    label = zarr.open_group(tmp_path / "mask.zarr").attrs["ome"]["image-label"]
    assert [p["name"] for p in label["properties"]] == [names[0] if len(names) > 1 else "background", "gland"]
    pipeline.predict(image, tmp_path / "net", tmp_path / "p.zarr", kind="probability", workers=1)
    channels = zarr.open_group(tmp_path / "p.zarr").attrs["ome"]["omero"]["channels"]
    assert [c["label"] for c in channels] == ["gland"]


def test_the_distance_of_planes_is_kept(tmp_path: Path, stack: Path) -> None:
    pipeline.convert(stack, tmp_path / "stack.ome.zarr", workers=1)
    image = pipeline.open_image(tmp_path / "stack.ome.zarr")
    assert image.metadata["z_step"] == 2.0 and image.pixel_size == (0.5, 0.5) and image.unit == "micrometer"
