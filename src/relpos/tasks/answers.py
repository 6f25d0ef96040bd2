"""Pictures and tables of what a classifier answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def confusion(path: Path, labels: np.ndarray, answers: np.ndarray, classes: Sequence[str]) -> Path:
    """A PNG of how often each true class (row) was given each answer (column), in shares of the row."""
    from matplotlib.figure import Figure

    count = len(classes)
    table = np.zeros((count, count))
    np.add.at(table, (labels, answers), 1)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = 2.2 + 0.32 * count
    figure = Figure(figsize=(side + 0.8, side), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(count), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
    axes.set_yticks(range(count), classes)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    for row in range(count):
        for column in range(count):
            if table[row, column]:
                colour = "white" if share[row, column] > 0.5 else "black"
                text = f"{table[row, column]:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
    figure.savefig(path)
    return path


def pictures(
    path: Path, images: np.ndarray, labels: np.ndarray, log_p: np.ndarray, classes: Sequence[str], columns: int = 4
) -> Path:
    """A PNG of images, grey (count, height, width) or in colour (.., 3), each under its true class and the answer."""
    from matplotlib.figure import Figure

    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.3 * rows), dpi=100, layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, image, label, row in zip(panels, images, labels, log_p, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        answer = int(row.argmax())
        colour = "tab:green" if answer == label else "tab:red"
        said = f"{classes[answer]} ({np.exp(row[answer]):.0%})"
        axes.set_title(f"{classes[label]}\nanswer: {said}", fontsize=8, color=colour)
    figure.savefig(path)
    return path


def table(path: Path, title: str, rows: Sequence[tuple[str, str, str]]) -> Path:
    """A markdown table of (example, truth, answer); line breaks and bars in an example are made harmless."""
    lines = [f"# {title}", "", "| example | truth | answer |", "|---|---|---|"]
    lines += ["| " + " | ".join(_cell(part) for part in row) + " |" for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def answer(log_p: np.ndarray, label: int, classes: Sequence[str]) -> str:
    """The most likely class with its probability, marked where it is wrong."""
    best = int(log_p.argmax())
    return f"{classes[best]} ({np.exp(log_p[best]):.0%}){'' if best == label else ', wrong'}"
