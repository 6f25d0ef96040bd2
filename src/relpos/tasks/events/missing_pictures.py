"""What the task missing draws: a stretch of one sequence with what was recorded, what was not, and what was imputed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from relpos.tasks.base import Artifact
from relpos.tasks.events.imputers import Masses, place

if TYPE_CHECKING:
    from relpos.tasks.events.missing import Missing

_EVENTS = 60  # hidden and recorded ones of the stretch, about
_COLOURS = {"recorded": "0.2", "hidden": "tab:orange", "imputed": "tab:blue"}


def stretch(task: Missing, masses: Masses, path: Path) -> list[Artifact]:
    """Of the sequence with most hidden events, the stretch around the middle of the test."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    share = task.train_length
    cells, truth = task.cells("test", share), task.truth("test", share)[0]
    row = int(truth.lengths.argmax())
    recorded = task.recorded("test", share).select([row])
    events = np.sort(np.concatenate([recorded.times[recorded.times > cells.start[row]], truth.select([row]).times]))
    first = max((len(events) - _EVENTS) // 2, 0)
    low, high = float(events[first]), float(events[min(first + _EVENTS, len(events)) - 1])
    times, _ = place(masses, cells, task.budget("test", share), task.tolerance)[row]
    hidden = truth.select([row])
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    rate, lines = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    middles, mass = cells.middles(row), masses[row] / cells.width
    inside = (middles >= low) & (middles <= high)
    names = task.plan.sequences.mark_names or tuple(map(str, range(mass.shape[1])))
    rate.stackplot(middles[inside], *mass[inside].T, labels=names, alpha=0.8)
    rate.set_ylabel("hidden events\nan hour, expected" if recorded.unit == "hours" else "hidden, expected")
    rate.legend(loc="upper left", fontsize="small", ncols=len(names))
    for level, (name, at) in enumerate(
        [("recorded", recorded.times), ("hidden", hidden.times), ("imputed", times)][::-1]
    ):
        there = at[(at >= low) & (at <= high)]
        lines.vlines(there, level + 0.1, level + 0.9, colors=_COLOURS[name], lw=1.4)
    lines.set_yticks([0.5, 1.5, 2.5], ["imputed", "hidden", "recorded"])
    lines.set_ylim(0, 3)
    lines.set_xlabel(f"{recorded.unit or 'time'} of the window")
    name = recorded.ids[0] if recorded.ids else task.plan.sequences.name_of(row)
    figure.suptitle(f"{name}, {share} % deleted", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return [Artifact(path, "image", f"{name}: recorded, hidden and imputed events")]
