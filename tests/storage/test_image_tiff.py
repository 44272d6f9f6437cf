"""TIFF files of every layout against the arrays that were written."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile

from pipeline.storage.image import Image, ImageReadError, open_image
from pipeline.storage.opening import identity
from pipeline.storage.tiff import TiffSource, open_tiff
from pipeline.tiling.geometry import Region

RNG = np.random.default_rng(1)
RGB = RNG.integers(0, 256, (70, 90, 3), dtype=np.uint8)


def whole(image: Image) -> np.ndarray:
    y, x = image.shape[-2:]
    planes = [image.read(Region.of(0, y, 0, x), z) for z in range(image.shape[1] if len(image.shape) == 4 else 1)]
    return np.stack(planes, 1) if len(image.shape) == 4 else planes[0]


def written(path: Path, array: np.ndarray, **options: Any) -> Image:
    tifffile.imwrite(path, array, **options)
    return open_image(path)


@pytest.mark.parametrize("layout", [{"tile": (16, 48)}, {"rowsperstrip": 7}, {"rowsperstrip": 1}, {}])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("packed", [None, "deflate", "lzw", "zstd", "packbits", "lzma"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_layouts(tmp_path: Path, layout: dict[str, Any], planar: str, packed: str | None, byteorder: str) -> None:
    array = RGB if planar == "contig" else np.ascontiguousarray(np.moveaxis(RGB, -1, 0))
    image = written(
        tmp_path / "a.tif", array.astype(np.uint16) * 257, photometric="rgb", planarconfig=planar, compression=packed,
        byteorder=byteorder, bigtiff=byteorder == ">", **layout,
    )  # fmt: skip
    assert image.dtype == np.uint16 and image.dtype.isnative
    assert np.array_equal(whole(image), np.moveaxis(RGB.astype(np.uint16) * 257, -1, 0))
    assert image.shape == (3, 70, 90)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8", "?"])
@pytest.mark.parametrize("options", [{}, {"tile": (32, 32), "compression": "deflate"}])
def test_types(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    array = RNG.integers(0, 2 if dtype == "?" else 100, (70, 90)).astype(dtype)
    image = written(tmp_path / "a.tif", array, photometric="minisblack", **options)
    assert image.dtype == np.dtype(dtype) and np.array_equal(whole(image)[0], array)


@pytest.mark.parametrize("predictor", [True, False])
def test_predictors(tmp_path: Path, predictor: bool) -> None:
    for array in (RGB, RNG.normal(size=(70, 90)).astype(np.float32)):
        image = written(tmp_path / "a.tif", array, compression="deflate", predictor=predictor, tile=(16, 16))
        assert np.array_equal(whole(image), np.moveaxis(array, -1, 0) if array.ndim == 3 else array[None])


@pytest.mark.parametrize(("packed", "limit"), [("jpeg", 24), ("webp", 0), ("jpegxl", 0), ("jpeg2000", 0), ("png", 0)])
def test_codecs_of_pictures(tmp_path: Path, packed: str, limit: int) -> None:
    smooth = np.stack(np.meshgrid(np.arange(64), np.arange(96), np.arange(3) * 9, indexing="ij"), 0).sum(0)
    array = smooth.astype(np.uint8)
    lossless = {"jpeg": {"level": 95}, "webp": {"lossless": True}}.get(packed)
    image = written(
        tmp_path / "a.tif", array, tile=(32, 32), compression=packed, photometric="rgb", compressionargs=lossless
    )
    worst = np.abs(whole(image).astype(int) - np.moveaxis(array.astype(int), -1, 0)).max()
    assert worst <= limit
    assert np.array_equal(whole(image), np.moveaxis(tifffile.imread(tmp_path / "a.tif"), -1, 0))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 10, 12, 14])
def test_packed_bits(tmp_path: Path, bits: int) -> None:
    array = RNG.integers(0, 1 << bits, (30, 41)).astype(np.uint8 if bits <= 8 else np.uint16)
    if bits == 1:
        array = array.astype(bool)
    path = tmp_path / "a.tif"
    rows = array if bits == 1 else array.copy()
    data = np.packbits(rows, axis=-1).tobytes() if bits == 1 else imagecodecs.packints_encode(rows, bits, runlen=41)
    _by_hand(path, 41, 30, bits, data)
    assert np.array_equal(whole(open_image(path))[0], array)


def _by_hand(path: Path, width: int, height: int, bits: int, data: bytes, **more: int) -> None:
    """A TIFF of one strip, tag by tag."""
    tags = {
        256: width, 257: height, 258: bits, 259: more.pop("compression", 1), 262: more.pop("photometric", 1), 273: 8,
        277: 1, 278: height, 279: len(data), **{int(k[1:]): v for k, v in more.items()},
    }  # fmt: skip
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", k, 4, 1, v) for k, v in sorted(tags.items()))
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + ifd + b"\0\0\0\0")


def test_palettes_become_rgb_page_by_page(tmp_path: Path) -> None:
    path, colours = tmp_path / "p.tif", RNG.integers(0, 65536, (2, 3, 256), dtype=np.uint16)
    indices = RNG.integers(0, 256, (2, 40, 50), dtype=np.uint8)
    with tifffile.TiffWriter(path) as file:
        for page, table in zip(indices, colours, strict=True):
            file.write(page, photometric="palette", colormap=table, contiguous=False, metadata=None)
    image = open_image(path)
    assert image.dtype == np.uint8 and image.shape == (3, 2, 40, 50)
    expected = np.stack([(t >> 8).astype(np.uint8)[:, p] for p, t in zip(indices, colours, strict=True)], 1)
    assert np.array_equal(whole(image), expected)


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        ("ZYX", (4, 30, 40), (1, 4, 30, 40)),
        ("CYX", (4, 30, 40), (4, 30, 40)),
        ("TCYX", (2, 3, 30, 40), (3, 30, 40)),
        ("ZCYX", (4, 3, 30, 40), (3, 4, 30, 40)),
        ("CZYX", (3, 4, 30, 40), (3, 4, 30, 40)),
        ("QYX", (5, 30, 40), (1, 5, 30, 40)),
        ("ZYXS", (4, 30, 40, 3), (3, 4, 30, 40)),
    ],
)
@pytest.mark.parametrize("options", [{}, {"compression": "deflate"}, {"tile": (16, 16)}])
def test_axes_of_pages(
    tmp_path: Path, axes: str, shape: tuple[int, ...], expected: tuple[int, ...], options: dict[str, Any]
) -> None:
    array = RNG.integers(0, 255, shape, dtype=np.uint8)
    photometric = "rgb" if axes.endswith("S") else "minisblack"
    image = written(tmp_path / "a.tif", array, metadata={"axes": axes}, photometric=photometric, **options)
    assert image.shape == expected
    ordered = array[0] if axes[0] == "T" else array
    kept = axes.replace("T", "")
    moved = np.moveaxis(ordered, [kept.index(a) for a in "CSZQYX" if a in kept], range(len(kept)))
    assert np.array_equal(whole(image).reshape(moved.shape), moved)


def test_axes_may_be_named_by_the_caller(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (4, 30, 40), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", metadata=None)
    assert open_image(tmp_path / "a.tif").shape == (1, 4, 30, 40)
    assert np.array_equal(whole(open_image(tmp_path / "a.tif", axes="cyx")), array)
    with pytest.raises(ValueError, match="axes"):
        open_image(tmp_path / "a.tif", axes="YX")


def test_imagej_with_its_unit(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (3, 2, 30, 40), dtype=np.uint16)
    meta = {"axes": "ZCYX", "unit": "um", "spacing": 2.0}
    image = written(tmp_path / "a.tif", array, imagej=True, resolution=(4.0, 2.0), metadata=meta)
    assert image.shape == (2, 3, 30, 40) and np.array_equal(whole(image), array.swapaxes(0, 1))
    assert image.pixel_size == (0.5, 0.25) and image.unit == "micrometer" and image.metadata["z_step"] == 2.0


def test_ome_pyramid(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    array = RNG.integers(0, 255, (2, 256, 320), dtype=np.uint8)
    meta = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "Channel": {"Name": ["a", "b"]}}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(array, subifds=2, tile=(64, 64), metadata=meta, compression="zstd")
        for step in (2, 4):
            file.write(array[:, ::step, ::step], subfiletype=1, tile=(64, 64), compression="zstd", metadata=None)
    for level, step in enumerate((1, 2, 4)):
        image = open_image(path, level=level)
        assert image.levels == ((2, 256, 320), (2, 128, 160), (2, 64, 80)) and image.level == level
        assert np.array_equal(whole(image), array[:, ::step, ::step])
        assert image.pixel_size == (0.25 * step, 0.5 * step) and image.unit == "micrometer"
        assert image.metadata["channel_names"] == ["a", "b"]
    with pytest.raises(ValueError, match="levels 0 to 2"):
        open_image(path, level=3)


def test_geotiff(tmp_path: Path) -> None:
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32631)
    tags = [
        (33550, "d", 3, (10.0, 20.0, 0.0), True),
        (33922, "d", 6, (1.0, 2.0, 0.0, 500.0, 900.0, 0.0), True),
        (34735, "H", len(keys), keys, True),
        (42113, "s", 0, "255", True),
    ]
    path = tmp_path / "g.tif"
    tifffile.imwrite(path, RGB[..., 0], extratags=tags, metadata=None, tile=(16, 16))
    image = open_image(path)
    assert image.crs == "EPSG:32631" and image.geotransform == (490.0, 10.0, 0.0, 940.0, 0.0, -20.0)
    assert image.pixel_size == (20.0, 10.0) and image.unit == "meter" and image.metadata["nodata"] == "255"
    points = (*keys[:-8], 1025, 0, 1, 2, *keys[-4:])
    tags[2] = (34735, "H", len(points), points, True)
    tifffile.imwrite(path, RGB[..., 0], extratags=tags, metadata=None)
    assert open_image(path).geotransform == (485.0, 10.0, 0.0, 950.0, 0.0, -20.0)


def test_resolution_tags_of_printers_are_not_a_pixel_size(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    assert written(path, RGB, resolution=(72, 72), resolutionunit="INCH").pixel_size is None
    fine = written(path, RGB, resolution=(20000, 10000), resolutionunit="CENTIMETER")
    assert fine.pixel_size == (1.0, 0.5) and fine.unit == "micrometer"


def test_sparse_tiles_are_nodata(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tiles = iter([imagecodecs.zlib_encode(np.full((16, 16), 7, np.uint8).tobytes()), b"", b"", b""])
    tifffile.imwrite(
        path, tiles, shape=(32, 32), dtype=np.uint8, tile=(16, 16), compression="zlib", metadata=None,
        extratags=[(42113, "s", 0, "9", True)],
    )  # fmt: skip
    pixels = whole(open_image(path))[0]
    assert (pixels[:16, :16] == 7).all() and (pixels[16:] == 9).all()


def test_the_first_image_is_opened_but_for_thumbnails_and_masks(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(RGB[::8, ::8], photometric="rgb", metadata=None)
        file.write(RGB, photometric="rgb", metadata=None)
    image = open_image(path)
    assert image.shape == (3, 70, 90)
    with tifffile.TiffWriter(path) as file:
        file.write(RGB[::2, ::2], photometric="rgb", metadata=None)
        file.write(RGB, photometric="rgb", metadata=None)
    assert open_image(path).shape == (3, 35, 45)
    with tifffile.TiffWriter(path) as file:
        file.write(RGB[..., 0] > 99, subfiletype=4, photometric=4, metadata=None)
        file.write(RGB[::2, ::2], photometric="rgb", metadata=None)
    assert open_image(path).shape == (3, 35, 45)


def test_enormous_images_open_at_once_and_are_read_in_part(tmp_path: Path) -> None:
    path, side = tmp_path / "huge.tif", 100_000
    tags = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 273: 4096, 277: 1, 278: side, 279: side * side}
    ifd = struct.pack("<Q", len(tags)) + b"".join(struct.pack("<HHQQ", k, 16, 1, v) for k, v in sorted(tags.items()))
    with path.open("wb") as file:
        file.write(b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) + ifd + bytes(8))
        file.truncate(4096 + side * side)  # a hole: takes no disk
        file.seek(4096 + 99_990 * side + 70_000)
        file.write(b"\x05")
    began = time.monotonic()
    image = open_image(path)
    assert image.shape == (1, side, side) and image.dask.shape == image.shape
    pixels = image.read(Region.of(99_000, side, 69_000, 71_000))
    assert time.monotonic() - began < 5
    assert pixels[0, 990, 1000] == 5 and pixels.sum() == 5


def test_a_chunk_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.stack([RGB[..., 0]] * 2), tile=(16, 16), compression="deflate", photometric="minisblack")
    with tifffile.TiffFile(path) as file:
        page = file.pages[1].aspage()
        offset, count = page.dataoffsets[7], page.databytecounts[7]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = bytes(count)
    path.write_bytes(data)
    image = open_image(path)
    assert np.array_equal(image.read(Region.of(0, 16, 0, 90), 1)[0], RGB[:16, :, 0])
    with pytest.raises(ImageReadError, match=r"a\.tif: page 1, tile 7") as caught:
        image.read(Region.of(0, 70, 0, 90), 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"compression": 65000}, "compression"),
        ({"t322": 1 << 31, "t323": 16, "t324": 8, "t325": 4}, "strip or tile"),
        ({"width": 0}, "unsupported|empty|without"),
        ({"bits": 33}, "33 bits"),
        ({"compression": 8, "t317": 255}, "PREDICTOR"),
    ],
)
def test_what_cannot_be_read_is_refused_when_opened(tmp_path: Path, tags: dict[str, int], message: str) -> None:
    path = tmp_path / "a.tif"
    tags = dict(tags)
    _by_hand(path, tags.pop("width", 4), 4, tags.pop("bits", 8), bytes(16), **tags)
    with pytest.raises(ValueError, match=message) as caught:
        open_image(path)
    assert "\n" not in str(caught.value) and "a.tif" in str(caught.value)


def test_a_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", metadata=None)
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(ValueError, match="beyond the end"):
        open_image(path)


@pytest.mark.parametrize("layout", [{"tile": (32, 32)}, {"rowsperstrip": 35}])
def test_a_chunk_beyond_the_end_is_named_before_any_is_decoded(tmp_path: Path, layout: dict[str, Any]) -> None:
    """When the image is identified, as a run begins; of strips also when they are copied to scratch."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", compression="deflate", metadata=None, **layout)
    with tifffile.TiffFile(path) as file:
        last = len(file.pages[0].dataoffsets) - 1
        path.write_bytes(path.read_bytes()[: file.pages[0].dataoffsets[last]])
    source = open_tiff(path, None, 0)
    assert isinstance(source, TiffSource)
    with pytest.raises(ImageReadError, match=rf"a\.tif: page 0, (tile|strip) {last} .*beyond the end of the file"):
        identity(source)
    if last == 1:
        with pytest.raises(ImageReadError, match=r"a\.tif: page 0, strip 1 .*beyond the end of the file"):
            source.stream((0, 0, 1, 0))


def test_random_damage_never_crashes(tmp_path: Path) -> None:
    path, rng = tmp_path / "a.tif", np.random.default_rng(7)
    for packed in (None, "deflate", "lzw", "packbits", "zstd", "jpeg"):
        tifffile.imwrite(path, RGB, photometric="rgb", compression=packed, rowsperstrip=16)
        sound = path.read_bytes()
        for _ in range(25):
            data = bytearray(sound)
            for place in rng.integers(0, len(data), 12):
                data[place] = rng.integers(0, 256)
            path.write_bytes(data[: int(rng.integers(8, len(data) + 1))])
            try:
                image = open_image(path)
                if np.prod(image.shape, dtype=float) < 1e6:
                    whole(image)
            except ValueError as error:
                assert "\n" not in str(error)
