"""From s3:// to s3://, as a person types it: the same bytes as on this machine, killed, resumed, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import obstore
import pytest
import tifffile
import zarr
from obstore.store import from_url

import pipeline
from pipeline.ledgers import hold
from pipeline.naming import expand
from pipeline.preflight import preflight
from pipeline.stitching import lease
from pipeline.storage.location import location_of
from pipeline.storage.output import open_output
from pipeline.storage.reference import refer
from pipeline.storage.source import ImageReadError
from tests import warm

PIXELS = np.random.default_rng(5).integers(0, 255, (500, 700, 3), np.uint8)
OPTIONS = ["--network", "unet-tiny", "--tile", "64,64", "--kind", "probability"]


def command(module: str, *arguments: str, python: str = sys.executable) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [python, "-m", f"pipeline.{module}", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(module: str, *arguments: str) -> tuple[int, str, str]:
    process = command(module, *arguments, python=warm.python())
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


@pytest.fixture
def image(bucket: str, tmp_path: Path) -> str:
    tifffile.imwrite(tmp_path / "big.tif", PIXELS, tile=(256, 256), compression="deflate", photometric="rgb")
    obstore.put(from_url(bucket), "images/big.tif", tmp_path / "big.tif")
    return f"{bucket}/images/big.tif"


def names_in(url: str) -> list[str]:
    return [meta["path"] for page in obstore.list(from_url(url)) for meta in page]


def shards_in(url: str) -> dict[str, bytes]:
    store = from_url(url)
    return {name: bytes(obstore.get(store, name).bytes()) for name in names_in(url) if "/c/" in name}


def local_shards(image: Path, folder: Path) -> dict[str, bytes]:
    pipeline.predict(image, "unet-tiny", output=folder, tile=(64, 64), kind="probability", workers=1)
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if "/c/" in str(p) and p.is_file()}


def test_a_killed_run_goes_on_and_gives_the_bytes_of_a_local_one(bucket: str, image: str, tmp_path: Path) -> None:
    output = f"{bucket}/results/big.zarr"
    process = command("infer", image, "-o", output, *OPTIONS, "--workers", "2")
    while len([name for name in names_in(output) if name.startswith("ledger/0")]) < 2 and process.poll() is None:
        time.sleep(0.1)  # the ledger's second piece holds what the run has added
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert pipeline.predict(image, "unet-tiny", output=output, workers=1).resumed > 0
    assert shards_in(output) == local_shards(tmp_path / "big.tif", tmp_path / "big.zarr")
    names = names_in(f"{bucket}/results")
    assert "big.preview.png" in names
    assert not any("/preview/" in name or name.endswith("lease") for name in names)
    report = pipeline.verify(output)
    assert report.ok and report.shards == len(shards_in(output))
    assert np.array_equal(open_output(output).arrays[0][:], zarr.open_array(tmp_path / "big.zarr/0", mode="r")[:])


def test_a_second_run_is_refused_while_the_first_lives(bucket: str, image: str) -> None:
    output = f"{bucket}/held.zarr"
    result = pipeline.predict(image, "unet-tiny", output=output, tile=(256, 256), workers=1)
    lock = hold(location_of(output))
    try:
        status, _, err = run("infer", image, "-o", output)
        assert status == 2 and "is being written by another run" in err and f"process {os.getpid()}" in err
    finally:
        lock.release()
    again = pipeline.predict(image, "unet-tiny", output=output, tile=(256, 256), workers=1)
    assert again.resumed == result.plan.units


def test_a_lost_shard_is_found_by_listing_and_made_again(bucket: str, image: str) -> None:
    output = f"{bucket}/lost.zarr"
    result = pipeline.predict(image, "unet-tiny", output=output, tile=(256, 256), workers=1)
    before = shards_in(output)
    obstore.delete(from_url(output), "0/c/1/2")
    again = pipeline.predict(image, "unet-tiny", output=output, tile=(256, 256), workers=1)
    assert again.resumed == result.plan.units - 1
    assert shards_in(output) == before


def test_overwrite_begins_anew_and_takes_only_what_is_ours(bucket: str, image: str) -> None:
    output = f"{bucket}/again.zarr"
    pipeline.predict(image, "unet-tiny", output=output, workers=1)
    obstore.put(from_url(output), "notes.txt", b"mine")
    with pytest.raises(ValueError, match="kind mask"):
        pipeline.predict(image, "unet-tiny", output=output, workers=1, kind="logits")
    pipeline.predict(image, "unet-tiny", output=output, workers=1, kind="logits", overwrite=True)
    assert open_output(output).attributes["kind"] == "logits"
    assert bytes(obstore.get(from_url(output), "notes.txt").bytes()) == b"mine"
    obstore.put(from_url(bucket), "other/notes.txt", b"mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"other exists already and holds notes\.txt"):
            pipeline.predict(image, "unet-tiny", output=f"{bucket}/other", workers=1, overwrite=overwrite)
    with pytest.raises(ValueError, match="lies in the output"):
        pipeline.predict(image, "unet-tiny", output=f"{bucket}/images", workers=1, overwrite=True)


def test_several_images_and_several_outputs(bucket: str, image: str) -> None:
    results = pipeline.predict([image, image], output=f"{bucket}/many", workers=1)
    assert [r.path for r in results] == [f"{bucket}/many/big.zarr", f"{bucket}/many/big-1.zarr"]
    assert np.array_equal(results[0].array[:], results[1].array[:])


def test_pictures_are_fetched_when_their_turn_comes(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was fetched of others is removed."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr("pipeline.running.REPORT_EVERY", 0.0)
    images = [f"{bucket}/images/{n}.png" for n in range(5)]
    for url in images:
        obstore.put(from_url(url.rpartition("/")[0]), url.rpartition("/")[2], imagecodecs.png_encode(PIXELS[:50, :60]))
    folders: list[int] = []

    def report(_: Any) -> None:
        folders.append(len(list((tmp_path / "tmp").glob("pipeline-scratch-*"))))

    pipeline.predict(images, output=tmp_path / "many", workers=1, report=report)
    assert len(folders) == 5 and max(folders) == 2 and not list((tmp_path / "tmp").iterdir())


def test_patterns_are_listed(bucket: str, image: str) -> None:
    obstore.put(from_url(bucket), "images/other.tif", b"II*")
    obstore.put(from_url(bucket), "images/deep/big.tif", b"II*")
    folder = f"{bucket}/images"
    assert expand([f"{folder}/*.tif", image]) == [image, f"{folder}/other.tif"]
    assert expand([f"{folder}/*.png", f"{folder}/d*"]) == [f"{folder}/*.png", f"{folder}/deep"]


def test_a_lease_of_another_machine_is_taken_over_when_it_is_old(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "TERM", 1.0)
    monkeypatch.setattr(lease, "LOOK", 0.1)
    content = json.dumps({"token": "x", "beat": 3, "holder": "far", "machine": "far"}).encode()
    obstore.put(from_url(f"{bucket}/o.zarr"), "ledger/lease", content)
    lock = hold(location_of(f"{bucket}/o.zarr"))
    assert b'"far"' not in bytes(obstore.get(from_url(f"{bucket}/o.zarr"), "ledger/lease").bytes())
    lock.release()
    assert location_of(f"{bucket}/o.zarr").names("ledger") == []


def test_each_node_is_asked_for_what_is_in_the_bucket(bucket: str, image: str) -> None:
    with closing(preflight([refer(image)], [f"{bucket}/o.zarr"])) as check:
        assert check() is None
        obstore.put(from_url(f"{bucket}/o.zarr"), "ledger/token", b"another run's")
        assert "is not seen" in str(check())


def test_an_object_that_is_replaced_is_not_opened_again(bucket: str, image: str) -> None:
    with refer(image).open() as opened:
        seen = replace(refer(image), identity=opened.identity())
    seen.reopen().close()
    other = bytearray(obstore.get(from_url(bucket), "images/big.tif").bytes())
    other[-1] ^= 1
    obstore.put(from_url(bucket), "images/big.tif", bytes(other))
    with pytest.raises(ImageReadError, match=r"big\.tif was replaced while the run went on"):
        seen.reopen()


def test_convert_and_open_again(bucket: str, image: str) -> None:
    output = f"{bucket}/big.ome.zarr"
    pipeline.convert(image, output, workers=1)
    opened = pipeline.open_image(output)
    assert np.array_equal(opened.dask.compute(), np.moveaxis(PIXELS, -1, 0))
    assert (
        json.loads(bytes(obstore.get(from_url(output), "zarr.json").bytes()))["attributes"]["ome"]["version"] == "0.5"
    )
