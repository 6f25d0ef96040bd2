"""A map of sequences of places: where they were last, where they went, and what was expected."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from relpos.tasks.events.sequences import Sequences

LAST = 6


def draw(sequences: Sequences, rows: np.ndarray, five: np.ndarray, path: Path) -> Path:
    """A panel for each of ``rows``; five (rows, 5): items expected, likeliest first, at the place of the first event
    that has them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    assert sequences.places is not None
    known = np.full((sequences.mark_count, 2), np.nan)
    known[sequences.kinds[::-1]] = sequences.places[::-1]
    figure = Figure(figsize=(10, 3 * ((len(rows) + 1) // 2)), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (row, expected) in enumerate(zip(rows, five)):
        axes = figure.add_subplot((len(rows) + 1) // 2, 2, number + 1)
        axes.scatter(known[:, 1], known[:, 0], s=4, color="0.8")
        end = sequences.offsets[row + 1]
        trail = sequences.places[max(sequences.offsets[row], end - 1 - LAST) : end]
        axes.plot(trail[:-1, 1], trail[:-1, 0], "-o", color="#0072b2", ms=3, lw=1, label="last places")
        axes.plot(trail[-1:, 1], trail[-1:, 0], "*", color="#d55e00", ms=12, label="the next")
        for rank, item in enumerate(expected, 1):
            at = known[item][::-1]
            axes.annotate(str(rank), at, fontsize=9, weight="bold", xytext=(3, 3), textcoords="offset points")
        axes.set_title(sequences.name_of(int(row)), fontsize=9)
        axes.set_xlabel("longitude, degrees", fontsize=8)
        axes.set_ylabel("latitude, degrees", fontsize=8)
        if number == 0:
            axes.legend(fontsize=7, title="digits: expected, likeliest first", title_fontsize=7)
    figure.savefig(path, dpi=110)
    return path
