"""Pictures of retrieval: the unwarped clock, and a query beside what was found for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from relpos.tasks.base import Artifact
from relpos.tasks.events.retrieval.documents import Halves
from relpos.tasks.events.retrieval.simulated import bent


@torch.no_grad()
def unwarping(curve: Any, directory: Path, warp: float | None = None) -> Artifact:
    """How far the map moves each time, and how fast the clock runs; warp: of simulated queries, drawn undone."""
    from matplotlib.figure import Figure

    shares = torch.linspace(0, 1, 201, dtype=torch.float64, device=curve.offset.device)
    times = (shares * curve.span).cpu().numpy()
    figure = Figure(figsize=(8, 3.2), dpi=100, layout="constrained")
    moved, speed = figure.subplots(1, 2)
    moved.axhline(0, color="0.7", lw=0.8)
    moved.plot(times, curve(shares * curve.span).cpu().numpy() - times, label="learned")
    if warp is not None:
        truth = np.linspace(0, 1, 2001)
        inverse = np.interp(shares.cpu().numpy(), bent(truth, warp), truth)
        moved.plot(times, curve.span * inverse - times, "--", color="tab:red", label="undoes the simulated bend")
    moved.legend(fontsize=8)
    moved.set(xlabel="time of the query (hours)", ylabel="U(t) - t (hours)", title="where the clock is moved")
    speed.axhline(1, color="0.7", lw=0.8)
    speed.plot(times, curve.rate(shares).cpu().numpy())
    speed.set(xlabel="time of the query (hours)", ylabel="U'(t)", title="how fast it runs")
    path = directory / "unwarping.png"
    figure.savefig(path)
    return Artifact(path, "image", "the learned unwarping of the queries' clock")


@torch.no_grad()
def rasters(halves: Halves, asked: int, found: np.ndarray, scores: np.ndarray, model: Any, directory: Path) -> Artifact:
    """A line an event: the query, the query on the unwarped clock, and what was found, best first; green: relevant."""
    from matplotlib.figure import Figure

    query = halves.queries.select([asked])
    rows = [(f"query: {_name(halves, asked)}", query.times - query.start[0], "black")]
    if getattr(model, "unwarping", None) is not None:
        times = model.unwarping(torch.from_numpy(rows[0][1]).to(model.unwarping.offset.device)).cpu().numpy()
        rows.append(("unwarped", times, "tab:blue"))
    for place, (row, score) in enumerate(zip(found, scores), 1):
        one = halves.corpus.select([row])
        colour = "tab:green" if halves.labels[row] == halves.labels[asked] else "tab:red"
        rows.append((f"{place}. {_name(halves, row)} ({score:.2f})", one.times - one.start[0], colour))
    figure = Figure(figsize=(9, 0.5 * len(rows) + 0.9), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.eventplot(
        [times for _, times, _ in rows], colors=[c for *_, c in rows], linelengths=0.8, linewidths=0.6,
        lineoffsets=range(len(rows)),
    )  # fmt: skip
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel=f"time since the start of the window ({query.unit})", xlim=(0, halves.span))
    path = directory / "found.png"
    figure.savefig(path)
    return Artifact(path, "image", "a test query and the five sequences ranked first; green: of its class")


def _name(halves: Halves, row: int) -> str:
    return halves.classes[halves.labels[row]]
