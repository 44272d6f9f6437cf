"""The preview of an output: what each tile leaves of its image, and the picture that is drawn of all of it."""

from __future__ import annotations

import io
import zlib
from contextlib import suppress

import numpy as np
from PIL.PngImagePlugin import PngInfo

from pipeline.stitching import preview
from pipeline.storage.disk import OutputError
from pipeline.storage.location import Inputs, Location
from pipeline.storage.output import Output
from pipeline.tiling.geometry import Interval, Region
from pipeline.tiling.plan import Plan

THUMBNAILS = "preview"
"""Folder in an unfinished output that holds what the preview will show of each tile's image."""
PNG = {"compress_level": 3, "compress_type": zlib.Z_RLE}
"""Two fifths of the time that the default takes, for a file a few hundredths larger."""
MARK = "preview by pipeline"
"""In the picture's metadata: it may be replaced."""


def keep_thumbnail(output: Output, plan: Plan, unit: int, core: Region, pixels: np.ndarray) -> None:
    """Leave what the preview shows of a core's pixels (c, h, w), so that none is decoded again for it."""
    rows, columns, values = preview.thumbnail(pixels[:3], core, preview.factor(plan.size))
    content = io.BytesIO()
    np.savez(content, y=rows, x=columns, pixels=values)
    with suppress(OutputError):  # a picture that cannot be drawn is no reason to lose a tile
        output.location.write(f"{THUMBNAILS}/{unit}.npz", [content.getvalue()])


def is_left(output: Output) -> bool:
    """Whether tiles left something of which no preview was drawn yet."""
    return bool(output.location.names(THUMBNAILS))


def preview_of(output: Location) -> tuple[Location, str]:
    """Where the preview of an output lies, and its name: big.preview.png beside big.zarr."""
    name = (output.name.removesuffix(".zarr") or output.name) + ".preview.png"
    return output.above(), name


def check_spared(inputs: Inputs, output: Location) -> None:
    """Raises ValueError where the preview of an output would replace an image of the call."""
    folder, name = preview_of(output)
    if image := inputs.at(folder.within(name)):
        raise ValueError(f"the preview of {output.name} would replace the image {image}: give another name with -o")


def check_free(output: Location) -> None:
    """Raises OutputError where the preview of an output would replace a file that is none of ours."""
    folder, name = preview_of(output)
    if folder.length(name) is None:
        return
    with suppress(IsADirectoryError):  # which nothing replaces
        if MARK.encode() not in folder.read(name)[:1024]:
            place = folder.within(name)
            raise OutputError(f"{place} is in the way of the preview, and not ours: give another name with -o")


def draw(output: Output, plan: Plan) -> None:
    """Assemble the picture of a finished output from what its tiles left, then remove that.

    Raises OutputError, or OSError, where it cannot be written.
    """
    location = output.location
    parts = location.names(THUMBNAILS)
    folder, picture_name = preview_of(location)
    if plan.network is None or not parts:
        return
    factor = preview.factor(plan.size)
    rows, columns = (-(-n // factor) for n in plan.size)
    picture: np.ndarray | None = None
    if len(parts) < plan.tiles // plan.planes and folder.length(picture_name) is not None:
        parts = []  # lost tiles were done again, the picture shows all of them already
    for name in parts:
        with np.load(io.BytesIO(location.read(f"{THUMBNAILS}/{name}"))) as part:
            values = part["pixels"]
            if picture is None:
                picture = np.zeros((values.shape[0], rows, columns), np.float32)
            picture[:, part["y"][:, None], part["x"]] = values
    if picture is not None:
        check_free(location)  # again, as the run may have begun long ago
        card = output.attributes.get("network", {})
        lines = tuple([n * c for n in range(1, -(-size // c))] for size, c in zip(plan.size, plan.core, strict=True))
        tiles = plan.tiles
        page = preview.compose(
            picture if picture.shape[0] in (1, 3) else picture[:1],
            _small_mask(output, plan),
            size=plan.size,
            lines=(lines[0], lines[1]),
            title=location.name,
            facts=[f"{plan.size[1]} x {plan.size[0]} pixels", f"{tiles} tile{'s' * (tiles > 1)}", plan.kind,
                   f"network {card.get('name', '')}"],
            classes=card.get("class_names") or (),
            eight_bit=plan.image["dtype"] == "uint8",
            extent=None if plan.field.surplus == (0, 0) else extent(plan),
        )  # fmt: skip
        content = io.BytesIO()
        mark = PngInfo()
        mark.add_text("Software", MARK)
        page.save(content, "PNG", pnginfo=mark, **PNG)
        folder.write(picture_name, [content.getvalue()])
    location.remove(THUMBNAILS)


def extent(plan: Plan) -> Region:
    """The pixels of the image in whose middle a result lies that is smaller than it, by valid convolutions."""
    shape = plan.field.output_shape(*plan.size)
    y, x = (
        Interval(round(offset + 0.5 - 1 / (2 * rate)), round(offset + 0.5 - 1 / (2 * rate) + n / rate))
        for offset, rate, n in zip(plan.field.offset, plan.field.rate, shape, strict=True)
    )
    return Region(y, x)


def _small_mask(output: Output, plan: Plan) -> np.ndarray:
    """Class of each pixel on the first level of at most the preview's size."""
    layout = plan.layout
    level = next((k for k, s in enumerate(layout.shapes) if max(s[-2:]) <= 2 * preview.SIDE), len(layout.shapes) - 1)
    values = np.asarray(output.arrays[level])
    if "z" in layout.axes:
        values = values[..., 0, :, :]
    if plan.kind == "mask":
        return values
    if values.shape[0] > 1:
        return np.asarray(values.argmax(axis=0))
    threshold = plan.threshold if plan.kind == "logits" else 127 if values.dtype == np.uint8 else 0.5
    return np.asarray(values[0] > threshold, np.uint8)
