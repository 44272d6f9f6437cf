"""A chart of `pipeline.reporting.charts` as a file of its own."""

from __future__ import annotations

STYLE = "<style>text{font:12px sans-serif}.grid{stroke:#e6e9eb}.axis{stroke:#38424a}</style>"


def alone(chart: str) -> str:
    """The svg element with a white ground and its own style, as an SVG file holds it."""
    named = chart.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return named.replace(">", f'>{STYLE}<rect width="100%" height="100%" fill="white"/>', 1)
