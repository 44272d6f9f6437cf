"""report.html: one page that holds all it shows, and fetches nothing."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pipeline.network.names import CARD
from pipeline.reporting.charts import Line, line_chart, smoothed
from pipeline.reporting.examples import PANELS, Example
from pipeline.reporting.sampling_map import SamplingMap
from pipeline.reporting.scalars import as_utf8
from pipeline.training.run_folder import LOG

REPORT = "report.html"
SCORES = (("mean_iou", "mean IoU"), ("mean_f1", "mean F1"), ("accuracy", "accuracy"))
BY_CLASS = (("iou", "IoU"), ("f1", "F1"), ("precision", "precision"), ("recall", "recall"))
BY = "by true class (rows) and predicted class (columns)"
LONGEST = 400
"""Characters of a fact beyond which it is cut."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2327; background: #fff; max-width: 68rem; margin: 2rem auto;
       padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0 }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse } td, th { padding: .25rem .7rem; text-align: left; vertical-align: top }
.numbers td, .numbers th { text-align: right; border: 1px solid #e3e6e8; font-variant-numeric: tabular-nums }
.facts th { color: #59636b; font-weight: normal; white-space: nowrap } .facts td { overflow-wrap: anywhere }
.charts { display: flex; flex-wrap: wrap; gap: 1rem } .charts svg { flex: 1 1 26rem; max-width: 40rem }
svg text { font: 12px system-ui, sans-serif; fill: #38424a } .grid { stroke: #e6e9eb } .axis { stroke: #38424a }
figure { margin: .8rem 0 } .shown { display: inline-block; max-width: 100% }
figcaption, .note { color: #59636b } img { max-width: 100%; image-rendering: pixelated }
.share { color: #59636b; font-size: 85% } .panels { display: grid; grid-template-columns: repeat(4, 1fr) }
"""


def write_report(
    run: Path,
    best: Sequence[Example] = (),
    worst: Sequence[Example] = (),
    maps: Sequence[SamplingMap] = (),
    name: str = REPORT,
) -> Path:
    """Writes the report of a run's folder, from metrics.jsonl, its card and these pictures; the path of the file."""
    card = _card(run)
    steps, validations = read_records(run / LOG)
    parts = [
        f"<h1>{escape(str(card.get('name', run.name)))}</h1>",
        f'<p class="note">{escape(_summary(steps, validations))}</p>',
        _curves(steps, validations),
    ]
    if validations:
        highest = max(validations, key=lambda record: record["validation"].get("mean_iou") or 0.0)
        at = f"at step {highest['step']}, the best by mean IoU"
        parts += _scores(highest["validation"], card.get("class_names"), "Scores", f"Held-out outputs {BY}, {at}")
    if test := card.get("training", {}).get("test"):
        parts += _scores(test, card.get("class_names"), "Test", f"Test outputs {BY}, of the network that results")
    parts += [*_examples(best, worst), _section("Sampling", _sampling(maps))]
    parts.append(_section("Network, data, versions", _facts(card)))
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(str(card.get('name', run.name)))}: training report</title><style>{STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )
    partial = run / f"{name}.partial"
    partial.write_text(as_utf8(page), encoding="utf-8")
    os.replace(partial, run / name)
    return run / name


def read_records(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records of steps and those of validations, by step; of a step that was run again, the last one.

    A line that a killed run left unfinished is passed over.
    """
    steps: dict[int, dict[str, Any]] = {}
    validations: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if "loss" in record:
            steps[record["step"]] = record
        if "validation" in record:
            validations[record["step"]] = record
    return [steps[n] for n in sorted(steps)], [validations[n] for n in sorted(validations)]


def _card(run: Path) -> dict[str, Any]:
    path = run / CARD
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return card


def _summary(steps: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]]) -> str:
    if not steps:
        return "No step was recorded."
    said = [f"{steps[-1]['step']} steps"]
    if (loss := steps[-1]["loss"]) is not None:
        said.append(f"last loss {loss:.4g}")
    if pixels := sum(record.get("pixels", 0) for record in steps):
        said.append(f"{pixels:,.0f} labelled outputs drawn".replace(",", " "))
    if validations:
        scores = [(record["validation"].get("mean_iou") or 0.0, -record["step"]) for record in validations]
        best, at = max(scores)
        said.append(f"best mean IoU {best:.4f} at step {-at}")
    return ", ".join(said) + "."


def _curves(steps: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]]) -> str:
    losses = [(record["step"], record["loss"]) for record in steps]
    losses = [(step, loss) for step, loss in losses if loss is not None and math.isfinite(loss)]
    reach = len(losses) // 80
    lines = [Line("each step", losses, faint=True)] if reach else []
    name = f"loss, mean of {2 * reach + 1} steps" if reach else "loss"
    lines.append(Line(name, smoothed(losses, reach)))
    charts = [line_chart(lines, x="step", y="loss")]
    scores = [
        Line(name, [(r["step"], r["validation"][key]) for r in validations if r["validation"].get(key) is not None])
        for key, name in SCORES
    ]
    charts.append(line_chart(scores, x="step", y="score on what is held out", bounds=(0.0, 1.0)))
    return _section("Curves", f'<div class="charts">{"".join(charts)}</div>')


def _scores(scores: Mapping[str, Any], names: Sequence[str] | None, title: str, said: str) -> Iterable[str]:
    """Scores by class, and the confusion matrix, of held-out images."""
    matrix = scores["confusion"]
    classes = list(names) if names and len(names) == len(matrix) else [str(k) for k in range(len(matrix))]
    columns = [(key, title) for key, title in BY_CLASS if key in scores]
    rows = [["class", *(title for _, title in columns)]]
    rows += [[name, *(_number(scores[key][k]) for key, _ in columns)] for k, name in enumerate(classes)]
    note = f'<p class="note">{said}; below each number its share of the row.</p>'
    head = "".join(f"<th>{escape(name)}</th>" for name in ["true \\ predicted", *classes])
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(_cell(n, sum(row)) for n in row)}</tr>"
        for name, row in zip(classes, matrix, strict=True)
    )
    confusion = f'<table class="numbers confusion"><tr>{head}</tr>{body}</table>'
    yield _section(title, _table(rows))
    yield _section(f"{title}: confusion matrix", note + confusion)


def _cell(count: int, of: int) -> str:
    """A count, tinted by its share of the row."""
    share = count / of if of else 0.0
    number = f"{count:,}".replace(",", " ")
    tint = f"rgba(0,114,178,{0.6 * share:.2f})"
    return f'<td style="background:{tint}">{number}<br><span class="share">{100 * share:.1f} %</span></td>'


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += [f"<th>{escape(row[0])}</th>" + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) for row in body]
    return '<table class="numbers">' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _examples(best: Sequence[Example], worst: Sequence[Example]) -> Iterable[str]:
    note = '<p class="note">Wrong outputs are red; outputs whose label is ignored are grey.</p>'
    for title, examples in (("Best held-out tiles", best), ("Worst held-out tiles", worst)):
        figures = "".join(_figure(example) for example in examples)
        if figures:
            yield _section(title, note + figures)


def _figure(example: Example) -> str:
    data = base64.b64encode(example.png).decode()
    said = f"{example.name}: mean IoU {example.score:.4f}"
    heads = "".join(f"<span>{panel}</span>" for panel in PANELS)
    alt = f"{', '.join(PANELS)} of {said}"
    return (
        f'<figure><figcaption>{escape(said)}</figcaption><div class="shown"><div class="panels note">{heads}</div>'
        f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}"></div></figure>'
    )


def _sampling(maps: Sequence[SamplingMap]) -> str:
    note = '<p class="note">How often each part of the first training images was drawn: the more, the redder.</p>'
    figures = "".join(
        f'<figure><img alt="{escape(shown.said)}" src="data:image/png;base64,{base64.b64encode(shown.png).decode()}">'
        f"<figcaption>{escape(shown.said)}</figcaption></figure>"
        for shown in maps
    )
    return note + f'<div class="charts">{figures}</div>' if figures else ""


def _facts(card: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(_cut(value))}</td></tr>" for name, value in _flat(card))
    return f'<table class="facts">{rows}</table>'


def _flat(values: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    """Entries and those of what is inside, by dotted names; curves and matrices, which are shown above, left out."""
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif value is not None and key not in ("confusion", "curves"):
            yield name, value if isinstance(value, str) else json.dumps(value)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>{content}" if content else ""
