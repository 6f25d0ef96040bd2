"""The pictures of the linear bench: time against length, and what a decoded token costs at its position."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from relpos.lab.bench.figures import PLAIN, by_mode, legend, lengths
from relpos.lab.bench.linear.goals import growth
from relpos.lab.plots import GREY, STYLE, look, png


def pictures(results: dict[str, Any]) -> dict[str, bytes]:
    """PNG by name; only what there are numbers for."""
    found = {}
    with mpl.rc_context(STYLE):
        if any(row["skipped"] is None for row in results["timings"]):
            found["linear"] = png(by_mode(results, _line, "time, ms")[0])
        if any(row["skipped"] is None for row in results["decode"]):
            found["decoding"] = png(_decoding(results))
    return found


def _line(axes: Axes, own: list[dict[str, Any]], label: str, style: dict[str, Any]) -> None:
    axes.plot(
        [r["n"] for r in own], [1e3 * r["seconds"] for r in own], label=label, linewidth=1.6, markersize=5, **style
    )


def _decoding(results: dict[str, Any]) -> Figure:
    """Left: milliseconds a token. Right: the whole time, where every token was timed, beside n log^2 n."""
    figure = Figure(figsize=(12.4, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [r for r in results["decode"] if r["skipped"] is None]
    for index, row in enumerate(rows):
        steps, style = row["steps"], {**look(index), "linewidth": 1.6, "markersize": 5}
        places = [s["cache"] for s in steps]
        left.plot(places, [1e3 * s["seconds"] for s in steps], label=row["title"], **style)
        if "total" in steps[-1]:
            right.plot(places, [s["total"] for s in steps], label=row["title"], **style)
            unit = steps[-1]["total"] / growth(places[-1])
            guide = [unit * growth(n) for n in places]
            right.plot(places, guide, color=GREY, linestyle=":", label="in proportion to n log² n")
    places = [s["cache"] for s in rows[0]["steps"]]
    for axes, label in ((left, "time a token, ms"), (right, "time of all tokens so far, s")):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(PLAIN)
        axes.set_ylabel(label)
        lengths(axes, places, "position")
    legend(figure, [left, right])
    return figure
