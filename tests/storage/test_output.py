"""Outputs: what other readers see, what a shard's record says, and what the disk refuses."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import tensorstore
import yaozarrs
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage.output import Output, OutputError, create, is_ours, open_output, remove_contents
from pipeline.tiling.geometry import Interval
from pipeline.tiling.grid import Layout, build_layout

RED, BLUE = (220, 20, 60), (30, 60, 220)


def whole(layout: Layout, level: int = 0) -> tuple[Interval, ...]:
    return tuple(Interval(0, n) for n in layout.shapes[level])


def random_pixels(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    if dtype.startswith("complex"):
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype)
    pixels = rng.normal(size=shape) * 9 if dtype.startswith("float") else rng.integers(0, 3, shape)
    return pixels.astype(dtype)


def filled(path: Path, layout: Layout, **options: object) -> tuple[Output, list[np.ndarray]]:
    """An output with random pixels on every level."""
    output = create(path, layout, attributes={}, **options)  # type: ignore[arg-type]
    levels = [random_pixels(shape, layout.dtype) for shape in layout.shapes]
    for level, pixels in enumerate(levels):
        output.write(level, whole(layout, level), pixels)
    return output, levels


CASES = {
    "mask": ("yx", "uint8", (1100, 700), {"label": True, "classes": [(0, "ground", (0, 0, 0)), (1, "nucleus", RED)]}),
    "planes": ("zyx", "uint16", (3, 600, 520), {"label": True, "scale": (2.0, 0.5, 0.5), "unit": "µm"}),
    "probability": ("cyx", "uint8", (2, 530, 640), {"channels": [("ground", RED), ("nucleus", BLUE)]}),
    "logits": ("czyx", "float32", (2, 2, 40, 530), {"translation": (0.0, 0.0, 3.5, 3.5), "window": (-9.0, 9.0)}),
    "logits of one channel": ("cyx", "float64", (1, 520, 9), {"channels": [("nucleus", RED)], "window": (-9.0, 9.0)}),
    "bool": ("cyx", "bool", (1, 520, 530), {}),
    "complex": ("cyx", "complex64", (1, 520, 530), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_independent_readers_see_the_same_pixels(case: str, tmp_path: Path) -> None:
    axes, dtype, shape, options = CASES[case]
    layout = build_layout(axes, dtype, shape, (256, 256), whole=False)
    path = tmp_path / "big.zarr"
    output, levels = filled(path, layout, **options)
    yaozarrs.validate_zarr_store(str(path))
    assert len(levels) > 1
    for level, pixels in enumerate(levels):
        np.testing.assert_array_equal(output.read(level, whole(layout, level)), pixels)
        np.testing.assert_array_equal(zarr.open_group(path, mode="r")[str(level)][...], pixels)
        np.testing.assert_array_equal(da.from_zarr(str(path), component=str(level)).compute(), pixels)
        spec = {"driver": "zarr3", "kvstore": f"file://{path}/{level}/"}
        np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), pixels)


def test_only_core_codecs(tmp_path: Path) -> None:
    layout = build_layout("cyx", "float32", (2, 64, 64), (64, 64), whole=True)
    create(tmp_path / "a.zarr", layout, attributes={})
    metadata = json.loads((tmp_path / "a.zarr/0/zarr.json").read_text())
    (sharding,) = metadata["codecs"]
    names = {c["name"] for c in sharding["configuration"]["codecs"] + sharding["configuration"]["index_codecs"]}
    assert sharding["name"] == "sharding_indexed" and names == {"bytes", "blosc", "crc32c"}


def test_each_level_says_where_its_pixels_lie(tmp_path: Path) -> None:
    """A coarse pixel is centred between the two fine ones that it stands for; planes and channels stay."""
    layout = build_layout("czyx", "uint8", (2, 5, 1100, 1100), (512, 512), whole=False)
    create(tmp_path / "a.zarr", layout, attributes={}, scale=(1, 3, 0.5, 0.25), translation=(0, 0, 1, 0), unit="um")
    ome = json.loads((tmp_path / "a.zarr/zarr.json").read_text())["attributes"]["ome"]
    (image,) = ome["multiscales"]
    transforms = [level["coordinateTransformations"] for level in image["datasets"]]
    assert [t[0]["scale"] for t in transforms] == [[1, 3, 0.5, 0.25], [1, 3, 1, 0.5], [1, 3, 2, 1]]
    assert [t[1]["translation"] for t in transforms] == [[0, 0, 1, 0], [0, 0, 1.25, 0.125], [0, 0, 1.75, 0.375]]
    assert [a.get("unit") for a in image["axes"]] == [None, "micrometer", "micrometer", "micrometer"]


def test_labels_have_colours_and_names(tmp_path: Path) -> None:
    layout = build_layout("yx", "uint8", (10, 10), (10, 10), whole=True)
    classes = [(0, "ground", (0, 0, 0)), (1, "nucleus", RED)]
    create(tmp_path / "a.zarr", layout, attributes={}, label=True, classes=classes)
    label = json.loads((tmp_path / "a.zarr/zarr.json").read_text())["attributes"]["ome"]["image-label"]
    assert label["colors"][1] == {"label-value": 1, "rgba": [*RED, 255]}
    assert label["properties"][1] == {"label-value": 1, "name": "nucleus"}


@settings(deadline=None, max_examples=30)
@given(
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.tuples(st.integers(7, 24), st.integers(7, 24)),
    st.integers(1, 3),
    st.booleans(),
)
def test_tiles_written_in_any_order_give_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    size: tuple[int, int],
    step: tuple[int, int],
    channels: int,
    sparse: bool,
) -> None:
    path = tmp_path_factory.mktemp("o") / "a.zarr"
    shape = (channels, *size)
    layout = build_layout("cyx", "float32", shape, step, whole=True)
    output = create(path, layout, attributes={})
    pixels = np.zeros(shape, np.float32) if sparse else random_pixels(shape, "float32")
    tiles = list(product(*(range(0, n, s) for n, s in zip(size, step, strict=True))))
    for y, x in np.random.default_rng(0).permutation(tiles):
        ys, xs = Interval(int(y), min(int(y) + step[0], size[0])), Interval(int(x), min(int(x) + step[1], size[1]))
        region = (Interval(0, channels), ys, xs)
        records = output.write(0, region, pixels[:, ys.slice, xs.slice])
        assert len(records) == channels and all((r is None) is sparse for r in records)
        assert output.check(0, region, records) == output.checksum(0, region, records) == []
    np.testing.assert_array_equal(output.read(0, whole(layout)), pixels)


def test_records_are_those_of_the_files_in_row_major_order(tmp_path: Path) -> None:
    layout = build_layout("cyx", "uint8", (2, 16, 24), (8, 8), whole=True)
    output = create(tmp_path / "a.zarr", layout, attributes={})
    pixels = random_pixels((2, 16, 24), "uint8")
    pixels[1, 8:, 8:16] = 0
    records = output.write(0, whole(layout), pixels)
    files = [tmp_path / "a.zarr/0/c" / "/".join(map(str, p)) for p in product(range(2), range(2), range(3))]
    assert [None if r is None else r[0] for r in records] == [f.stat().st_size if f.exists() else None for f in files]
    assert records[10] is None and sum(r is None for r in records) == 1


def test_the_same_pixels_again_are_the_same_bytes(tmp_path: Path) -> None:
    """Also over a shard that was torn, which is not read for it."""
    layout = build_layout("yx", "uint8", (600, 600), (600, 600), whole=True)
    output = create(tmp_path / "a.zarr", layout, attributes={})
    pixels = random_pixels((600, 600), "uint8")
    first = output.write(0, whole(layout), pixels)
    shard = tmp_path / "a.zarr/0/c/0/0"
    before = shard.read_bytes()
    shard.write_bytes(before[:100])
    assert output.write(0, whole(layout), pixels) == first
    assert shard.read_bytes() == before


def test_a_shard_that_becomes_fill_is_removed(tmp_path: Path) -> None:
    layout = build_layout("yx", "uint8", (8, 8), (8, 8), whole=True)
    output = create(tmp_path / "a.zarr", layout, attributes={})
    output.write(0, whole(layout), np.ones((8, 8), np.uint8))
    assert output.write(0, whole(layout), np.zeros((8, 8), np.uint8)) == [None]
    assert not (tmp_path / "a.zarr/0/c/0/0").exists()
    assert output.read(0, whole(layout)).sum() == 0


@pytest.mark.parametrize("damage", ["missing", "shorter", "changed", "unexpected"])
def test_damage_is_found(damage: str, tmp_path: Path) -> None:
    layout = build_layout("yx", "uint8", (8, 16), (8, 8), whole=True)
    output = create(tmp_path / "a.zarr", layout, attributes={})
    pixels = np.ones((8, 16), np.uint8)
    pixels[:, 8:] = 0 if damage == "unexpected" else 2
    records = output.write(0, whole(layout), pixels)
    shard = tmp_path / "a.zarr/0/c/0/1"
    if damage == "missing":
        shard.unlink()
    elif damage == "shorter":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "changed":
        content = bytearray(shard.read_bytes())
        content[3] ^= 1
        shard.write_bytes(content)
    else:
        shard.write_bytes(b"left over")
    assert output.checksum(0, whole(layout), records) == ["0/c/0/1"]
    assert output.check(0, whole(layout), records) == ([] if damage == "changed" else ["0/c/0/1"])


def test_shards_of_equal_length_in_each_others_place_are_found(tmp_path: Path) -> None:
    layout = build_layout("yx", "uint8", (8, 16), (8, 8), whole=True)
    output = create(tmp_path / "a.zarr", layout, attributes={})
    records = output.write(0, whole(layout), np.repeat(np.uint8([[1, 2]]), 8, 1).repeat(8, 0))
    first, second = (tmp_path / "a.zarr/0/c/0" / name for name in "01")
    assert first.stat().st_size == second.stat().st_size
    first.rename(tmp_path / "kept")
    second.rename(first)
    (tmp_path / "kept").rename(second)
    assert output.checksum(0, whole(layout), records) == ["0/c/0/0", "0/c/0/1"]


def test_a_region_that_is_no_whole_number_of_shards_is_refused(tmp_path: Path) -> None:
    layout = build_layout("yx", "uint8", (20, 20), (8, 8), whole=True)
    output = create(tmp_path / "a.zarr", layout, attributes={})
    with pytest.raises(AssertionError, match="whole number of shards"):
        output.write(0, (Interval(0, 8), Interval(4, 12)), np.ones((8, 8), np.uint8))
    output.write(0, (Interval(16, 20), Interval(8, 20)), np.ones((4, 12), np.uint8))


def test_attributes_survive(tmp_path: Path) -> None:
    layout = build_layout("yx", "uint8", (8, 8), (8, 8), whole=True)
    create(tmp_path / "a.zarr", layout, attributes={"plan": {"name": "Zürich"}, "card": 1}, name="é")
    output = open_output(tmp_path / "a.zarr")
    assert (output.attributes["plan"], output.attributes["card"]) == ({"name": "Zürich"}, 1)
    assert output.layout == layout
    yaozarrs.validate_zarr_store(str(tmp_path / "a.zarr"))


def test_attributes_that_are_no_json_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    layout = build_layout("yx", "uint8", (8, 8), (8, 8), whole=True)
    with pytest.raises(ValueError, match="JSON"):
        create(tmp_path / "a.zarr", layout, attributes={"iou": float("nan")})
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize("taken", ["a file", "a folder with files", "a zarr group", "ours"])
def test_nothing_is_written_over(taken: str, tmp_path: Path) -> None:
    layout = build_layout("yx", "uint8", (8, 8), (8, 8), whole=True)
    path = tmp_path / "a.zarr"
    if taken == "a file":
        path.write_text("mine")
    elif taken == "a folder with files":
        path.mkdir()
        (path / "thesis.txt").write_text("mine")
    elif taken == "a zarr group":
        zarr.create_group(path)
    else:
        create(path, layout, attributes={})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=r"a\.zarr"):
        create(path, layout, attributes={})
    assert sorted(tmp_path.rglob("*")) == before
    if taken != "ours":
        assert not is_ours(path)
        with pytest.raises(OutputError, match="not an output of pipeline"):
            open_output(path)
        with pytest.raises(OutputError, match="not an output of pipeline"):
            remove_contents(path)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_folder_and_a_missing_output_are_named(tmp_path: Path) -> None:
    layout = build_layout("yx", "uint8", (8, 8), (8, 8), whole=True)
    with pytest.raises(FileNotFoundError, match=r"nowhere.*does not exist"):
        create(tmp_path / "nowhere" / "a.zarr", layout, attributes={})
    with pytest.raises(FileNotFoundError, match=r"a\.zarr"):
        open_output(tmp_path / "a.zarr")
    assert not is_ours(tmp_path / "a.zarr")


def test_removal_takes_only_what_is_ours(tmp_path: Path) -> None:
    layout = build_layout("yx", "uint8", (600, 600), (300, 300), whole=True)
    path = tmp_path / "a.zarr"
    filled(path, layout)
    (path / "ledger").mkdir()
    (path / "ledger/lock").touch()
    (path / "notes.txt").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/7").write_text("mine")
    (path / "preview").symlink_to(tmp_path / "elsewhere")
    assert remove_contents(path, keep=("ledger",)) == ["ledger", "notes.txt"]
    assert (path / "ledger/lock").exists() and (tmp_path / "elsewhere/7").exists()
    again = create(path, layout, attributes={"run": 2}, among_others=True)
    assert again.read(0, whole(layout)).sum() == 0 and (path / "notes.txt").read_text() == "mine"
    (path / "notes.txt").unlink()
    assert remove_contents(path) == [] and not path.exists()


def test_what_a_kill_left_undone_is_made_good(tmp_path: Path) -> None:
    """A kill right after the group's own metadata, and one in the middle of a shard."""
    layout = build_layout("yx", "uint8", (600, 600), (300, 300), whole=True)
    path = tmp_path / "a.zarr"
    _, levels = filled(path, layout)
    (path / "1/zarr.json").unlink()
    for name in ("0/c/0/1.0123.partial", "zarr.json.4567.partial"):
        (path / name).write_bytes(b"half")
    (path / "mine.partial.txt").write_text("mine")
    output = open_output(path)
    output.restore()
    assert {p.name for p in path.rglob("*partial*")} == {"mine.partial.txt"}
    np.testing.assert_array_equal(zarr.open_array(path / "1", mode="r")[...], levels[1])


def test_a_folder_with_only_a_ledger_or_half_written_metadata_is_free(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    (path / "ledger").mkdir(parents=True)
    (path / "zarr.json.01.partial").touch()
    create(path, build_layout("yx", "uint8", (8, 8), (8, 8), whole=True), attributes={})
    assert is_ours(path)


WRITER = """
import sys
import numpy as np
from pipeline.storage.output import open_output
from pipeline.tiling.geometry import Interval
output = open_output(sys.argv[1])
pixels = np.random.default_rng(0).integers(0, 255, (256, 256)).astype("uint8")
n = 0
while True:
    output.write(0, (Interval(0, 256), Interval(0, 256)), np.roll(pixels, n := n + 1))
    if n == 1:
        print("go", flush=True)
"""


def test_a_kill_leaves_each_shard_whole(tmp_path: Path) -> None:
    layout = build_layout("yx", "uint8", (256, 256), (256, 256), whole=True)
    output = create(tmp_path / "a.zarr", layout, attributes={})
    pixels = np.random.default_rng(0).integers(0, 255, (256, 256)).astype("uint8")
    for delay in (0.02, 0.051, 0.083):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(output.path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None and writer.stdout.readline() == "go\n"
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        np.testing.assert_array_equal(np.sort(output.read(0, whole(layout)), axis=None), np.sort(pixels, axis=None))
    output.restore()
    assert [p.name for p in (tmp_path / "a.zarr/0/c/0").iterdir()] == ["0"]


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the write fails in its middle."""
    layout = build_layout("yx", "uint8", (512, 512), (512, 512), whole=True)
    output = create(tmp_path / "a.zarr", layout, attributes={})
    pixels = np.random.default_rng(0).integers(0, 255, (512, 512)).astype("uint8")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(OutputError, match=rf"cannot write .*a\.zarr: {os.strerror(errno.EFBIG)}"):
            output.write(0, whole(layout), pixels)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert {p.name for p in (tmp_path / "a.zarr/0").rglob("*")} == {"zarr.json", "c", "0"}
    assert output.write(0, whole(layout), pixels) != [None]


def test_a_folder_in_a_shards_place_is_named(tmp_path: Path) -> None:
    layout = build_layout("yx", "uint8", (8, 8), (8, 8), whole=True)
    output = create(tmp_path / "a.zarr", layout, attributes={})
    records = output.write(0, whole(layout), np.ones((8, 8), np.uint8))
    (tmp_path / "a.zarr/0/c/0/0").unlink()
    (tmp_path / "a.zarr/0/c/0/0").mkdir()
    assert output.checksum(0, whole(layout), records) == ["0/c/0/0"]
    with pytest.raises(OutputError, match=r"cannot write .*a\.zarr/0/c/0/0: Is a directory"):
        output.write(0, whole(layout), np.ones((8, 8), np.uint8))


def test_a_place_that_takes_no_files_is_named(tmp_path: Path) -> None:
    """/proc refuses new folders to everybody, also to root."""
    layout = build_layout("yx", "uint8", (8, 8), (8, 8), whole=True)
    with pytest.raises(OutputError, match=r"cannot write /proc/a\.zarr: "):
        create("/proc/a.zarr", layout, attributes={})


def test_making_an_output_is_cheap(tmp_path: Path) -> None:
    """Hundreds of photographs have an output each: a few small files, no library that is loaded for it."""
    layout = build_layout("yx", "uint8", (980, 980), (980, 980), whole=False)
    times = []
    for n in range(20):
        began = time.perf_counter()
        create(tmp_path / f"{n}.zarr", layout, attributes={"plan": {"k": list(range(100))}})
        times.append(time.perf_counter() - began)
    assert min(times) < 0.015
