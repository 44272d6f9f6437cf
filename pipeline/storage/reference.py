"""An image that is opened when its turn comes, here or in another process: all that this takes, and no open file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.storage import scratch
from pipeline.storage.image import CACHE_BYTES, Image, ImageReadError, asked_for, reopen
from pipeline.storage.opening import Version, open_source, version


@dataclass(frozen=True)
class Reference:
    """What it takes to open an image. Made by `refer`; it can be pickled, and is small then."""

    source: Any
    """Path, URL or array; None in a process to which the many pixels of an array did not travel."""
    options: dict[str, Any]
    cache_bytes: int
    identity: str | None
    """Where it is known already."""
    copy: scratch.Copy
    """Where that lies, once it is made, which all read in place of the image."""
    heavy: bool
    """Whether it is an array of so many pixels that other processes read its copy."""
    version: Version | None
    """Of the file, by which one that took its place is told."""

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | ({"source": None} if self.heavy else {})

    def open(self) -> Image:
        """The image itself, for who begins its run; says what of it is not opened.

        Raises as `open_image` does, and ImageReadError where it was replaced since this was made.
        """
        image = self._same()
        image.warn()
        return image

    def _same(self) -> Image:
        image = reopen(self.source, self.options, self.identity, self.cache_bytes)
        if image.is_replaced(self.version):
            image.close()
            raise ImageReadError(
                f"{self.source} was replaced while the run went on: give the same command again, "
                "with --overwrite if its pixels are others now"
            )
        return image

    def share(self, image: Image, *, elsewhere: bool) -> scratch.Scratch | None:
        """Makes the copy where `reopen` needs one, in other processes if `elsewhere`: it lasts as long as what returns.

        Raises ValueError where there is no room for it, ImageReadError where the image cannot be read.
        """
        return image.copy_to(self.copy.folder) if image.needs_copy or (self.heavy and elsewhere) else None

    def reopen(self) -> Image:
        """The image as those read it who do its tiles.

        Raises ValueError where a copy that is needed is not seen, ImageReadError where the image was replaced.
        """
        if self.source is not None and not self.copy.exists():
            image = self._same()
            if not image.needs_copy:
                return image
            image.close()
        return reopen(self.copy, self.options, self.identity, self.cache_bytes)


def refer(
    source: Any,
    *,
    axes: str | None = None,
    level: int = 0,
    channels: int | None = None,
    time: int = 0,
    cache_bytes: int = CACHE_BYTES,
) -> Reference:
    """What it takes to open what `open_image` opens. A path is not opened; raises ValueError for a bad array."""
    identity = None
    if isinstance(source, Image):
        seen, (source, options, identity) = source.version, source.given
    else:
        source, options = asked_for(source, axes, level, channels, time)
        seen = version(source)
    heavy = not isinstance(source, str) and scratch.is_heavy(open_source(source, **options))
    return Reference(source, options, cache_bytes, identity, scratch.Copy(scratch.place()), heavy, seen)
