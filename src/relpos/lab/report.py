"""A finished run as one page to send to a colleague, and as tables: report.html, table.csv, table.md."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from relpos.lab import plots
from relpos.lab.checkpoint import write_atomic
from relpos.lab.errors import RunDirectoryError
from relpos.lab.results import REMEASURE, Loss, Results, Row, collect, learned_lags, spread_name
from relpos.lab.run import Run

KINDS = {
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".mid": "audio/midi",
    ".midi": "audio/midi",
    ".txt": "text/plain",
}


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
    figures = {name: plots.png(figure) for name, figure in _figures(results).items()}
    for name, data in figures.items():
        write_atomic(path.parent / path.stem / f"{name}.png", data)
    page = (
        _templates()
        .get_template("report.md")
        .render({**_facts(results), "table": markdown_table(results), "folder": path.stem, "figures": list(figures)})
    )
    write_atomic(path, page.encode())
    return path


def headline(results: Results) -> str:
    """The result in a few sentences, from the numbers alone; encodings within each other's spread share a place."""
    longest, short = results.lengths[-1], results.train_length
    if not results.best(longest):
        return f"No encoding could be evaluated at {longest} tokens."
    times = f"{longest / short:g} times the training length ({longest} tokens)"
    first = results.best(longest)[0].losses[longest]
    text = f"At {times}, {_leaders(results, longest)} best: {cell_text(first)} nats a token"
    baseline = results.best_baseline(longest)
    if baseline is not None and first.mean is not None:
        way = "below" if first.mean < baseline[1] else "above"
        text += f", {abs(baseline[1] - first.mean):.2f} {way} the best trivial predictor ({baseline[0]})"
    text += "."
    if longest == short or not results.best(short):
        return text
    near = results.tied(short)
    if near[0] is results.best(longest)[0] and len(near) == len(results.tied(longest)) == 1:
        text += f" So it does at the training length ({short} tokens: {cell_text(near[0].losses[short])})."
    else:
        text += f" At the training length ({short} tokens) {_leaders(results, short)} best"
        text += f" ({cell_text(near[0].losses[short])})."
    changes = [(_change(row, short, longest), row.encoding) for row in results.best(longest)]
    worst = max(changes)
    if worst[0] > 0.05:
        text += f" {worst[1]} loses most with length: {worst[0]:+.2f} from {short} to {longest} tokens."
    return text


def _change(row: Row, short: int, long: int) -> float:
    return (row.losses[long].mean or 0.0) - (row.losses[short].mean or 0.0)


def _leaders(results: Results, length: int) -> str:
    """The best encoding with its verb, or all that share the first place."""
    names = [row.encoding for row in results.tied(length)]
    if len(names) == 1:
        return f"{names[0]} predicts"
    return f"{', '.join(names[:-1])} and {names[-1]} (equal within their spread) predict"


def cell_text(loss: Loss) -> str:
    """`1.234 ± 0.005`, or a dash where there is no number."""
    if loss.mean is None:
        return "-"
    return f"{loss.mean:.3f}" + (f" ± {loss.spread:.3f}" if loss.spread is not None else "")


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


def csv_table(results: Results) -> str:
    """One line an encoding and baseline, numbers in full; empty where there is none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = [name for n in results.lengths for name in (f"loss_{n}", f"spread_{n}", f"refused_{n}")]
    tail = ["parameters", "encoding_parameters", "tokens_per_second", "peak_bytes", "learning_rate", "seeds"]
    writer.writerow(["name", "kind", *columns, *tail])
    for row in results.rows:
        cells = [value for n in results.lengths for value in _csv_cells(row.losses[n])]
        tail_cells = [row.parameters, row.own_parameters, row.speed, row.peak_bytes, row.rate, len(row.records)]
        writer.writerow([row.encoding, "encoding", *cells, *tail_cells])
    for name, losses in results.baselines.items():
        cells = [value for n in results.lengths for value in (losses.get(n, ""), "", "")]
        writer.writerow([name, "baseline", *cells, *[""] * len(tail)])
    return buffer.getvalue()


def _csv_cells(loss: Loss) -> tuple[object, object, object]:
    return ("" if loss.mean is None else loss.mean, "" if loss.spread is None else loss.spread, loss.refused or "")


def markdown_table(results: Results) -> str:
    """The table of the report in markdown."""
    heads = [f"loss at {n} ({n / results.train_length:g}x)" for n in results.lengths]
    heads += ["parameters (encoding)", "tokens/s", "step memory (MiB)"]
    lines = ["| encoding | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    best = {n: {row.encoding for row in results.tied(n)} if results.best(n) else set() for n in results.lengths}
    for row in results.rows:
        cells = [
            f"**{cell_text(row.losses[n])}**" if row.encoding in best[n] else _refusable(row.losses[n])
            for n in results.lengths
        ]
        cells += [f"{row.parameters:,} ({row.own_parameters:,})", _speed(row), f"{row.peak_bytes / 2**20:.1f}"]
        lines.append(f"| {row.encoding} | " + " | ".join(cells) + " |")
    for name, losses in results.baselines.items():
        cells = [f"{losses[n]:.3f}" if n in losses else "-" for n in results.lengths]
        lines.append(f"| *{name}* (baseline) | " + " | ".join(cells) + " | | | |")
    return "\n".join(lines) + "\n"


def _refusable(loss: Loss) -> str:
    return cell_text(loss) if loss.refused is None else f"cannot: {loss.refused}".replace("|", "/").replace("\n", " ")


def _speed(row: Row) -> str:
    return f"{row.speed:,.0f}" if row.speed else "-"


def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("relpos.lab"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _figures(results: Results) -> dict[str, Any]:
    return {
        "loss-by-length": plots.loss_by_length(results),
        "loss-by-position": plots.loss_by_position(results),
        "training": plots.training_curves(results),
    }


def _facts(results: Results) -> dict[str, Any]:
    """What both pages say about the run besides its numbers."""
    run = results.run
    return {
        "title": run.config.get("title", run.settings.task),
        "headline": headline(results),
        "settings": run.settings.as_dict(),
        "steps": run.steps,
        "spread": spread_name(len(run.settings.seeds)),
        "lengths": results.lengths,
        "train_length": results.train_length,
        "source": run.config.get("source", ""),
        "data": {name: plain_text(value) for name, value in run.config["data"].items() if name != "source"},
        "environment": results.environment,
        "command": run.config.get("command") or f"relpos compare {run.settings.task}",
        "rates": results.rates,
        "run_name": run.path.name,
    }


def _page(results: Results) -> dict[str, Any]:
    figures = {name: plots.data_uri(plots.svg(figure), "image/svg+xml") for name, figure in _figures(results).items()}
    shared, samples = _samples(results)
    return {
        **_facts(results),
        "figures": figures,
        "rows": [_row(results, row, index) for index, row in enumerate(results.rows)],
        "baselines": [
            {"name": name, "cells": [f"{losses[n]:.3f}" if n in losses else "-" for n in results.lengths]}
            for name, losses in results.baselines.items()
        ],
        "lag_pictures": [_lag_picture(results, row, index) for index, row in enumerate(results.rows)],
        "shared_samples": shared,
        "samples": samples,
    }


def _row(results: Results, row: Row, index: int) -> dict[str, Any]:
    best = {n: row in results.tied(n) if results.best(n) else False for n in results.lengths}
    return {
        "name": row.encoding,
        "colour": plots.look(index)["color"],
        "cells": [
            {"text": cell_text(row.losses[n]), "refused": row.losses[n].refused, "best": best[n]}
            for n in results.lengths
        ],
        "parameters": f"{row.parameters:,}",
        "own": f"{row.own_parameters:,}",
        "speed": _speed(row),
        "memory": f"{row.peak_bytes / 2**20:.1f}",
        "rate": f"{row.rate:g}",
    }


def _lag_picture(results: Results, row: Row, index: int) -> dict[str, Any]:
    pictures = learned_lags(results, row)
    figure = plots.lag_heatmap(pictures) if pictures else None
    note = ""
    if figure is None:
        refusals = [entry["refused"] for entry in row.records[0]["lags"] if "refused" in entry]
        note = refusals[0] if refusals else "leaves every lag alone"
    else:
        note = pictures[0].meaning
    return {
        "name": row.encoding,
        "colour": plots.look(index)["color"],
        "uri": plots.data_uri(plots.svg(figure), "image/svg+xml") if figure is not None else None,
        "note": note,
    }


def _samples(results: Results) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(files equal for all encodings, such as the real continuation, shown once; files of each encoding)."""
    loaded = []
    for row in results.rows:
        folder = results.run.model(row.encoding, row.records[0]["seed"])
        loaded.append([_artifact(folder, each, row.encoding) for each in row.records[0]["samples"]])
    digests = [{item["digest"] for item in items} for items in loaded]
    common = set.intersection(*digests) if len(digests) > 1 else set()
    shared = [item for item in loaded[0] if item["digest"] in common]
    groups = [
        {
            "name": row.encoding,
            "colour": plots.look(index)["color"],
            "items": [item for item in items if item["digest"] not in common],
            "refused": row.records[0]["samples_refused"],
        }
        for index, (row, items) in enumerate(zip(results.rows, loaded, strict=True))
    ]
    return shared, groups


def _artifact(folder: Path, entry: dict[str, str], encoding: str) -> dict[str, Any]:
    path = folder / entry["path"]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read ({error.strerror}); {REMEASURE}") from error
    kind = KINDS.get(path.suffix.lower(), "application/octet-stream")
    text = data.decode(errors="replace") if entry["kind"] == "text" else ""
    return {
        "title": entry["title"],
        "kind": entry["kind"],
        "uri": plots.data_uri(data, kind),
        "file": f"{encoding}-{path.name}",
        "text": text,
        "digest": hashlib.sha256(data).hexdigest(),
    }
