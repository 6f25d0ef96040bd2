"""What a network over events has learned, drawn: its intensity, its residuals, its functions of time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from relpos.encodings.content.relative_channels import RelativeChannels
from relpos.encodings.pairs.encoders import Sparse
from relpos.tasks.base import Artifact
from relpos.tasks.events.anchors import Protocol
from relpos.tasks.events.forecasts import distance
from relpos.tasks.events.neural import NeuralProcess, PointNetwork
from relpos.tasks.events.sequences import Sequences

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
GREY = "#6b7280"
DRAWN = 60  # events in the picture of an intensity
POINTS = 1000
SHOWN = 12  # sequences in a picture of continuations


def artifacts(network: PointNetwork, plan: Protocol, directory: Path, length: int) -> list[Artifact]:
    """Files of a report, all of the part that is scored."""
    directory.mkdir(parents=True, exist_ok=True)
    process = NeuralProcess(network, length)
    row = busiest(plan)
    name = _name(plan.sequences, row)
    found = [
        Artifact(
            intensity(process, plan, row, directory / "intensity.png"),
            "image", f"intensity where {name} is busiest in the test; a bar is an event",
        ),
        Artifact(
            residuals(process, plan, directory / "residuals.png"),
            "image", "gaps of the test after time rescaling against the exponential",
        ),
    ]  # fmt: skip
    curves = list(functions_of_time(network))
    if curves:
        unit = plan.sequences.unit or "unit of the data"
        path = time_functions(curves, unit, directory / "time.png")
        found.append(Artifact(path, "image", "what elapsed time adds to a score, by layer and head"))
    return found


def busiest(plan: Protocol) -> int:
    """The sequence with most events that are scored."""
    late = plan.sequences.rows[plan.sequences.times > np.repeat(plan.cut, plan.sequences.lengths)]
    return int(np.argmax(np.bincount(late, minlength=len(plan.sequences))))


def _name(sequences: Sequences, row: int) -> str:
    return sequences.ids[row] if sequences.ids else f"sequence {row}"


def stretch(one: Sequences, since: float) -> tuple[float, float]:
    """The shortest stretch after ``since`` that holds `DRAWN` events, with a little room; all of it where there are
    fewer."""
    times = one.times[one.times > since]
    if len(times) <= DRAWN:
        return since, float(one.end[0])
    spans = times[DRAWN - 1 :] - times[: len(times) - DRAWN + 1]
    first = int(spans.argmin())
    room = 0.05 * float(spans[first])
    return max(since, times[first] - room), min(float(one.end[0]), times[first + DRAWN - 1] + room)


def intensity(process: NeuralProcess, plan: Protocol, row: int, path: Path) -> Path:
    """A PNG of the intensity of each mark (of all together, where there are many) over the busiest stretch."""
    one = plan.sequences.select([row])
    low, high = stretch(one, float(plan.cut[row]))
    inside = one.times[(one.times > low) & (one.times < high)]
    grid = np.unique(np.concatenate([np.linspace(low, high, POINTS), inside, np.nextafter(inside, np.inf)]))
    rates = process.intensity_at(one, 0, grid)
    figure, axes = _figure(9.0, 3.2)
    names = one.mark_names or tuple(f"mark {mark}" for mark in range(process.marks))
    few = process.marks <= len(COLOURS)
    for mark in range(process.marks):
        colour = COLOURS[mark % len(COLOURS)]
        if few:
            axes.plot(grid, rates[:, mark], color=colour, linewidth=1.3, label=names[mark])
        seen = inside[one.kinds[(one.times > low) & (one.times < high)] == mark]
        if len(seen):  # an empty line that is not clipped would count as one at the edge of the figure
            axes.plot(seen, np.zeros(len(seen)), "|", color=colour, markersize=12, clip_on=False)
    if not few:
        axes.plot(grid, rates.sum(-1), color=COLOURS[0], linewidth=1.3, label="all marks")
    axes.set_xlim(low, high)
    # an intensity may have a peak just after an event that would flatten all else
    axes.set_ylim(0, 1.3 * float(np.quantile(rates if few else rates.sum(-1), 0.998)) or None)
    axes.set_xlabel(f"time ({one.unit or 'unit of the data'}); {_name(one, 0)}")
    axes.set_ylabel("events a unit of time")
    axes.legend(loc="upper right", fontsize=8, frameon=False)
    return _save(figure, path)


def residuals(process: NeuralProcess, plan: Protocol, path: Path) -> Path:
    """A PNG: sorted rescaled gaps against exponential quantiles, with the pointwise band of 95%."""
    gaps, last = process.compensator_from(plan.sequences, plan.cut)
    whole = plan.sequences
    late = whole.times > np.repeat(plan.cut, whole.lengths)
    steps, events = [], []
    for row in range(len(whole)):
        mine = slice(*whole.offsets[row : row + 2])
        steps += [gaps[mine, 0][late[mine]], last[row]]
        events += [np.ones(int(late[mine].sum()), dtype=bool), np.zeros(1, dtype=bool)]
    joined, ends = np.concatenate(steps), np.concatenate(events)
    values = np.sort(np.diff(np.cumsum(joined)[ends], prepend=0.0))
    level = (np.arange(1, len(values) + 1) - 0.5) / len(values)
    expected, spread = -np.log1p(-level), 1.96 * np.sqrt(level * (1 - level) / len(values))
    low, high = (-np.log1p(-np.clip(level + sign * spread, 0.0, 1 - 1e-12)) for sign in (-1, 1))
    figure, axes = _figure(4.8, 4.4)
    axes.fill_between(expected, low, np.minimum(high, 1.5 * expected[-1]), color=GREY, alpha=0.2, linewidth=0)
    axes.plot([0, expected[-1]], [0, expected[-1]], color=GREY, linewidth=1)
    axes.plot(expected, values, ".", markersize=3, color=COLOURS[0])
    axes.set_title(f"KS distance {distance(joined, ends):.4f}, {len(values):,} events", loc="left", fontsize=9)
    axes.set_xlabel("exponential quantile; the band holds 95%")
    axes.set_ylabel("gap after time rescaling")
    return _save(figure, path)


Curve = tuple[str, np.ndarray, np.ndarray]
"""The layer, elapsed times (n,) and what they add to a score (heads, n)."""


def functions_of_time(network: PointNetwork) -> Iterator[Curve]:
    """What channels of elapsed time have learned as a bias; those that enter as vectors have no such curve."""
    for layer, encoding in network.encodings():
        if not isinstance(encoding, RelativeChannels):
            continue
        for channel in encoding.channels:
            encoder = channel.encoder
            if channel.kind == "time" and channel.bias is not None and isinstance(encoder, Sparse):
                times = torch.logspace(-2, 4, 800, dtype=torch.float64) * network.scales.unit
                bias = channel.bias.detach().cpu().double()  # type: ignore[union-attr,operator]
                yield layer, times.numpy(), bias[:, encoder.code(times)].numpy()


def time_functions(curves: Sequence[Curve], unit: str, path: Path) -> Path:
    """A PNG with a panel for each layer."""
    figure, _ = _figure(3.6 * len(curves), 3.0, False)
    panels = np.atleast_1d(np.asarray(figure.subplots(1, len(curves), sharey=True)))
    for axes, (layer, times, bias) in zip(panels, curves):
        for head, values in enumerate(bias):
            axes.plot(times, values, color=COLOURS[head % len(COLOURS)], linewidth=1.4, label=f"head {head + 1}")
        axes.axhline(0, color=GREY, linewidth=0.7)
        axes.set_xscale("log")
        axes.set_title(layer, loc="left", fontsize=9)
        axes.set_xlabel(f"elapsed time ({unit})")
        _plain(axes)
    panels[0].set_ylabel("added to the score (nats)")
    panels[0].legend(fontsize=8, frameon=False)
    return _save(figure, path)


def continued(real: Sequences, draws: Sequence[Sequences], path: Path) -> Path:
    """A PNG: for some sequences what came, above, and what was drawn, below it, in colours of the marks."""
    rows = np.argsort(-real.lengths, kind="stable")[:SHOWN]
    rows = np.sort(rows)
    lanes = 1 + len(draws)
    figure, axes = _figure(9.0, 0.8 + 0.16 * lanes * len(rows))
    for place, row in enumerate(rows):
        for lane, each in enumerate([real, *draws]):
            one = each.select([row])
            height = -(place * (lanes + 1) + lane)
            for mark in range(real.mark_count):
                times = one.times[one.kinds == mark] - one.start[0]
                colour = COLOURS[mark % len(COLOURS)]
                axes.plot(times, np.full(len(times), height), "|", color=colour, alpha=1.0 if lane == 0 else 0.55,
                          markersize=7, markeredgewidth=1.6 if lane == 0 else 1.0)  # fmt: skip
        axes.axhspan(-(place * (lanes + 1)) - 0.5, -(place * (lanes + 1)) + 0.5, color=GREY, alpha=0.12, linewidth=0)
    axes.set_yticks([-(place * (lanes + 1)) for place in range(len(rows))], [_name(real, int(row)) for row in rows])
    axes.tick_params(axis="y", labelsize=7, length=0)
    axes.set_xlim(0, float((real.end - real.start).max()))
    axes.grid(False)
    axes.set_xlabel(f"time since the start ({real.unit or 'unit of the data'}); on grey what came, below it the draws")
    return _save(figure, path)


def _figure(width: float, height: float, axes: bool = True) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=90, layout="constrained")
    if not axes:
        return figure, None  # type: ignore[return-value]
    found = figure.subplots()
    _plain(found)
    return figure, found


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)


def _save(figure: Figure, path: Path) -> Path:
    """As a PNG of 64 colours, a quarter of the size: a report holds three of these for every contestant."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)
    return path
