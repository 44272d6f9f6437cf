"""What the name or path of a network stands for: the same for commands, jobs and Python, and in what an output says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

import pipeline
from pipeline.config import InferJob
from pipeline.jobfile import load_job
from pipeline.network.builtin import build
from pipeline.network.folder import save_network
from pipeline.network.names import resolve

IMAGE = np.random.default_rng(0).integers(0, 255, (3, 40, 50), np.uint8)
ARGUMENTS = {"base": 4, "depth": 1}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(folder: Path) -> None:
    save_network(folder, "unet", ARGUMENTS, build("unet", ARGUMENTS))


def as_a_job(folder: Path, network: str) -> str | None:
    (folder / "job.yaml").write_text("{image: a.tif, output: b.zarr}")
    return load_job(InferJob, folder / "job.yaml", [f"network={network}"]).network


def recorded(output: str) -> str:
    source = zarr.open_group(output, mode="r").attrs["pipeline"]["source"]  # type: ignore[index,call-overload]
    return json.loads(json.dumps(source))["network"]  # type: ignore[no-any-return]


def test_a_folder_of_images_does_not_stand_in_the_way_of_a_built_in(here: Path) -> None:
    """As jobs/train-nuclei.yaml has its user make one: nuclei, with the images to train on."""
    (here / "nuclei" / "train").mkdir(parents=True)
    assert as_a_job(here, "nuclei") == "builtin:nuclei"
    for net, output in ((None, "a.zarr"), ("nuclei", "b.zarr"), (as_a_job(here, "nuclei"), "c.zarr")):
        pipeline.predict(IMAGE, net, output, workers=1)
        assert recorded(output) == "builtin:nuclei"
        assert pipeline.verify(output, IMAGE).ok


def test_a_network_folder_with_a_built_ins_name_is_never_mistaken_for_it(here: Path) -> None:
    trained(here / "unet-tiny")
    says = rf"^unet-tiny is a built-in, and the network folder {here}/unet-tiny: give builtin:unet-tiny or ./unet-tiny$"
    with pytest.raises(ValueError, match=says):
        pipeline.predict(IMAGE, "unet-tiny", "o.zarr", workers=1)
    with pytest.raises(ValueError, match=says.strip("^")):
        as_a_job(here, "unet-tiny")
    assert not Path("o.zarr").exists()
    for net, output, stands_for, depth in (
        ("./unet-tiny", "a.zarr", f"{here}/unet-tiny", 1),
        (Path("unet-tiny"), "b.zarr", f"{here}/unet-tiny", 1),
        ("builtin:unet-tiny", "c.zarr", "builtin:unet-tiny", 2),
    ):
        pipeline.predict(IMAGE, net, output, workers=1)
        assert pipeline.load_network(net).card["arguments"]["depth"] == depth
        assert recorded(output) == stands_for
        assert as_a_job(here, net if isinstance(net, str) else f"./{net}") == stands_for
        assert pipeline.verify(output, IMAGE).ok


def test_without_a_network_the_bundled_one_is_meant_whatever_lies_here(here: Path) -> None:
    trained(here / "nuclei")
    result = pipeline.predict(IMAGE, None, "o.zarr", workers=1)
    assert pipeline.verify(result.path, IMAGE).ok and recorded(result.path) == "builtin:nuclei"


def test_what_an_output_names_is_not_looked_for_where_verify_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = pipeline.predict(IMAGE, "unet-tiny", here / "o.zarr", workers=1)
    trained(here / "elsewhere" / "unet-tiny")
    monkeypatch.chdir(here / "elsewhere")
    assert pipeline.verify(result.path, IMAGE).ok
    shutil.rmtree("unet-tiny")
    trained(here / "mine")
    assert resolve("mine", "..") == f"{here}/mine" and resolve("mine") == "mine"


@pytest.mark.parametrize("name", ["nuclei", "builtin:unet", "mine", "runs/mine", "a.pt2", "/data/net", "s3://b/net"])
def test_what_is_resolved_stands_for_itself(here: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolve(name)
    trained(here / "elsewhere" / "nuclei")
    monkeypatch.chdir(here / "elsewhere")
    assert resolve(found) == found
