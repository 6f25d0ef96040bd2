"""A figure's numbers, for a page that draws it again: to point at a line and read it, to enlarge a part of it.

What is drawn has one source, the figure: a page shows its picture, and where scripts run, a chart of the same numbers.
Lines that belong to a contestant carry its name as their gid (`line.set_gid`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

POINTS = 500  # of one line: more than a screen has columns for it


def chart(figure: Figure) -> dict[str, Any] | None:
    """The first axes of a figure as JSON: scales, lines, rules across. None where there is no line."""
    axes = figure.axes[0]
    spreads = {each.lines[0]: _spread(each) for each in axes.containers if isinstance(each, ErrorbarContainer)}
    parts = {part for each in axes.containers if isinstance(each, ErrorbarContainer) for part in each.lines[1]}
    own = [line for line in axes.get_lines() if line not in parts]
    lines = [_line(each, spreads.get(each)) for each in own if each.get_transform() == axes.transData]
    if not any(each["points"] for each in lines):
        return None
    return {
        "x": _scale(axes, "x"),
        "y": _scale(axes, "y"),
        "lines": lines,
        "rules": [_rule(each) for each in own if each.get_transform() != axes.transData],
    }


def _scale(axes: Axes, name: str) -> dict[str, Any]:
    axis = getattr(axes, f"{name}axis")
    low, high = axis.get_view_interval()
    ticks: list[Any] = []
    if isinstance(axis.get_major_locator(), FixedLocator):
        axis.figure.canvas.draw()  # labels are written when they are drawn
        ticks = [[_plain(at), text.get_text()] for at, text in zip(axis.get_majorticklocs(), axis.get_ticklabels())]
    label = axis.get_label_text().split("\n")[0]
    return {"label": label, "log": axis.get_scale() == "log", "from": _plain(low), "to": _plain(high), "ticks": ticks}


def _line(line: Line2D, spread: np.ndarray | None) -> dict[str, Any]:
    points = np.column_stack([np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)])
    if spread is not None and len(spread) == len(points):
        points = np.column_stack([points, spread])
    if len(points) > POINTS:
        points = points[np.unique(np.linspace(0, len(points) - 1, POINTS).round().astype(int))]
    label = str(line.get_label())
    return {
        "of": line.get_gid(),
        "label": "" if label.startswith("_") else label,
        "colour": str(line.get_color()),
        "dash": {"-": "", "--": "6 4", "-.": "7 3 2 3", ":": "2 3"}.get(str(line.get_linestyle())),
        "dots": str(line.get_marker()) not in ("None", "", " "),
        "points": [[_plain(each) for each in point] for point in points.tolist()],
    }


def _spread(bars: ErrorbarContainer) -> np.ndarray:
    """Half the length of each bar."""
    segments = bars.lines[2][0].get_segments()
    return np.array([abs(segment[-1][1] - segment[0][1]) / 2 if len(segment) else np.nan for segment in segments])


def _rule(line: Line2D) -> dict[str, Any]:
    x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
    across = bool(y[0] == y[-1])
    label = str(line.get_label())
    return {"across": across, "at": _plain(y[0] if across else x[0]), "label": "" if label.startswith("_") else label}


def _plain(number: float) -> float | None:
    """Five digits: what a pixel can show. None for what JSON has no word for."""
    return float(f"{number:.5g}") if math.isfinite(number) else None
