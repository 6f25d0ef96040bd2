"""A finished run as one page to send to a colleague, and as tables: report.html, table.csv, table.md."""

from __future__ import annotations

import csv
import importlib.resources
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from relpos.lab import artifacts, charts, plots
from relpos.lab.artifacts import SVG
from relpos.lab.checkpoint import write_atomic
from relpos.lab.headline import cell_text, headline
from relpos.lab.results import Results, Row, collect, learned_lags, spread_name
from relpos.lab.run import Run
from relpos.tasks import Metric

SCRIPTS = ("chart.js", "music.js", "report.js")  # in this order, inside of the page


def write_report(run: Run) -> Path:
    """Write report.html, table.csv and table.md into the run directory; returns the page."""
    results = collect(run)
    write_atomic(run.path / "table.csv", csv_table(results).encode())
    write_atomic(run.path / "table.md", markdown_table(results).encode())
    page = _templates().get_template("report.html").render(_page(results))
    write_atomic(run.path / "report.html", page.encode())
    return run.path / "report.html"


def write_markdown(run: Run, path: Path) -> Path:
    """The run as a markdown page with its figures as PNG in a folder beside it (PATH without suffix)."""
    results = collect(run)
    figures = _figures(results)
    for each in figures:
        write_atomic(path.parent / path.stem / f"{each.name}.png", plots.png(each.figure))
    pictures = []
    for row in results.rows:
        folder = results.run.model(row.encoding, row.records[0]["seed"])
        for each in row.records[0].get("pictures", ()):
            name = f"{folder.name}-{Path(each['path']).name}"
            write_atomic(path.parent / path.stem / name, (folder / each["path"]).read_bytes())
            pictures.append({"name": name, "encoding": row.encoding, "title": each["title"]})
    facts = {**_facts(results), "table": markdown_table(results), "folder": path.stem, "figures": figures}
    facts["pictures"] = pictures
    page = _templates().get_template("report.md").render(facts)
    write_atomic(path, page.encode())
    return path


def measured(results: Results) -> str:
    """What the numbers of a table are: `Accuracy: %, higher is better. Loss: nats an example, lower is better.`"""
    parts = []
    for metric in results.metrics:
        unit = f"{metric.unit}, " if metric.unit else ""
        way = "higher is better" if metric.higher_is_better else "lower is better"
        way = way if metric.best is None else f"best near {metric.text(metric.best)}"
        parts.append(f"{metric.title[:1].upper()}{metric.title[1:]}: {unit}{way}.")
    return " ".join(parts)


def plain_text(value: object) -> str:
    """A value of a description as people write it: thousands marked, lists and tables with commas."""
    if isinstance(value, dict):
        nested = any(isinstance(each, dict) for each in value.values())
        return ("; " if nested else ", ").join(f"{name}: {plain_text(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(plain_text(each) for each in value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"
    return str(value)


def _columns(results: Results) -> list[tuple[Metric, int]]:
    """What a table shows: every metric at every length."""
    return [(metric, length) for metric in results.metrics for length in results.lengths]


def csv_table(results: Results) -> str:
    """One line a contestant and baseline, numbers in full and unscaled; empty where there is none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = _columns(results)
    heads = [each for m, n in columns for each in (f"{m.name}_{n}", f"{m.name}_spread_{n}")]
    refused = [f"refused_{n}" for n in results.lengths]
    tail = ["parameters", "encoding_parameters", *(cost.name for cost in results.costs)]
    tail += [f"{results.pace}_per_second", "peak_bytes", "learning_rate", "seeds"]
    writer.writerow(["name", "kind", *heads, *refused, *tail])
    for row in results.rows:
        values = [row.values[m.name][n] for m, n in columns]
        cells = [each for value in values for each in (value.mean, value.spread)]
        reasons = [row.values[results.loss.name][n].refused for n in results.lengths]
        costs = [row.costs[cost.name] for cost in results.costs]
        rest = [row.speed, row.peak_bytes, row.rate, len(row.records)]
        tail_cells = [row.parameters, row.own_parameters, *costs, *rest]
        writer.writerow([row.encoding, "encoding", *cells, *reasons, *tail_cells])
    for name, known in results.baselines.items():
        cells = [each for m, n in columns for each in (known.get(m.name, {}).get(n), None)]
        writer.writerow([name, "baseline", *cells, *[None] * (len(refused) + len(tail))])
    return buffer.getvalue()


def markdown_table(results: Results) -> str:
    """The table of the report in markdown."""
    columns = _columns(results)
    several = len(results.lengths) > 1
    heads = [f"{m.title} at {n} ({_times(results, n)})" if several else m.title for m, n in columns]
    heads += ["parameters (encoding)", *(_cost_head(cost) for cost in results.costs)]
    heads += [f"{_training(results)}{results.pace}/s", "step memory (MiB)"]
    lines = ["| encoding | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for row in results.rows:
        cells = [_markdown_cell(results, row, m, n) for m, n in columns]
        cells += [f"{row.parameters:,} ({row.own_parameters:,})"]
        cells += [cost.text(row.costs[cost.name]) for cost in results.costs]
        cells += [_speed(row), f"{row.peak_bytes / 2**20:.1f}"]
        lines.append(f"| {row.encoding} | " + " | ".join(cells) + " |")
    for name in results.baselines:
        cells = [_baseline_text(results, name, m, n) for m, n in columns]
        lines.append(f"| *{name}* (baseline) | " + " | ".join(cells) + " |" + " |" * (3 + len(results.costs)))
    return "\n".join(lines) + "\n"


def _times(results: Results, length: int) -> str:
    return f"{length / results.train_length:.3g}x"


def _cost_head(cost: Metric) -> str:
    return cost.title + (f" ({cost.unit})" if cost.unit else "")


def _training(results: Results) -> str:
    """Before the speed's unit: where there are costs another speed may be among them."""
    return "training " if results.costs else ""


def _markdown_cell(results: Results, row: Row, metric: Metric, length: int) -> str:
    value = row.values[metric.name][length]
    if value.refused is not None:
        return value.refused.replace("|", "/").replace("\n", " ")
    text = cell_text(metric, value)
    return f"**{text}**" if row in results.tied(metric, length) else text


def _baseline_text(results: Results, name: str, metric: Metric, length: int) -> str:
    value = results.baselines[name].get(metric.name, {}).get(length)
    return "-" if value is None else metric.text(value)


def _speed(row: Row) -> str:
    return f"{row.speed:,.0f}" if row.speed else "-"


def _breakable(label: str) -> Markup:
    """A label as HTML that may be broken before its brackets and after its commas."""
    return Markup(str(escape(label)).replace("[", "<wbr>[").replace(",", ",<wbr>"))


def _data(value: object) -> Markup:
    """JSON that a script element can hold, whatever its strings say."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))


def _source(name: str) -> Markup:
    """A file of the templates as it is."""
    return Markup(importlib.resources.files("relpos.lab").joinpath("templates", name).read_text(encoding="utf-8"))


def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("relpos.lab"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    environment.filters["data"] = _data
    return environment


@dataclass(frozen=True)
class Drawn:
    """A figure with what is written over and under it; wide: across the whole page."""

    name: str
    figure: Figure
    title: str
    caption: str
    wide: bool = False


def _figures(results: Results) -> list[Drawn]:
    """Each metric by length, or by contestant where there is one length; training; the loss by position."""
    spread = spread_name(len(results.run.settings.seeds))
    drawn = []
    for metric in results.metrics:
        title = f"{metric.title[:1].upper()}{metric.title[1:]}"
        if len(results.lengths) > 1:
            noun = results.measure.noun
            axes = f"{noun[:1].upper()}{noun[1:]}: logarithmic" if metric.higher_is_better else "Both axes logarithmic"
            figure, title = plots.by_length(results, metric), f"{title} against {noun}"
            drawn.append(Drawn(f"{metric.name}-by-length", figure, title, f"{axes}; bars: {spread}."))
        else:
            caption = "A dot a seed, an upright bar at their mean."
            figure = plots.by_contestant(results, metric)
            drawn.append(Drawn(f"{metric.name}-by-contestant", figure, f"{title}, seed by seed", caption))
    caption = "Lines: training loss, smoothed, mean over seeds. Markers: validation loss."
    drawn.append(Drawn("training", plots.training_curves(results), "Training", caption))
    positions = plots.loss_by_position(results)
    if positions is not None:
        caption = (
            "At the longest length each contestant can take; moving mean over half the training length and mean over "
            "seeds."
        )
        drawn.append(Drawn("loss-by-position", positions, "Loss against position in the context", caption, wide=True))
    return drawn


def _facts(results: Results) -> dict[str, Any]:
    """What both pages say about the run besides its numbers."""
    run = results.run
    return {
        "title": run.config.get("title", run.settings.task),
        "headline": headline(results),
        "measured": measured(results),
        "settings": run.settings.as_dict(),
        "steps": run.steps,
        "spread": spread_name(len(run.settings.seeds)),
        "lengths": results.lengths,
        "train_length": results.train_length,
        "measure": results.measure,
        "pace": results.pace,
        "source": run.config.get("source", ""),
        "data": {name: plain_text(value) for name, value in run.config["data"].items() if name != "source"},
        "environment": results.environment,
        "command": run.config.get("command") or f"relpos compare {run.settings.task}",
        "rates": results.rates,
        "run_name": run.path.name,
    }


def _page(results: Results) -> dict[str, Any]:
    figures = [
        {
            "title": e.title,
            "caption": e.caption,
            "wide": e.wide,
            "uri": plots.data_uri(plots.svg(e.figure), SVG),
            "chart": charts.chart(e.figure),
        }
        for e in _figures(results)
    ]
    several = len(results.lengths) > 1
    shared, samples = artifacts.samples(results)
    drawn = artifacts.pictures(results)
    return {
        **_facts(results),
        "style": _source("report.css"),
        "script": Markup("\n").join(_source(name) for name in SCRIPTS),
        "figures": figures,
        "choices": [{"name": row.encoding, "colour": plots.look(i)["color"]} for i, row in enumerate(results.rows)],
        "columns": [
            {
                "title": m.title,
                "length": f"at {n}, {_times(results, n)} {results.measure.trained}" if several else "",
            }
            for m, n in _columns(results)
        ],
        "costs": [{"title": cost.title, "unit": cost.unit} for cost in results.costs],
        "rows": [_row(results, row, index) for index, row in enumerate(results.rows)],
        "baselines": [
            {"name": name, "cells": [_baseline_text(results, name, m, n) for m, n in _columns(results)]}
            for name in results.baselines
        ],
        "lag_pictures": [] if drawn else [_lag_picture(results, row, index) for index, row in enumerate(results.rows)],
        "pictures": drawn,
        "shared_samples": shared,
        "samples": samples,
    }


def _row(results: Results, row: Row, index: int) -> dict[str, Any]:
    return {
        "name": row.encoding,
        "colour": plots.look(index)["color"],
        "cells": _cells(results, row),
        "parameters": f"{row.parameters:,}",
        "own": f"{row.own_parameters:,}",
        "costs": [cost.text(row.costs[cost.name]) for cost in results.costs],
        "speed": _speed(row),
        "memory": f"{row.peak_bytes / 2**20:.1f}",
        "rate": f"{row.rate:g}",
    }


def _cells(results: Results, row: Row) -> list[dict[str, Any]]:
    """The row's cells; a reason why there is no number is said once and spans the columns that it holds for."""
    cells: list[dict[str, Any]] = []
    for metric, length in _columns(results):
        value = row.values[metric.name][length]
        if value.refused is not None and cells and cells[-1]["refused"] == value.refused:
            cells[-1]["span"] += 1
            continue
        best = value.mean is not None and row in results.tied(metric, length)
        cells.append({"text": cell_text(metric, value), "refused": value.refused, "best": best, "span": 1})
    return cells


def _lag_picture(results: Results, row: Row, index: int) -> dict[str, Any]:
    pictures = learned_lags(results, row)
    figure = plots.lag_heatmap(pictures) if pictures else None
    note = ""
    if figure is None:
        refusals = [entry["refused"] for entry in row.records[0]["lags"] if "refused" in entry]
        lost = row.records[0]["diverged"]
        silent = "leaves every lag alone" if lost is None else f"diverged at step {lost}"
        note = refusals[0] if refusals else silent
    else:
        note = pictures[0].meaning
    return {
        "name": row.encoding,
        "colour": plots.look(index)["color"],
        "uri": plots.data_uri(plots.svg(figure), SVG) if figure is not None else None,
        "note": note,
    }
