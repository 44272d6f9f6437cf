"""What is refused, or cannot be written: nothing of the user's is lost, what is done stays done, one line says why."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import zarr
from PIL import Image
from torch import nn

import pipeline
from pipeline import commands, infer
from pipeline.api import TilesFailed
from pipeline.naming import expand


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, 2, 3, padding=1).eval()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "big.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (200, 260, 3), np.uint8)
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", compression="zlib")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": (7, 0)}, "tile of 0 columns"),
        ({"channels": (0, 1)}, "channels"),
        ({"channels": (0, 1, 9)}, "channel 9"),
        ({"memory": 100}, "too little"),
        ({"level": 2}, "level 2"),
        ({"axes": "QQ"}, "QQ"),
        ({"store": "float32"}, "store"),
    ],
)
def test_what_is_refused_overwrites_nothing(
    options: dict[str, Any], message: str, image: Path, net: nn.Module, tmp_path: Path
) -> None:
    output = tmp_path / "o.zarr"
    pipeline.predict(image, net, output, workers=1)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=message):
        pipeline.predict(image, net, output, workers=1, overwrite=True, **options)
    assert contents(tmp_path) == before
    with pytest.raises(ValueError, match=message):
        pipeline.predict(image, net, tmp_path / "new.zarr", workers=1, **options)
    assert contents(tmp_path) == before and not (tmp_path / "new.zarr").exists()


def test_a_copy_for_which_there_is_no_room_is_refused_before_anything_is_removed(
    image: Path, net: nn.Module, tmp_path: Path
) -> None:
    output = tmp_path / "o.zarr"
    pipeline.predict(image, net, output, workers=1)
    before = contents(tmp_path)
    side = 1 << 24  # 844 TB in memory, if it held anything, which other processes would read from a copy
    huge = zarr.create_array({}, shape=(3, side, side), chunks=(3, 4096, 4096), dtype="u1")
    for target, overwrite in ((output, True), (tmp_path / "new.zarr", False)):
        with pytest.raises(ValueError, match=r"takes up to 844424\.9 GB, and .* GB left"):
            pipeline.predict(huge, net, target, workers=2, overwrite=overwrite)
        assert contents(tmp_path) == before


class BySize(nn.Module):
    """A convolution, and something else where `differs` says so of the input's rows and columns."""

    def __init__(self, differs: Any) -> None:
        super().__init__()
        self.conv, self.differs = nn.Conv2d(3, 2, 3, padding=1), differs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv(x) * self.differs(*x.shape[2:])
        return result


SIZED: dict[str, tuple[nn.Module, tuple[int, int]]] = {
    "wide": (BySize(lambda y, x: 2 if x > 160 else 1), (150, 170)),
    "wider than what is recorded in whole": (BySize(lambda y, x: 2 if x > 1000 else 1), (120, 1100)),
    "higher than that": (BySize(lambda y, x: 2 if y > 1000 else 1), (1100, 120)),
    "upright": (BySize(lambda y, x: torch.full((2, 1, 1), 2.0) if y > x else 1), (170, 150)),
    "square": (BySize(lambda y, x: torch.full((2, 1, 1), 2.0) if x == y else 1), (150, 150)),
    "dark on the right": (BySize(lambda y, x: torch.arange(x) < 140), (150, 170)),
}


@pytest.mark.parametrize("kind", SIZED)
def test_a_network_that_does_something_else_on_this_size_than_on_others_is_refused(kind: str, tmp_path: Path) -> None:
    module, size = SIZED[kind]
    with pytest.raises(ValueError, match=r"network BySize is not local.*(other operations|size|position)"):
        pipeline.predict(np.zeros((3, *size), np.uint8), module.eval(), tmp_path / "o.zarr", tile=(32, 32), workers=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "target"),
    [("c.zarr", "c.zarr"), ("c.zarr/0", "c.zarr"), ("link.zarr", "c.zarr"), ("c.zarr/0", "link.zarr"), ("c.zarr", ".")],
)
def test_the_image_is_never_overwritten(
    source: str, target: str, image: Path, net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by its own name, through a link, nor with a folder that it lies in."""
    monkeypatch.chdir(tmp_path)
    pipeline.convert(image, "c.zarr", workers=1)
    Path("link.zarr").symlink_to("c.zarr")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="the image"):
        pipeline.predict(source, net, target, workers=1, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("second", ["many/a.zarr/0", "link.zarr", "many/a.preview.png"])
def test_no_image_of_the_call_is_overwritten_before_its_turn(
    second: str, image: Path, net: nn.Module, tmp_path: Path
) -> None:
    """Not where it lies, through a link, nor by a preview, though what is there be ours; it is done itself."""
    (tmp_path / "many").mkdir()
    if second == "many/a.preview.png":
        pipeline.predict(image, net, tmp_path / "many/a.zarr", workers=1)
    else:
        pipeline.convert(image, tmp_path / "many/a.zarr", workers=1)
    (tmp_path / "link.zarr").symlink_to("many/a.zarr")
    images = [shutil.copy(image, tmp_path / "a.tif"), tmp_path / second]
    before = contents(tmp_path / "many")
    with pytest.raises(TilesFailed, match=rf"^1 of 2 images failed: .*a.tif: .*the image .*{second}") as failed:
        pipeline.predict(images, net, tmp_path / "many", workers=1, overwrite=True)
    assert len(failed.value.results) == 1
    assert contents(tmp_path / "many").items() >= before.items()


def test_an_image_that_is_yet_to_be_made_is_no_output_of_the_same_call(
    image: Path, net: nn.Module, tmp_path: Path
) -> None:
    first = shutil.copy(image, tmp_path / "a.tif")
    with pytest.raises(TilesFailed, match=r"^2 of 2 images failed: .*a.zarr/0 lies in the output .* no such file"):
        pipeline.predict([first, tmp_path / "many" / "a.zarr" / "0"], net, tmp_path / "many", workers=1)


def test_a_folder_of_outputs_must_be_a_folder(image: Path, net: nn.Module, tmp_path: Path) -> None:
    pipeline.predict(image, net, tmp_path / "o.zarr", workers=1)
    before = contents(tmp_path)
    for target in (image, tmp_path / "o.zarr"):
        with pytest.raises(ValueError, match="give another name"):
            pipeline.predict([image, image], net, target, workers=1)
    with pytest.raises(FileNotFoundError, match="create it first"):
        pipeline.predict([image, image], net, tmp_path / "missing" / "deep", workers=1)
    with pytest.raises(ValueError, match="cannot write /proc/outputs"):
        pipeline.predict([image, image], net, "/proc/outputs", workers=1)
    assert contents(tmp_path) == before


def test_complex_pixels_are_refused_as_no_network_takes_them(net: nn.Module, tmp_path: Path) -> None:
    """Rather than their imaginary parts left out."""
    np.save(tmp_path / "a.npy", np.full((3, 20, 20), 1 + 2j, np.complex64))
    with pytest.raises(ValueError, match="holds complex64: give its magnitude, or its parts as channels"):
        pipeline.predict(tmp_path / "a.npy", net, tmp_path / "o.zarr", workers=1)
    assert not (tmp_path / "o.zarr").exists()


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    with pytest.raises(ValueError, match=r"pipe\.tif is neither a file nor a folder"):
        pipeline.open_image(tmp_path / "pipe.tif")


def test_an_image_named_twice_is_done_once(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert expand(["big.tif", "b*.tif", "big.tif", "none*.tif"]) == ["big.tif", "none*.tif"]


@pytest.mark.parametrize(("words", "folder"), [(["a.tif", "-o", "out/"], True), (["a.tif", "-o", "o.zarr/"], False)])
def test_a_slash_makes_a_folder_of_outputs(words: list[str], folder: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a pattern may stand for one image; an output whose name a shell has completed stays one."""
    asked: list[bool] = []
    monkeypatch.setattr(sys, "argv", ["infer", *words])
    monkeypatch.setattr(infer, "predict", lambda *_, folder, **__: asked.append(folder) or 0)
    assert infer.main() == 0 and asked == [folder]


def test_a_preview_that_cannot_be_written_loses_nothing(
    image: Path, net: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "o.preview.png").mkdir()
    result = pipeline.predict(image, net, tmp_path / "o.zarr", workers=1)
    assert not result.failures and "its preview cannot be written" in caplog.text
    (tmp_path / "o.preview.png").rmdir()
    again = pipeline.predict(image, net, tmp_path / "o.zarr", workers=1)
    assert again.resumed == again.plan.units and (tmp_path / "o.preview.png").stat().st_size > 1000
    assert not (tmp_path / "o.zarr" / "preview").exists()


def test_a_lost_tile_leaves_the_preview_as_it_was(image: Path, net: nn.Module, tmp_path: Path) -> None:
    result = pipeline.predict(image, net, tmp_path / "o.zarr", workers=1, tile=(64, 64))
    picture = (tmp_path / "o.preview.png").read_bytes()
    next((tmp_path / "o.zarr" / "0" / "c").rglob("1")).joinpath("1").unlink()
    again = pipeline.predict(image, net, tmp_path / "o.zarr", workers=1, tile=(64, 64))
    assert again.resumed == result.plan.units - 1
    assert (tmp_path / "o.preview.png").read_bytes() == picture


def test_the_preview_of_the_working_directory_lies_beside_it(
    image: Path, net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pipeline.predict(image, net, ".", workers=1)
    assert (tmp_path / "here.preview.png").exists()


def test_a_full_disk_is_one_line_and_what_is_done_stays_done(image: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk; shards of noise are beyond it, those of black are not."""
    pixels = tifffile.imread(image)
    pixels[:64] = 0
    tifffile.imwrite(image, pixels, tile=(64, 64), photometric="rgb")
    words = ["-m", "pipeline.infer", str(image), "--network", "unet-tiny", "--tile", "32,264", "--kind", "logits"]
    command = [sys.executable, *words, "--workers", "1", "-o", "o.zarr"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))

    # what counts coverage would write a file beyond the limit too
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    full = subprocess.run(
        command, cwd=tmp_path, env=plain, preexec_fn=limit, capture_output=True, text=True, timeout=200
    )
    assert full.returncode == 2
    assert full.stderr.splitlines()[-1] == f"error: cannot write {tmp_path}/o.zarr: {os.strerror(errno.EFBIG)}"
    assert pipeline.predict(image, "unet-tiny", tmp_path / "o.zarr", kind="logits", workers=1).resumed == 2
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("options", [{}, {"tile": (96, 96)}, {"mode": "blend", "window": 64}])
def test_the_least_memory_that_an_error_names_will_do(options: dict[str, Any], image: Path, net: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"give --memory \d+MB") as refused:
        pipeline.plan(image, net, memory=100, **options)
    least = str(refused.value).rsplit("--memory ", 1)[1].split()[0]
    plan = pipeline.plan(image, net, memory=least, **options)
    assert plan.memory <= int(least.removesuffix("MB")) * 1_000_000


@pytest.mark.parametrize(("overwrite", "how"), [(False, ""), (True, " without overwrite")])
def test_a_run_that_lost_tiles_says_how_it_is_continued(
    overwrite: bool, how: str, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tifffile.TiffFile(image) as file:
        offset = file.pages[0].dataoffsets[7]
    with image.open("r+b") as raw:
        raw.seek(offset)
        raw.write(bytes(200))
    given = {"workers": 1, "overwrite": overwrite}
    with pytest.raises(RuntimeError, match="1 tiles failed"):
        commands.predict([str(image)], str(tmp_path / "o.zarr"), "unet-tiny", folder=False, verify=False, given=given)
    assert capsys.readouterr().out.endswith(f" s: the same command{how} continues\n")


def test_a_chunk_that_does_not_decode_fails_its_tile_until_the_file_is_mended(
    image: Path, net: nn.Module, tmp_path: Path
) -> None:
    sound = image.read_bytes()
    with tifffile.TiffFile(image) as file:
        offset = file.pages[0].dataoffsets[7]
    image.write_bytes(sound[:offset] + bytes(200) + sound[offset + 200 :])
    options = {"tile": (64, 64), "workers": 1, "kind": "logits"}
    for _ in range(2):
        with pytest.raises(TilesFailed, match=r"tile 2 .*page 0, tile 7 cannot be decoded") as failed:
            pipeline.predict(image, net, tmp_path / "o.zarr", **options)
        assert len(failed.value.results[0].failures) == 9  # the halos of its neighbours take it too
        assert str(failed.value).startswith(f"9 tiles failed: {tmp_path}/o.zarr: tile 1 (rows 0 to 64, ")
        assert str(failed.value).count("cannot be decoded") == 3 and str(failed.value).endswith("; and 6 more")
    image.write_bytes(sound)
    with pytest.raises(ValueError, match=r"was started with image .*, this run has .*--overwrite"):
        pipeline.predict(image, net, tmp_path / "o.zarr", **options)
    shutil.rmtree(tmp_path / "o.zarr")
    assert not pipeline.predict(image, net, tmp_path / "o.zarr", **options).failures


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory: give fewer --workers"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "/data/x"), "/data/x: Input/output error"),
        (ValueError("two\nlines"), "two lines"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def main() -> int:
        raise error

    monkeypatch.setattr(commands.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        commands.run(main)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {said}") and err.count("\n") == 1


def test_a_preview_replaces_neither_the_image_nor_a_picture_of_somebody_else(net: nn.Module, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.preview.png")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"^the preview of photo.zarr would replace the image .*preview.png: give"):
        pipeline.predict(tmp_path / "photo.preview.png", net, tmp_path / "photo.zarr", workers=1)
    with pytest.raises(ValueError, match=r"photo.preview.png is in the way of the preview, and not ours: give another"):
        pipeline.predict(pixels.transpose(2, 0, 1), net, tmp_path / "photo.zarr", workers=1)
    assert contents(tmp_path) == before

    pipeline.predict(tmp_path / "photo.preview.png", net, tmp_path / "other.zarr", workers=1)
    shutil.rmtree(tmp_path / "other.zarr")  # its preview stays, and is known as ours
    pipeline.predict(tmp_path / "photo.preview.png", net, tmp_path / "other.zarr", workers=1)
    assert contents(tmp_path)["photo.preview.png"] == before["photo.preview.png"]


def test_what_somebody_put_in_place_of_a_preview_of_ours_stays(
    image: Path, net: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused where all would be made anew; a run that goes on keeps what it made, and says it."""
    output, picture = tmp_path / "o.zarr", tmp_path / "o.preview.png"
    result = pipeline.predict(image, net, output, workers=1, tile=(64, 64))
    picture.write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"o.preview.png is in the way of the preview, and not ours: give another"):
        pipeline.predict(image, net, output, workers=1, overwrite=True)
    assert contents(tmp_path) == before
    assert pipeline.predict(image, net, output, workers=1).resumed == result.plan.units

    (output / "ledger" / "ledger.txt").unlink()  # so that all is to be done again
    pipeline.predict(image, net, output, workers=1)
    assert picture.read_text() == "precious" and "is in the way of the preview" in caplog.text


def test_an_array_of_an_output_is_not_overwritten_by_what_is_made_of_it(net: nn.Module, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 40, 50), np.uint8)
    result = pipeline.predict(pixels, net, tmp_path / "o.zarr", kind="logits", workers=1)
    before = contents(tmp_path)
    two = nn.Conv2d(2, 2, 1).eval()
    with pytest.raises(ValueError, match=r"^the image .*o.zarr/0 lies in the output .*o.zarr: give another name"):
        pipeline.predict(result.array, two, tmp_path / "o.zarr", overwrite=True, workers=1)
    assert contents(tmp_path) == before


def test_options_that_contradict_a_run_that_was_started_are_refused(net: nn.Module, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 64, 64), np.uint8)
    np.save(tmp_path / "square.npy", pixels)
    square = tmp_path / "square.npy"
    pipeline.predict(square, net, tmp_path / "o.zarr", workers=1, axes="CYX")
    with pytest.raises(ValueError, match=r"was started with image .* give the same image"):
        pipeline.predict(square, net, tmp_path / "o.zarr", workers=1, axes="CXY")
    with pytest.raises(
        ValueError, match=r"was started with tiles that need \d+ MB a worker, more than the memory of 0 MB"
    ):
        pipeline.predict(square, net, tmp_path / "o.zarr", workers=1, memory="100kB")
    pipeline.predict(square, net, tmp_path / "o.zarr", workers=1, memory="1GB")

    pooled = nn.Sequential(net, nn.InstanceNorm2d(2)).eval()
    pipeline.predict(square, pooled, tmp_path / "b.zarr", workers=1, mode="blend", window=32)
    pipeline.predict(square, pooled, tmp_path / "b.zarr", workers=1, mode="blend", window=32)
    with pytest.raises(ValueError, match=r"was started with window \(32, 32\), this run has \(48, 48\)"):
        pipeline.predict(square, pooled, tmp_path / "b.zarr", workers=1, mode="blend", window=48)


def test_a_window_that_is_too_small_for_the_network_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    """Of the size to which it is rounded; an image of another size would do."""
    pooled = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.MaxPool2d(4), nn.InstanceNorm2d(3), nn.Upsample(scale_factor=4)
    ).eval()
    pixels, output = np.zeros((3, 30, 40), np.uint8), tmp_path / "o.zarr"
    with pytest.raises(ValueError, match=r"^windows of 4 x 4 pixels are too small .*1 spatial.* --window 8 or more$"):
        pipeline.predict(pixels, pooled, output, workers=1, mode="blend", window=1)
    assert not output.exists()
    assert pipeline.predict(pixels, pooled, output, workers=1, mode="blend", window=8).plan.window == (8, 8)


def test_a_reach_is_declared_only_where_it_is_not_derived(net: nn.Module, image: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--reach 5: is for a network with an operation that the analysis does not"):
        pipeline.predict(image, net, tmp_path / "o.zarr", reach=5)


def test_a_copy_takes_no_option_that_would_change_its_pixels(image: Path, tmp_path: Path) -> None:
    for options in ({"channels": (0,)}, {"kind": "logits"}, {"precision": "float64"}):
        with pytest.raises(ValueError, match=f"^unknown option '{next(iter(options))}'; convert has address, axes, en"):
            pipeline.convert(image, tmp_path / "c.zarr", workers=1, **options)
    assert not (tmp_path / "c.zarr").exists()
    copy = pipeline.convert(image, tmp_path / "c.zarr", workers=1, memory="1GB", engine="local", level=0)
    assert copy.array.shape == (3, 200, 260)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"address": "10.0.0.1:6379"}, "address=10.0.0.1:6379: is for engine ray, not local"),
        ({"worker_gpus": 1}, "worker_gpus=1: is for engine ray, not local"),
        ({"worker_cpus": 2, "engine": "dask"}, "worker_cpus=2: is for engine ray, not dask"),
        ({"window": 64}, "window=64: is for mode blend, not exact"),
        ({"window": 64, "mode": "exact"}, "window=64: is for mode blend, not exact"),
    ],
)
def test_an_option_that_another_option_leaves_without_effect_is_refused(
    options: dict[str, Any], said: str, image: Path, net: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"^option {said}$"):
        pipeline.predict(image, net, tmp_path / "o.zarr", **options)
    pipeline.plan(image, net, worker_cpus=1, worker_gpus=0, engine="dask")  # which asks for what there is anyway


def test_a_copy_of_an_image_that_cannot_be_read_whole_says_so(image: Path, tmp_path: Path) -> None:
    with tifffile.TiffFile(image) as file:
        page = file.pages[0]
        offset, count = page.dataoffsets[5], page.databytecounts[5]  # type: ignore[union-attr]
    with image.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * count)
    with pytest.raises(TilesFailed, match=r"^1 tiles failed: .*c.zarr: tile 0"):
        pipeline.convert(image, tmp_path / "c.zarr", workers=1)
