"""An output that is there already: what its metadata say of how it was made, all of it believed or none."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from pipeline.config import Options, options
from pipeline.storage.location import local_path
from pipeline.storage.output import Output, damaged, open_output
from pipeline.tiling.plan import Plan, VersionError


@dataclass(frozen=True)
class Stored:
    """An open output and what made it."""

    output: Output
    plan: Plan
    image: str | None
    """Where the image was; None where it had no path. The same of the network."""
    network: str | None
    asked: Options
    """How both were opened; nothing else of what was asked for."""


def open_stored(path: str | os.PathLike[str]) -> Stored:
    """An output of ours, with its plan and source.

    Raises OutputError for anything else and for damaged metadata, VersionError for those of another version,
    FileNotFoundError where there is nothing.
    """
    output = open_output(path)
    try:
        return _stored(output, output.attributes)
    except VersionError:
        raise
    except Exception as error:
        raise damaged(output.location) from error


def _stored(output: Output, attributes: dict[str, Any]) -> Stored:
    plan, source = Plan.from_json(attributes["plan"]), attributes["source"]
    if (plan.fingerprint, plan.layout) != (attributes["fingerprint"], output.layout) or output.fill.any():
        raise ValueError("a plan that is not the one by which the output was made")
    image, network = source["image"], source["network"]
    if not isinstance(image, str | None) or not isinstance(network, str | None):
        raise TypeError("a path is text")
    opening, loading = source["open"], source["load"]
    asked = options(
        axes=opening["axes"],
        level=opening["level"],
        key=loading["output"],
        **{name: loading[name] for name in ("scale", "mean", "std")},
    )
    return Stored(output, plan, image, None if network is None else local_path(network), asked)
