"""The two pictures of a bench: ratio to the floor against length, and peak memory against length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, ScalarFormatter

from relpos.lab.bench.contestants import ATTENTION, CONTESTANTS, FLOOR
from relpos.lab.bench.tables import modes, problem_of
from relpos.lab.plots import GREY, STYLE, look, png

PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def pictures(results: dict[str, Any]) -> dict[str, bytes]:
    """PNG by name; only what there are numbers for."""
    found = {}
    with mpl.rc_context(STYLE):
        if any(row["skipped"] is None for row in results["timings"]):
            found["time"] = png(_time(results))
        if any(row["skipped"] is None for row in results["memory"]):
            found["memory"] = png(_memory(results))
    return found


def _time(results: dict[str, Any]) -> Figure:
    def draw(axes: Axes, own: list[dict[str, Any]], label: str, style: dict[str, Any]) -> None:
        if own[0]["contestant"] != FLOOR:
            _ratio_line(axes, own, label, style)

    figure, panels = by_mode(results, draw, "time / unbiased fused SDPA")
    for axes in panels:
        axes.axhline(1, color=GREY, linewidth=1, linestyle=":")
        axes.yaxis.set_major_locator(FixedLocator([0.8, 1, 1.25, 1.5, 2, 3, 4, 6, 8, 12]))
        axes.yaxis.set_minor_locator(NullLocator())
    return figure


Draw = Callable[[Axes, list[dict[str, Any]], str, dict[str, Any]], None]  # a contestant's rows, its title, its look


def by_mode(results: dict[str, Any], draw: Draw, ylabel: str) -> tuple[Figure, list[Axes]]:
    """A panel for each of forward, forward + backward, causal or not: something timed against the length."""
    shown = modes(results)
    columns = 2 if len(shown) > 1 else 1
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(5.4 * columns + 2.6, 3.9 * lines), layout="constrained")
    panels = np.atleast_1d(figure.subplots(lines, columns, sharey=True)).ravel()
    present = {row["contestant"] for row in results["timings"]}
    names = [name for name in CONTESTANTS if name in present]
    for axes, (backward, causal) in zip(panels, shown, strict=False):
        rows = [r for r in results["timings"] if (r["backward"], r["causal"]) == (backward, causal)]
        for index, name in enumerate(names):
            own = sorted((r for r in rows if r["contestant"] == name and r["skipped"] is None), key=lambda r: r["n"])
            if own:
                draw(axes, own, CONTESTANTS[name].title, look(index))
        mode = problem_of(rows[0], results["settings"]).mode
        axes.set_title(mode[0].upper() + mode[1:], loc="left", fontsize=10)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(PLAIN)
        lengths(axes, [r["n"] for r in rows])
    for axes in panels[::columns]:
        axes.set_ylabel(ylabel)
    for axes in panels[len(shown) :]:
        axes.remove()
    kept = list(panels[: len(shown)])
    legend(figure, kept)
    return figure, kept


def _ratio_line(axes: Axes, own: list[dict[str, Any]], label: str, style: dict[str, Any]) -> None:
    middle = [r["ratio"] for r in own]
    # The middle of a few samples may lie outside quartiles that were paired otherwise, by rounding alone.
    below = [max(0.0, r["ratio"] - r["ratio_low"]) for r in own]
    above = [max(0.0, r["ratio_high"] - r["ratio"]) for r in own]
    axes.errorbar(
        [r["n"] for r in own],
        middle,
        yerr=[below, above],
        label=label,
        capsize=2.5,
        linewidth=1.6,
        markersize=5,
        **style,
    )


def _memory(results: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    rows = [r for r in results["memory"] if r["skipped"] is None]
    shown = sorted({r["n"] for r in rows})
    for index, name in enumerate(ATTENTION):
        own = sorted((r for r in rows if r["contestant"] == name), key=lambda r: r["n"])
        if own:
            values = [max(r["peak"], 1) / 2**20 for r in own]
            axes.plot(
                [r["n"] for r in own], values, label=CONTESTANTS[name].title, linewidth=1.6, markersize=5, **look(index)
            )
    scores = [problem_of({"n": n}, results["settings"]).scores / 2**20 for n in shown]
    axes.plot(shown, scores, color=GREY, linestyle=":", linewidth=1.2, label="one tensor of h n n floats")
    axes.set_yscale("log", base=4)
    axes.yaxis.set_major_formatter(PLAIN)
    axes.set_ylabel("peak memory over the inputs, MiB")
    lengths(axes, shown)
    legend(figure, [axes])
    return figure


def lengths(axes: Axes, shown: list[int], label: str = "tokens n") -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(shown))))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)


def legend(figure: Figure, panels: list[Axes]) -> None:
    """One legend for all panels: a contestant that is missing in the first may be in the last."""
    entries = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(entries.values()), list(entries), loc="outside right center", fontsize=9)
