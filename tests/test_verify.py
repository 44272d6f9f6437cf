"""verify as a command: of one output, several, and folders of them."""

from __future__ import annotations

import runpy
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

import pipeline

Verified = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/a.zarr and results/b.zarr, as of photos/*.tif, with their previews."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "photos").mkdir()
    for seed, name in enumerate("ab"):
        pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), np.uint8)
        tifffile.imwrite(folder / "photos" / f"{name}.tif", pixels, photometric="rgb")
    pipeline.predict(sorted((folder / "photos").iterdir()), "unet-tiny", folder / "results", workers=1)
    return folder


@pytest.fixture
def verified(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Verified:
    """Runs the command in a copy of what was made: (status, lines on stdout, lines on stderr)."""
    shutil.copytree(made / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, list[str], list[str]]:
        monkeypatch.setattr(sys, "argv", ["verify", *words])
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("pipeline.verify", run_name="__main__")
        for number, handler in before.items():
            signal.signal(number, handler)
        assert isinstance(ended.value.code, int)
        said = capfd.readouterr()
        return ended.value.code, said.out.splitlines(), said.err.splitlines()

    return run


def spoil(output: str) -> None:
    shard = next(path for path in Path(output, "0", "c").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize("words", [["results"], ["results/"], ["results/*.zarr"], ["results/a.zarr", "results/b.zarr"]])
def test_a_folder_of_outputs_and_a_list_are_all_of_them(verified: Verified, words: list[str]) -> None:
    status, lines, errors = verified(*words)
    assert (status, errors) == (0, [])
    assert [line.split(": ")[:2] for line in lines[:-1]] == [[f"results/{name}.zarr", "sound"] for name in "ab"]
    assert lines[-1] == "2 of 2 outputs are sound"


def test_one_output_says_what_it_always_said(verified: Verified) -> None:
    status, lines, errors = verified("results/a.zarr")
    assert (status, len(lines), errors) == (0, 1, []) and lines[0].startswith("results/a.zarr: sound: ")


def test_an_unsound_output_among_others_is_status_1(verified: Verified) -> None:
    spoil("results/a.zarr")
    status, lines, errors = verified("results")
    assert (status, errors) == (1, []) and lines[-1] == "1 of 2 outputs are sound"
    assert any(line.startswith("results/a.zarr: NOT SOUND") for line in lines)
    assert any(line.startswith("results/b.zarr: sound") for line in lines)


def test_what_is_no_output_is_status_2_and_the_others_are_looked_at(verified: Verified) -> None:
    status, lines, errors = verified("results/none.zarr", "results/b.zarr")
    assert status == 2 and errors == ["error: results/none.zarr: there is no such output"]
    assert lines[0].startswith("results/b.zarr: sound") and lines[-1] == "1 of 2 outputs are sound"
    spoil("results/b.zarr")
    assert verified("results/none.zarr", "results/b.zarr")[0] == 1
    Path("empty").mkdir()
    status, lines, errors = verified("empty")
    assert (status, lines, len(errors)) == (2, [], 1) and "empty is not an output of pipeline" in errors[0]


def test_an_image_is_given_for_one_output_alone(verified: Verified, made: Path) -> None:
    image = str(made / "photos" / "a.tif")
    assert verified("results/a.zarr", "--image", image, "--network", "unet-tiny")[0] == 0
    status, lines, errors = verified("results", "--image", image)
    assert (status, lines) == (2, []) and errors == [
        "error: --image is for one output, and these are 2: results/a.zarr ..."
    ]
    assert verified("results", "--network", "unet-tiny")[0] == 0
