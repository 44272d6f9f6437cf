"""What verify finds besides pixels: an output that is whole, and that other readers cannot open or misread."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaozarrs
import zarr

import pipeline
from tests import warm

PIXELS = np.random.default_rng(0).integers(1, 255, (2, 600, 40), np.uint8)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copied")
    np.save(folder / "i.npy", PIXELS)
    pipeline.convert(folder / "i.npy", folder / "o.zarr", workers=1)
    return folder / "o.zarr"


@pytest.fixture
def output(copied: Path, tmp_path: Path) -> Path:
    """A finished copy of `i.npy`, in two levels, to be harmed."""
    return Path(shutil.copytree(copied, tmp_path / "o.zarr"))


def again(output: Path, copied: Path, **options: Any) -> Any:
    return pipeline.convert(copied.parent / "i.npy", output, workers=1, **options)


@pytest.mark.parametrize("level", ["0", "1"])
@pytest.mark.parametrize("harm", ["removed", "no JSON", "shape", "chunk_grid"])
def test_metadata_of_a_level_that_mislead_are_named_and_made_good(
    level: str, harm: str, output: Path, copied: Path
) -> None:
    file = output / level / "zarr.json"
    before = file.read_bytes()
    if harm == "removed":
        file.unlink()
    elif harm == "no JSON":
        file.write_bytes(before[:50])
    else:
        wrong = {"shape": [1, 8, 8], "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 8, 8]}}}
        edit(file, lambda content: content.update({harm: wrong[harm]}))
    report = pipeline.verify(output)
    assert report.places == [f"{level}/zarr.json: not the metadata that were written"]
    result = again(output, copied)
    assert result.resumed == result.plan.units and file.read_bytes() == before
    assert pipeline.verify(output).ok and np.array_equal(zarr.open_group(output, mode="r")["0"][...], PIXELS)


def set_at(path: str, value: Any) -> Callable[[dict[str, Any]], object]:
    """Changes what lies at a path of keys of our attributes; without a value it is removed."""

    def change(group: dict[str, Any]) -> None:
        *above, last = path.split(".")
        within = group["attributes"]["pipeline"]
        for key in above:
            within = within[key]
        if value is ...:
            del within[last]
        else:
            within[last] = value

    return change


DAMAGE = {
    "plan": None,
    "plan.core": [0, 0],
    "plan.size": [-128, 128],
    "plan.field.halo": "x",
    "plan.image.identity": 3,
    "layout": None,
    "layout.dtype": "foo",
    "layout.shards": [[1, 0, 128]],
    "fill": 300,
    "fingerprint": "0" * 64,
    "source": ...,
    "source.image": 5,
    "source.load": {"foo": 1},
    "source.open.level": "x",
}


@pytest.mark.parametrize("at", DAMAGE)
def test_damaged_metadata_are_said_in_one_line_and_can_be_overwritten(at: str, output: Path, copied: Path) -> None:
    edit(output / "zarr.json", set_at(at, DAMAGE[at]))
    for look in (lambda: pipeline.verify(output), lambda: again(output, copied)):
        with pytest.raises(ValueError, match=r"o\.zarr: its metadata are damaged \(zarr\.json\): use --overwrite"):
            look()
    again(output, copied, overwrite=True)
    assert pipeline.verify(output).ok


def test_a_plan_of_another_version_is_called_that(output: Path, copied: Path) -> None:
    edit(output / "zarr.json", set_at("plan.format", 0))
    for look in (lambda: pipeline.verify(output), lambda: again(output, copied)):
        with pytest.raises(ValueError, match="written by another version of pipeline; use --overwrite"):
            look()


@pytest.mark.parametrize("records", ["", " -", " 12:0000abcd", " - - -"])
def test_a_line_of_the_ledger_with_too_few_or_too_many_records_is_no_unit_that_is_done(
    records: str, output: Path, copied: Path
) -> None:
    ledger = output / "ledger" / "ledger.txt"
    with ledger.open("a") as file:
        file.write(f"0{records}\n")
    places = pipeline.verify(output).places
    if records:  # without any it is no line at all
        assert places == [f"shard 0/c/{c}/0/0: its bytes are not those in the ledger" for c in (0, 1)]
    result = again(output, copied)
    assert result.resumed == result.plan.units - bool(records)
    assert pipeline.verify(output).ok


def test_what_makes_good_a_ledger_that_is_lost_is_said(output: Path, copied: Path) -> None:
    (output / "ledger" / "ledger.txt").unlink()
    with pytest.raises(ValueError, match="no ledger that can be read: the command that made it, given again, makes"):
        pipeline.verify(output)
    again(output, copied)
    assert pipeline.verify(output).ok


def test_a_ledger_of_another_run_is_named(output: Path) -> None:
    ledger = output / "ledger" / "ledger.txt"
    ledger.write_text(ledger.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    assert pipeline.verify(output).places == ["ledger: it is that of another run"]


@pytest.mark.parametrize("name", [b"\xff\xfe", "ünï".encode()])
def test_names_of_files_may_be_any_bytes(name: bytes, tmp_path: Path) -> None:
    """No UTF-8, or UTF-8 where the system's text is ASCII: all is found again, and other readers see valid text."""
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    python, more = (warm.python(), {}) if name == b"\xff\xfe" else (sys.executable, ascii_only)
    np.save(tmp_path / os.fsdecode(name + b".npy"), PIXELS[:, :40])
    line = [python, "-m", "pipeline.infer", name + b".npy", "--network", "unet-tiny", "--channels", "0,1,1"]
    done = subprocess.run(
        [*line, "--workers", "1", "--verify"], cwd=tmp_path, capture_output=True, env=os.environ | more, timeout=200
    )
    assert done.returncode == 0 and name + b".zarr: sound" in done.stdout, done.stderr
    output = str(tmp_path / os.fsdecode(name + b".zarr"))
    assert pipeline.verify(output).ok
    json.dumps(json.loads(Path(output, "zarr.json").read_text("utf-8")), ensure_ascii=False).encode()
    yaozarrs.validate_zarr_store(output)


@pytest.mark.parametrize("harm", ["no levels", "one level", "other axes"])
def test_a_group_that_leads_to_no_level_is_named_and_does_not_pass_for_finished(
    harm: str, output: Path, copied: Path
) -> None:
    def change(group: dict[str, Any]) -> None:
        ome = group["attributes"]["ome"]
        if harm == "no levels":
            ome.clear()
        elif harm == "one level":
            del ome["multiscales"][0]["datasets"][1]
        else:
            ome["multiscales"][0]["axes"].reverse()

    edit(output / "zarr.json", change)
    assert pipeline.verify(output).places == ["zarr.json: not the metadata that were written"]
    with pytest.raises(ValueError, match=r"o\.zarr: its metadata are damaged \(zarr\.json\): use --overwrite"):
        again(output, copied)
    again(output, copied, overwrite=True)
    assert pipeline.verify(output).ok
