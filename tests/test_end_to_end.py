"""From image to output, in Python and as commands; what is wrong is one line."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
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
from pipeline import api, checking, commands, previewing, running
from pipeline.analysis import Analysis
from pipeline.api import TilesFailed
from pipeline.engines.machine import usable_cpus
from pipeline.stitching.drawing import FIRST_CLASS
from pipeline.stitching.ledger import Ledger
from pipeline.storage.output import open_output
from pipeline.tiling.geometry import Region
from pipeline.worker import INTERPRETER
from tests import warm
from tests.zoo import integer_weights_


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 5, padding=2), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1)).eval()


def test_a_network_that_is_not_local_is_refused_by_name(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.Conv2d(4, 2, 1)).eval()
    assert not pipeline.receptive_field(net).is_local
    with pytest.raises(ValueError, match=r"is not local.*1: .*blend"):
        pipeline.predict(np.zeros((1, 40, 40), np.uint8), net, tmp_path / "o.zarr")


def test_blend_is_the_same_for_any_tile(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.Conv2d(4, 2, 1)).eval()
    image = np.random.default_rng(0).integers(0, 255, (1, 150, 170), np.uint8)
    a, b = (
        pipeline.predict(
            image, net, tmp_path / f"{t}.zarr", kind="logits", mode="blend", window=64, tile=(t, t), workers=1
        )
        for t in (48, 96)
    )
    np.testing.assert_allclose(a.array[:], b.array[:], atol=1e-5)
    assert a.plan.read_amplification > b.plan.read_amplification > 1


def test_a_forecast_of_blend_counts_every_window_and_tiles_have_few_junctions() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.Conv2d(4, 2, 1)).eval()
    image = np.zeros((1, 1024, 1024), np.uint8)
    (chosen, _), (small, _) = (
        next(api.forecasts([image], net, mode="blend", window=256, tile=tile)) for tile in (None, (512, 512))
    )
    assert chosen.core == (1024, 1024) and chosen.read_amplification == (7 * 256 / 1024) ** 2
    assert small.read_amplification == (2 * 4 * 256 / 1024) ** 2


def test_a_preview_has_a_smaller_result_where_it_lies_in_the_image() -> None:
    image = np.zeros((1, 60, 90), np.uint8)
    valid = pipeline.plan(image, nn.Conv2d(1, 2, (11, 7)).eval())
    assert previewing.extent(valid) == Region.of(5, 55, 3, 87)
    halved = pipeline.plan(image, nn.Sequential(nn.Conv2d(1, 2, 4, stride=2, padding=0)).eval())
    assert previewing.extent(halved) == Region.of(1, 59, 1, 89)


def test_a_preview_outlines_what_the_mask_holds_also_of_a_network_that_ends_in_a_probability(tmp_path: Path) -> None:
    image = np.zeros((1, 60, 90), np.float32)
    image[:, 20:40, 30:50] = 2
    ends_in_one, outlined = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sigmoid()).eval(), []
    nn.init.ones_(ends_in_one[0].weight)
    nn.init.constant_(ends_in_one[0].bias, -1)
    for kind in ("mask", "probability", "logits"):
        output = tmp_path / f"{kind}.zarr"
        pipeline.predict(image, ends_in_one, output, kind=kind, activation="none", workers=1)
        with Image.open(output.with_suffix(".preview.png")) as page:
            outlined.append(int((np.asarray(page) == FIRST_CLASS).all(axis=2).sum()))
    assert outlined[0] == outlined[1] == outlined[2] > 0


def test_a_class_that_rounding_may_decide_is_no_fault_of_a_mask() -> None:
    """Of a network that ends in a probability, whose mask is what is above a half."""
    nearly = torch.tensor([[[0.1, 0.5 + 1e-7, 0.9]]])
    assert checking._unsure(nearly, 1e-5, 0.5).tolist() == [[False, True, False]]


def test_nothing_of_the_callers_torch_changes(tmp_path: Path) -> None:
    net = convolutions()
    weights = [p.clone() for p in net.parameters()]
    threads = torch.get_num_threads()
    pipeline.predict(np.zeros((1, 30, 30), np.uint8), net, tmp_path / "o.zarr", workers=1, precision="float64")
    assert torch.get_num_threads() == threads and torch.is_grad_enabled()
    assert all(torch.equal(a, b) and b.requires_grad for a, b in zip(weights, net.parameters(), strict=True))


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("big") / "big.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (640, 700, 3), np.uint8)
    tifffile.imwrite(path, pixels, tile=(128, 128), compression="zlib", photometric="rgb")
    return path


def command(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [warm.python(), "-m", "pipeline.infer", *map(str, words)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=200)


Typed = Callable[..., tuple[int, str]]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Typed:
    """Runs a command in this process, which has loaded everything, in `tmp_path`: (status, what it says on stderr)."""

    def run(*words: str | Path, module: str = "infer") -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [module, *map(str, words)])
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(f"pipeline.{module}", run_name="__main__")
        for number, handler in before.items():
            signal.signal(number, handler)
        assert isinstance(ended.value.code, int)
        return ended.value.code, capfd.readouterr().err

    return run


@pytest.mark.parametrize("harm", ["zeros within", "half of it"])
def test_verify_names_a_shard_whose_bytes_are_not_what_was_written(harm: str, big: Path, tmp_path: Path) -> None:
    """Also where they cannot be decoded any more: status 1 and the places, not a mistake of the user's."""
    result = pipeline.predict(big, "unet-tiny", tmp_path / "o.zarr", tile=(256, 256), kind="probability", workers=1)
    shard = max((tmp_path / "o.zarr" / "0").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    whole = shard.read_bytes()
    middle = len(whole) // 2
    shard.write_bytes(whole[:middle] + (b"" if harm == "half of it" else bytes(50) + whole[middle + 50 :]))
    report = pipeline.verify(result.path)
    name = str(shard.relative_to(tmp_path / "o.zarr"))
    assert not report.ok and any(name in place for place in report.places)
    assert any("cannot be read" in place for place in report.places)
    done = subprocess.run(
        [warm.python(), "-m", "pipeline.verify", result.path], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1 and name in done.stdout + done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("folder", [False, True])
def test_a_prediction_that_verifies_says_the_same_of_an_unsound_output(
    folder: bool, big: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {"folder": folder, "verify": True, "given": {"workers": 1}}
    target = str(tmp_path / ("o" if folder else "o.zarr"))
    output = tmp_path / "o" / "big.zarr" if folder else tmp_path / "o.zarr"
    assert commands.predict([str(big)], target, "unet-tiny", **asked) == 0
    assert f"{output}: sound: " in capsys.readouterr().out
    shard = next(path for path in (output / "0" / "c").rglob("*") if path.is_file())
    whole = shard.read_bytes()
    shard.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    assert commands.predict([str(big)], target, "unet-tiny", **asked) == 1
    *_, place, verdict = capsys.readouterr().out.splitlines()
    assert str(shard.relative_to(output)) in place or "cannot be read" in place
    assert verdict.startswith(f"{output}: NOT SOUND: ")


def plant(result: pipeline.Result, change: Callable[[np.ndarray], None]) -> None:
    """Changes what the first tile wrote, and the ledger with it."""
    output = open_output(result.path)
    level, region = result.plan.region_of(0)
    pixels = output.read(level, region)
    change(pixels)
    records = output.write(level, region, pixels)
    with Ledger.open(Path(result.path) / "ledger", result.plan.fingerprint, result.plan.units) as ledger:
        ledger.add(0, records)


def test_verify_finds_a_planted_seam(big: Path, tmp_path: Path) -> None:
    result = pipeline.predict(str(big), "unet-tiny", tmp_path / "o.zarr", kind="logits", tile=(320, 352), workers=1)
    assert pipeline.verify(result.path).ok

    def seam(pixels: np.ndarray) -> None:
        pixels[:, -3:] += 0.5

    plant(result, seam)
    report = pipeline.verify(result.path)
    assert not report.ok and any("tile junction" in place or "level 1" in place for place in report.places)


@pytest.mark.parametrize("harm", [np.nan, np.inf, 1000.0])
def test_verify_sees_what_is_no_number(harm: float, tmp_path: Path) -> None:
    """float16 ends at 65504: infinities that the network itself gives are sound, and excuse nothing beside them."""
    net = nn.Conv2d(1, 1, 1).eval()
    nn.init.constant_(net.weight, 300)
    image = np.random.default_rng(0).integers(0, 256, (1, 60, 60), np.uint8)
    result = pipeline.predict(image, net, tmp_path / "o.zarr", kind="logits", precision="float16", workers=1)
    assert 0 < np.isinf(result.array[:]).mean() < 0.5
    report = pipeline.verify(result.path, image, net)
    assert report.ok and report.max_difference < report.tolerance < 400

    def change(pixels: np.ndarray) -> None:
        pixels[np.isfinite(pixels)] += harm

    plant(result, change)
    report = pipeline.verify(result.path, image, net)
    assert not report.ok and report.max_difference == (1000 if harm == 1000 else np.inf)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(("store", "stored"), [("uint8", 0), ("float32", np.nan)])
def test_nan_in_an_image_is_no_probability(store: str, stored: float, tmp_path: Path) -> None:
    """Nor a warning, with lines of code, of each worker."""
    image = np.random.default_rng(0).random((1, 40, 40), np.float32)
    image[0, 5:9, 7] = np.nan
    result = pipeline.predict(image, nn.Conv2d(1, 2, 1).eval(), tmp_path / "o.zarr", kind="probability", store=store,
                              workers=1)  # fmt: skip
    np.testing.assert_array_equal(result.array[:, 5:9, 7], np.full((2, 4), stored))
    assert (result.array[:] > 0).sum() == 2 * (40 * 40 - 4)


def test_many_images_into_a_folder_and_the_bad_one_is_named(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (90 + i, 100, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "bad.png").write_bytes(b"no image")
    run = command("photos/*.png", "-o", "out", "--network", "unet-tiny", "--workers", "2", cwd=tmp_path)
    assert run.returncode == 1 and "bad.png" in run.stderr and "3 of 4 images" in run.stdout, run.stderr
    assert sorted(os.listdir(tmp_path / "out")) == sorted(
        [f"{i}.zarr" for i in range(3)] + [f"{i}.preview.png" for i in range(3)]
    )


def test_a_corrupt_chunk_fails_its_tile_alone(big: Path, tmp_path: Path) -> None:
    data = bytearray(big.read_bytes())
    with tifffile.TiffFile(big) as file:
        offset = file.pages[0].dataoffsets[7]
    data[offset : offset + 200] = bytes(200)
    (tmp_path / "bad.tif").write_bytes(data)
    with pytest.raises(TilesFailed, match=r"1 tiles failed.*chunk") as caught:
        pipeline.predict(str(tmp_path / "bad.tif"), nn.Conv2d(3, 2, 1).eval(), tmp_path / "o.zarr",
                         tile=(128, 128), workers=1)  # fmt: skip
    assert len(caught.value.results[0].failures) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.tif"], "nothing.tif"),
        (["big.tif", "--tile", "7,8"], "alignment"),
        (["big.tif", "--tile", "a,b"], "'a,b' is not whole numbers with commas"),
        (["big.tif", "--memory", "much"], "memory"),
        (["big.tif", "--memory", "3MB"], "--memory"),
        (["big.tif", "--network", "nothing"], "nothing"),
        (["big.tif", "--channels", "0"], "channels"),
        (["big.tif", "--channels", "0,1,9"], "channel 9"),
        (["big.tif", "--engine", "spark"], "engine"),
        (["big.tif", "--workers", "0"], "workers"),
        (["big.tif", "-o", "missing/o.zarr"], "missing"),
        (["empty.tif"], "empty"),
        (["text.tif"], "text.tif"),
        (["big.tif", "-o", "text.tif"], "text.tif"),
        (["big.tif", "--level", "3"], "level"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    big: Path, tmp_path: Path, words: list[str], message: str, typed: Typed
) -> None:
    """The first one typed as a person does."""
    (tmp_path / "big.tif").write_bytes(big.read_bytes())
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "text.tif").write_text("no image at all")
    if words == ["nothing.tif"]:
        run = command(*words, cwd=tmp_path)
        status, said = run.returncode, run.stderr
    else:
        status, said = typed(*words)
    assert status == 2, said
    assert message in said and "Traceback" not in said and said.count("\n") == 1


def test_another_run_on_the_same_output_is_refused_with_the_difference(big: Path, tmp_path: Path) -> None:
    net = nn.Conv2d(3, 2, 1).eval()
    pipeline.predict(str(big), net, tmp_path / "o.zarr", workers=1)
    with pytest.raises(ValueError, match=r"kind mask.*logits"):
        pipeline.predict(str(big), net, tmp_path / "o.zarr", kind="logits", workers=1)
    with pytest.raises(ValueError, match="network"):
        pipeline.predict(str(big), nn.Conv2d(3, 2, 1).eval(), tmp_path / "o.zarr", workers=1)
    result = pipeline.predict(str(big), net, tmp_path / "o.zarr", kind="logits", overwrite=True, workers=1)
    assert result.array.dtype == np.float32


def test_convert_keeps_every_pixel(big: Path, tmp_path: Path, typed: Typed) -> None:
    status, said = typed(big, "big.ome.zarr", "--workers", "1", "--memory", "1GB", module="convert")
    assert status == 0, said
    with pipeline.open_image(big) as a, pipeline.open_image(tmp_path / "big.ome.zarr") as b:
        np.testing.assert_array_equal(a.dask.compute(), b.dask.compute())
        assert b.shape == a.shape


def test_convert_keeps_complex_pixels(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pixels = (random.normal(size=(1, 70, 90)) + 1j * random.normal(size=(1, 70, 90))).astype(np.complex64)
    pixels[0, 3, 4] = complex(np.nan, np.inf)
    result = pipeline.convert(pixels, tmp_path / "o.zarr", workers=1)
    np.testing.assert_array_equal(result.array[:], pixels)
    assert pipeline.verify(result.path, pixels).ok
    plant(result, lambda stored: np.copyto(stored, stored.conj()))
    report = pipeline.verify(result.path, pixels)
    assert not report.ok and 0 < report.max_difference < np.inf


def measured(folder: Path, first: str, call: str) -> list[int]:
    """Bytes that the plan of a call says, that it takes after a first one in the same process, and of that process."""
    code = (
        "import numpy, pipeline\n"
        "def peak():\n"
        "    status = open('/proc/self/status').read()\n"
        "    return int(status.split('VmHWM:')[1].split()[0]) * 1024\n"
        f"pipeline.{first}\n"
        "before = peak()\n"
        f"print(pipeline.{call}.plan.memory, peak() - before, peak())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


@pytest.mark.parametrize("side", [1000, 3000])
def test_300_mb_are_enough_whatever_the_chunks(side: int, tmp_path: Path) -> None:
    """A worker decodes those that it can keep; of larger ones it reads the copy, which the command makes beforehand."""
    shape = 8, side, side
    array = zarr.create_array(tmp_path / "a.zarr", shape=shape, chunks=shape, dtype="f4", dimension_names="cyx")
    array[:, :2] = 1
    plan = pipeline.plan(tmp_path / "a.zarr", memory="300MB", channels=(0, 1, 2))
    decoding = 2 * array.nbytes if side == 1000 else 0
    assert decoding + 50_000_000 < plan.memory <= 300_000_000


def test_a_copy_of_many_channels_keeps_to_its_memory(tmp_path: Path) -> None:
    pixels = np.tile(np.arange(1100 * 1100, dtype=np.uint32).reshape(1, 1100, 1100).astype(np.uint16), (64, 1, 1))
    tiles = {"chunks": (1, 512, 512), "dimension_names": "cyx"}
    zarr.create_array(tmp_path / "in.zarr", shape=pixels.shape, dtype="u2", **tiles)[:] = pixels
    said, taken, peak = measured(
        tmp_path,
        "convert(numpy.zeros((1, 64, 64), 'u2'), 'small.zarr', workers=1)",
        "convert('in.zarr', 'out.zarr', memory='60MB', workers=1)",
    )
    assert said <= 60_000_000 and said / 1.25 < taken and peak < INTERPRETER + 60_000_000
    assert np.array_equal(pipeline.open_image(tmp_path / "out.zarr").dask.compute(), pixels)
    with pytest.raises(ValueError, match=r"too little for a copy .*; give --memory \d+MB or more") as refused:
        pipeline.convert(pixels[:, :200, :200], tmp_path / "o.zarr", memory="1MB", workers=1)
    least = str(refused.value).rsplit("--memory ", 1)[1].split()[0]
    assert pipeline.convert(pixels[:, :200, :200], tmp_path / "o.zarr", memory=least, workers=1).plan.core == (128, 128)


def test_planes_of_a_volume_run_one_by_one(tmp_path: Path) -> None:
    net = integer_weights_(convolutions())
    image = np.random.default_rng(0).integers(0, 9, (1, 3, 40, 50), np.uint8)
    result = pipeline.predict(
        image, net, tmp_path / "o.zarr", kind="logits", tile=(16, 24), precision="float64", workers=1
    )
    for z in range(3):
        with torch.no_grad():
            whole = net(torch.from_numpy(image[:, z])[None].double())[0].numpy()
        np.testing.assert_array_equal(result.array[:, z], whole)


@torch.library.custom_op("pipeline_tests::shrink", mutates_args=())
def shrink(x: torch.Tensor) -> torch.Tensor:
    """An operation that the analysis cannot know; it is local and sees one pixel."""
    return x / (1 + x.abs())


class Shrink(nn.Module):
    """A local network with an operation that the analysis does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 5, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return shrink(self.conv(x))


def test_reach_declares_an_unknown_operation_by_hand(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, image = Shrink().eval(), np.random.default_rng(0).integers(0, 9, (1, 40, 60), np.uint8)
    with pytest.raises(ValueError, match=r"shrink.*--reach"):
        pipeline.predict(image, net, tmp_path / "o.zarr")
    result = pipeline.predict(image, net, tmp_path / "o.zarr", kind="logits", reach=2, tile=(8, 12), workers=1)
    assert (result.plan.field.before, result.plan.field.alignment) == ((2, 2), (2, 2))
    with torch.no_grad():
        expected = net(torch.from_numpy(image)[None].float())[0].numpy()
    np.testing.assert_allclose(result.array[:], expected, atol=1e-5)


def test_a_network_without_weights_takes_the_channels_that_are_picked(tmp_path: Path) -> None:
    net = nn.MaxPool2d(3, 1, 1)
    image = np.random.default_rng(0).random((3, 61, 67), dtype=np.float32)
    with pytest.raises(ValueError, match="--channels 0,1,2"):
        pipeline.predict(image, net, tmp_path / "a", kind="logits", workers=1)
    result = pipeline.predict(image, net, tmp_path / "a", kind="logits", workers=1, channels=(2, 0), tile=(32, 32))
    whole = net(torch.from_numpy(pipeline.extend(image[[2, 0]], net))[None])[0]
    assert np.array_equal(result.array[:], whole.numpy())


def test_an_output_names_its_network_by_path(big: Path, tmp_path: Path, typed: Typed) -> None:
    program = torch.export.export(nn.Conv2d(3, 2, 3, padding=1).eval(), (torch.zeros(1, 3, 32, 32),))
    torch.export.save(program, tmp_path / "net.pt2")
    run = command(big, "-o", "o.zarr", "--network", "net.pt2", "--workers", "1", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    status, said = typed("o.zarr", module="verify")
    assert status == 0, said


def test_of_many_images_a_dry_run_analyses_and_measures_once(
    tmp_path: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.zeros((40, 40, 3), np.uint8), photometric="rgb")
    counts: Counter[str] = Counter()
    for name in ("__init__", "_seconds"):
        original = getattr(Analysis, name)

        def counting(*given: Any, name: str = name, original: Any = original, **more: Any) -> Any:
            counts[name] += 1
            return original(*given, **more)

        monkeypatch.setattr(Analysis, name, counting)
    status, said = typed("*.tif", "--network", "unet-tiny", "--dry-run")
    assert status == 0, said
    assert counts == {"__init__": 1, "_seconds": 1} and not list(tmp_path.glob("*.zarr"))


def test_more_workers_than_cpus_are_not_forecast_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Analysis, "seconds_per_pixel", 1.0)
    image = np.zeros((3, 64, 64), np.uint8)
    one, usual, many = (next(api.forecasts([image], "unet-tiny", workers=n))[1] for n in (1, usable_cpus(), 1000))
    assert many == usual == one / usable_cpus()


@pytest.mark.parametrize(("tiles", "said"), [(0, ""), (1, " without overwrite")])
def test_what_replaces_an_output_is_given_again_as_it_was_until_a_tile_of_the_new_one_is_done(
    tiles: int, said: str, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, report: Any, **__: Any) -> None:
        for done in range(tiles):
            report(running.Progress(4, done + 1, done + 1, 1, 0, 0, 1.0))
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "predict", interrupted)
    status, text = typed("big.tif", "--overwrite")
    assert status == 130 and text.endswith(f"interrupted: the same command{said} continues\n")


@pytest.mark.parametrize(
    ("words", "module", "called"),
    [
        (["o.zarr"], "verify", "verify"),
        (["unet-tiny", "net.pt2"], "export", "export"),
        (["big.tif", "--dry-run"], "infer", "forecasts"),
    ],
)
def test_what_keeps_nothing_promises_nothing_where_it_is_interrupted(
    words: list[str], module: str, called: str, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, called, interrupted)
    assert typed(*words, module=module) == (130, "interrupted\n")


def test_an_option_that_does_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown option 'dry_run'"):
        pipeline.predict(np.zeros((3, 9, 9), np.uint8), output=tmp_path / "o.zarr", dry_run=True)


def test_outputs_are_called_as_their_images_are(tmp_path: Path, typed: Typed) -> None:
    """Only what tells the format goes: dots within a name tell images apart."""
    for name in ("scan.v1.tif", "scan.v2.ome.tif"):
        tifffile.imwrite(tmp_path / name, np.zeros((40, 40, 3), np.uint8), photometric="rgb")
    images = [tmp_path / "scan.v1.tif", tmp_path / "scan.v2.ome.tif"]
    pipeline.predict(images, "unet-tiny", tmp_path / "many", workers=1)
    assert sorted(path.name for path in (tmp_path / "many").glob("*.zarr")) == ["scan.v1.zarr", "scan.v2.zarr"]
    status, said = typed("scan.v2.ome.tif", "--network", "unet-tiny", "--workers", "1")
    assert status == 0, said
    assert (tmp_path / "scan.v2.zarr").is_dir() and (tmp_path / "scan.v2.preview.png").is_file()


@pytest.mark.parametrize(("words", "status"), [([], 0), (["--help"], 0), (["infer"], 2)])
def test_the_commands_are_listed(words: list[str], status: int) -> None:
    line = [sys.executable, "-m", "pipeline", *words]
    run = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert run.returncode == status
    assert ("pipeline.train JOB.yaml" in run.stdout) if status == 0 else ("no such command" in run.stderr)
