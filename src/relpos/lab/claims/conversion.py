"""The claim that a trained softmax model can be turned into a kernelised one without fine-tuning.

Four encoder-decoders are trained on `translate` with exact softmax attention and the same order of data: q and k
brought to unit length or not, positions by a learned bias of the lag (RPE) or by sinusoids added to the input. Then the
softmax of the self-attention is swapped for positive random features, all weights staying as they are, for several
feature counts and several draws of the features. The cross attention stays exact in all of them.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from relpos.lab.checkpoint import load_checkpoint, read_json, write_json
from relpos.lab.claims.frame import PICTURES, Finding, Order, markdown_table, spread
from relpos.lab.jobs import Crew, Job, perform_all
from relpos.lab.preparation import prepare
from relpos.lab.settings import Settings
from relpos.lab.train import CHECKPOINT, build
from relpos.models.convert import convert
from relpos.tasks.translate import Settings as Sizes
from relpos.tasks.translate import Translate

name = "conversion"
title = "From softmax to random features without fine-tuning"
statement = (
    "Luo et al. 2021 (section 4.5): a translation model trained with exact softmax attention keeps its BLEU when the "
    "softmax is replaced by positive random features without fine-tuning, if q and k are normalised and attention has "
    "a relative bias (NPRF with RPE); without normalisation it loses much of it, whether with a relative bias or not."
)
MODELS = {
    "normalised + RPE": "learned_bias[share=true,normalize=true]",
    "normalised": "sinusoidal[normalize=true]",
    "standard + RPE": "learned_bias[share=true]",
    "standard": "sinusoidal",
}
"""Title -> contestant, in the order of the paper after conversion. One bias for all layers, as there."""

PAPER: dict[str, tuple[float, ...]] = {
    "normalised + RPE": (35.2, 34.3, 34.6, 34.6, 34.9, 34.9, 34.9),
    "normalised": (33.5, 25.8, 30.7, 31.5, 32.2, 32.7, 32.8),
    "standard + RPE": (35.4, 24.3, 25.6, 26.7, 27.9, 29.0, 30.3),
    "standard": (35.2, 11.0, 12.2, 14.4, 15.9, 17.5, 19.5),
}
"""BLEU on IWSLT14 de-en, exact and at 16, 32, 64, 128, 256, 512 features, read off the figure of the paper."""

presets: dict[str, dict[str, Any]] = {
    "quick": {
        "steps": 12, "batch": 2, "rate": 4e-3, "dim": 16, "depth": 1, "heads": 2, "vocabulary": 300, "translated": 8,
        "counts": [16, 64], "draws": 1, "features": "prf", "seed": 0, "path": None,
    },
    "demo": {
        "steps": 1500, "batch": 12, "rate": 4e-3, "dim": 128, "depth": 2, "heads": 4, "vocabulary": 4000,
        "translated": 100, "counts": [16, 64, 256], "draws": 2, "features": "prf", "seed": 0, "path": None,
    },
    "results": {
        "steps": 3500, "batch": 12, "rate": 4e-3, "dim": 128, "depth": 2, "heads": 4, "vocabulary": 4000,
        "translated": 200, "counts": [16, 32, 64, 128, 256, 512], "draws": 3, "features": "prf", "seed": 0,
        "path": None,
    },
}  # fmt: skip
"""path: a parallel text in place of the verses. draws: of the features, for each count; the rest as its name says."""

CELLS = "cells.json"
CORNER = "q, k + positions"
Cell = dict[str, float | None]


def run(order: Order) -> Finding:
    """Trains what is not trained, measures what is not measured, and says what came out."""
    s = order.settings
    task, lab = _task(s), _lab(s)
    prepare(task, order.reporter)
    folders = {label: order.folder / key.replace(" + ", "-").replace(" ", "-") for key, label in MODELS.items()}
    jobs = [
        Job(f"training {key}", label, s["seed"], s["rate"], s["steps"], folders[label], measured=False)
        for key, label in MODELS.items()
        if not (folders[label] / CELLS).exists()
    ]
    perform_all(task, lab, jobs, order.reporter, Crew(order.workers, order.modules), lambda _job, _record: "trained")
    parts = [Part(task, lab, label, folders[label], dict(s)) for label in MODELS.values()]
    spread(measure, parts, order, "exact and converted")
    cells = {key: read_json(folders[label] / CELLS) for key, label in MODELS.items()}
    return conclude(cells, s, task.baselines("test", task.train_length))


@dataclass(frozen=True)
class Part:
    """One trained model and what to measure of it."""

    task: Translate
    lab: Settings
    label: str
    folder: Path
    settings: dict[str, Any]


def measure(part: Part) -> None:
    """Test loss and BLEU, exact and for each count and draw; kept one by one, so that a rerun goes on."""
    file, s = part.folder / CELLS, part.settings
    cells: dict[str, Cell] = read_json(file) if file.exists() else {}
    wanted = ["exact"] + [f"{count}/{draw}" for count in s["counts"] for draw in range(s["draws"])]
    if set(wanted) <= set(cells):
        return
    model = build(part.task, part.lab, part.label)
    load_checkpoint(part.folder / CHECKPOINT, model)
    model.eval()
    for key in wanted:
        if key in cells:
            continue
        if key == "exact":
            now = model
        else:
            count, draw = map(int, key.split("/"))
            generator = torch.Generator().manual_seed(1000 * s["seed"] + draw)
            now = convert(model, features=s["features"], feature_count=count, generator=generator)
        found = part.task.evaluate(now, "test", part.task.train_length)
        cells[key] = {"loss": found.loss if math.isfinite(found.loss) else None, "bleu": found.metrics["bleu"]}
        write_json(file, cells)


def _task(s: Any) -> Translate:
    return Translate(path=s["path"], settings=Sizes(vocabulary=s["vocabulary"], translated=s["translated"]))


def _lab(s: Any) -> Settings:
    return Settings(
        task="translate", encodings=tuple(MODELS.values()), seeds=(s["seed"],), steps=s["steps"], batch=s["batch"],
        rates=(s["rate"],), model={name: s[name] for name in ("dim", "depth", "heads")}, preset="results",
    )  # fmt: skip


def conclude(cells: dict[str, dict[str, Cell]], s: Any, baselines: dict[str, dict[str, float]]) -> Finding:
    """The finding from the numbers alone."""
    table = {key: [_summary(own, "exact")] + [_summary(own, m) for m in s["counts"]] for key, own in cells.items()}
    bleu = {key: [cell["bleu"][0] for cell in row] for key, row in table.items()}
    columns = range(1, len(s["counts"]) + 1)
    ordered = sum(_falling([bleu[key][i] for key in MODELS]) for i in columns)
    first, plain, rpe, standard = (bleu[key] for key in MODELS)
    best = all(first[i] > max(plain[i], rpe[i], standard[i]) for i in columns)
    less = all(
        first[0] - first[i] < rpe[0] - rpe[i] and plain[0] - plain[i] < standard[0] - standard[i] for i in columns
    )
    fewest = s["counts"][0]
    kept = ", ".join(f"{key} {row[1]:.1f} of {row[0]:.1f}" for key, row in bleu.items())
    verdict = (
        f"BLEU that is left with {fewest} features: {kept}. NPRF with RPE is {'' if best else 'not '}the best at every "
        f"feature count; normalised models {'always' if less else 'do not always'} lose less than the others; the "
        f"paper's order of the four is found at {ordered} of {len(s['counts'])} counts."
    )
    numbers = {"cells": cells, "baselines": baselines, "ordered": ordered, "best": best, "less": less}
    return Finding(best and less, verdict, numbers, _body(table, s, baselines), {"conversion": _picture(table, s)})


def _falling(values: list[float]) -> bool:
    return all(a > b for a, b in pairwise(values))


def _summary(cells: dict[str, Cell], count: object) -> dict[str, tuple[float, float | None]]:
    """Mean and standard deviation over the draws; the loss is infinite where one of them is not a number."""
    found = [cell for key, cell in cells.items() if key.split("/")[0] == str(count)]
    summary: dict[str, tuple[float, float | None]] = {}
    for what in ("bleu", "loss"):
        values = [math.inf if cell[what] is None else float(cell[what] or 0.0) for cell in found]
        spread_ = statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None
        summary[what] = statistics.fmean(values), spread_
    return summary


def _body(table: dict[str, list[dict[str, Any]]], s: Any, baselines: dict[str, dict[str, float]]) -> str:
    heads = ["exact", *(f"m={m}" for m in s["counts"])]
    trivial = [
        f"{key}: {', '.join(f'{value:.2f} {_UNITS[what]}' for what, value in own.items())}"
        for key, own in baselines.items()
    ]
    paper = {key: [f"{value:.1f}" for value in row] for key, row in PAPER.items()}
    size = (
        f"{s['depth']} + {s['depth']} layers of width {s['dim']}, {s['heads']} heads, {s['steps']} steps of about "
        f"{s['batch'] * Translate.train_length} subwords a side"
    )
    method = (__doc__ or "").split("\n\n", 1)[1].strip()
    return "\n\n".join(
        [
            f"![BLEU and loss after conversion]({PICTURES}/conversion.png)",
            f"## BLEU on {s['translated']} test verses, greedy\n\n"
            + markdown_table(CORNER, heads, _texts(table, "bleu", ".1f")),
            "## Nats a token on the whole test side\n\n" + markdown_table(CORNER, heads, _texts(table, "loss", ".3f")),
            f"Mean (± standard deviation) over draws of the features ({s['features']}), {s['draws']} for each m; one "
            f"draw a layer, shared by its heads. Trivial predictors: {'; '.join(trivial)}.",
            "## The paper's numbers\n\nBLEU on another task (IWSLT14 de-en), with larger models: the order and the "
            "distances can be compared, the numbers cannot.\n\n"
            + markdown_table(CORNER, ["exact", *(f"m={m}" for m in (16, 32, 64, 128, 256, 512))], paper),
            f"## How it was done\n\n{method}\n\nHere: {size}; AdamW, peak rate {s['rate']:g}, seed {s['seed']}.",
        ]
    )


_UNITS = {"loss": "nats", "bleu": "BLEU"}


def _texts(table: dict[str, list[dict[str, Any]]], what: str, form: str) -> dict[str, list[str]]:
    def text(mean: float, deviation: float | None) -> str:
        return format(mean, form) + ("" if deviation is None else f" ± {deviation:{form}}")

    return {key: [text(*cell[what]) for cell in row] for key, row in table.items()}


def _picture(table: dict[str, list[dict[str, Any]]], s: Any) -> bytes:
    """BLEU and loss against the number of features; dashed: with exact attention."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    from relpos.lab.plots import STYLE, look, png

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.0, 4.4), layout="constrained")
        for axes, what, label in zip(
            figure.subplots(1, 2), ("bleu", "loss"), ("BLEU (test verses)", "test loss (nats a token)"), strict=True
        ):
            for index, (key, row) in enumerate(table.items()):
                style = look(index)
                means, deviations = zip(*(cell[what] for cell in row[1:]), strict=True)
                axes.errorbar(s["counts"], means, [d or 0.0 for d in deviations], label=key, capsize=3, **style)
                axes.axhline(row[0][what][0], color=style["color"], linestyle=(0, (1, 2)), linewidth=1.2)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(s["counts"]))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.set_xlabel("random features m; dotted: exact softmax")
            axes.set_ylabel(label)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        return png(figure)
