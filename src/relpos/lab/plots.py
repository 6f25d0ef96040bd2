"""The figures of a report. One colour, dash and marker for one encoding everywhere; safe for colour-blind eyes."""

from __future__ import annotations

import base64
import io
import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator, ScalarFormatter
from matplotlib.transforms import blended_transform_factory

from relpos.lab.results import Learned, Results, position_curve
from relpos.tasks import Metric

# Okabe and Ito's palette without its yellow, which is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#6b7280"

STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": "#374151",
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "relpos",
}


def look(index: int) -> dict[str, Any]:
    """Colour, dash and marker of the index-th encoding; they repeat jointly only after 28."""
    turn = index // len(COLOURS)
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[turn % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Centred moving mean over at most `width` entries that leaves NaN out and never reaches beyond the ends."""
    half = max(0, width // 2)
    padded = np.concatenate([np.full(half, np.nan), np.asarray(values, dtype=np.float64), np.full(half, np.nan)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    count = np.isfinite(windows).sum(-1)
    return np.where(count > 0, np.nansum(windows, -1) / np.maximum(count, 1), np.nan)


def by_length(results: Results, metric: Metric) -> Figure:
    """A metric against the length, which is on a logarithmic scale, as is a loss; bars: spread over seeds."""
    figure, axes = _figure(6.0, 4.6)
    lowest = np.inf
    for index, row in enumerate(results.rows):
        values = row.values[metric.name]
        points = [(n, values[n], values[n].mean) for n in results.lengths]
        known = [(n, value, mean) for n, value, mean in points if mean is not None]
        if not known:
            continue
        axes.errorbar(
            [n for n, _, _ in known],
            [metric.scale * mean for _, _, mean in known],
            yerr=[metric.scale * (value.spread or 0.0) for _, value, _ in known],
            label=row.encoding,
            gid=row.encoding,
            capsize=3,
            linewidth=1.8,
            markersize=5,
            **look(index),
        )
        lowest = min(lowest, *(mean for _, _, mean in known))
    _baseline(axes, results, metric, results.opening)
    if results.lengths[0] < results.train_length:  # else it is where the lines begin
        axes.axvline(results.train_length, color=GREY, linewidth=1, linestyle=":", label=results.measure.trained)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(results.lengths)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    if not metric.higher_is_better and 0 < lowest < np.inf:
        axes.set_yscale("log")
        _plain_log_ticks(axes)
    axes.set_xlabel(f"{results.measure.noun} at evaluation ({results.measure.unit})")
    axes.set_ylabel(textwrap.fill(_label(metric, "test "), 30))  # a line as long as the axis is high
    _legend(figure, axes)
    return figure


def by_contestant(results: Results, metric: Metric) -> Figure:
    """A metric at the one length there is: a line of the page a contestant, a dot a seed, a bar across at the mean."""
    figure, axes = _figure(6.0, 1.3 + 0.36 * len(results.rows))
    right = blended_transform_factory(axes.transAxes, axes.transData)
    for index, row in enumerate(results.rows):
        value = row.values[metric.name][results.train_length]
        if value.mean is None:
            why = value.refused or ""
            axes.text(0.02, index, why, transform=right, va="center", color=GREY, fontsize=8, clip_on=True)
            continue
        mean, style = metric.scale * value.mean, look(index)
        across = [index - 0.3, index + 0.3]
        axes.plot([mean, mean], across, color=style["color"], linewidth=2.5, gid=row.encoding)
        dots = [metric.scale * each for each in value.seeds]
        axes.plot(dots, [index] * len(dots), marker=style["marker"], linestyle="none", markersize=7, alpha=0.55,
                  color=style["color"], markeredgewidth=0, gid=row.encoding)  # fmt: skip
        axes.text(1.02, index, metric.text(value.mean), transform=right, va="center", fontsize=9, color=style["color"])
    _baseline(axes, results, metric, results.train_length, upright=True)
    axes.set_yticks(range(len(results.rows)), [row.encoding for row in results.rows])
    axes.set_ylim(len(results.rows) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(_label(metric, "test "))
    _legend(figure, axes)
    return figure


def training_curves(results: Results) -> Figure:
    """Smoothed training loss (line, mean over seeds) and validation loss (markers) against the step."""
    figure, axes = _figure(6.0, 4.6)
    lowest, highest = np.inf, 0.0
    for index, row in enumerate(results.rows):
        style = look(index)
        shortest = min((len(log) for log in row.logs), default=0)
        if not shortest or row.diverged:
            continue
        losses = np.array([[np.nan if e["loss"] is None else e["loss"] for e in log[:shortest]] for log in row.logs])
        steps = np.array([entry["step"] for entry in row.logs[0][:shortest]])
        curve = smooth(losses.mean(0), max(1, shortest // 30))
        own: dict[str, Any] = {"color": style["color"], "gid": row.encoding}
        axes.plot(steps, curve, linestyle=style["linestyle"], label=row.encoding, linewidth=1.5, **own)
        checks = [[e["validation"] for e in log if e.get("validation") is not None] for log in row.logs]
        at = [e["step"] for e in row.logs[0] if e.get("validation") is not None]
        common = min(len(each) for each in checks)
        means = np.array([each[:common] for each in checks]).mean(0)
        axes.plot(at[:common], means, marker=style["marker"], linestyle="none", markersize=5, **own)
        lowest = min(lowest, np.nanmin(curve), means.min(initial=np.inf))
        highest = max(highest, np.nanquantile(curve, 0.98))
    _baseline(axes, results, results.loss, results.train_length)
    if np.isfinite(lowest):
        axes.set_ylim(0.97 * lowest, 1.02 * highest)
    axes.set_xlabel("training step")
    axes.set_ylabel(_label(results.loss))
    _legend(figure, axes)
    return figure


def loss_by_position(results: Results) -> Figure | None:
    """Smoothed loss against the position in the longest context, the training length marked; None without positions."""
    curves = [(index, row, position_curve(row)) for index, row in enumerate(results.rows)]
    known = [(index, row, curve) for index, row, curve in curves if curve is not None]
    if not known:
        return None
    figure, axes = _figure(11.0, 4.2)
    drawn = []
    for index, row, curve in known:
        style = look(index)
        smoothed = smooth(curve, max(1, results.train_length // 2))
        drawn.append(smoothed)
        axes.plot(
            np.arange(1, len(curve) + 1),
            smoothed,
            color=style["color"],
            linestyle=style["linestyle"],
            label=row.encoding,
            gid=row.encoding,
            linewidth=1.5,
        )
    axes.axvline(results.train_length, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        " training length",
        (results.train_length, 1.0),
        xycoords=("data", "axes fraction"),
        va="top",
        color=GREY,
        fontsize=9,
    )
    if np.nanmax(np.concatenate(drawn)) > 3 * np.nanmin(np.concatenate(drawn)):
        axes.set_yscale("log")
        _plain_log_ticks(axes)
    axes.set_xlabel("position in the context (tokens before the predicted one)")
    axes.set_ylabel(_label(results.loss, "test "))
    _legend(figure, axes)
    return figure


def lag_heatmap(pictures: list[Learned]) -> Figure | None:
    """Lag against head, layers one above the other; None when there is nothing but zeros to show."""
    values = np.concatenate([picture.values for picture in pictures])
    largest = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0
    if largest < 1e-9:
        return None
    lags = pictures[0].lags
    height = 0.9 + 0.16 * len(values)
    figure, axes = _figure(5.2, min(max(height, 1.8), 5.0))
    # Strong entries are few (far lags of a steep slope): the scale ends at the 98th percentile so that others show.
    limit = float(np.nanquantile(np.abs(values), 0.98)) or largest
    image = axes.imshow(
        values,
        aspect="auto",
        cmap="PuOr_r",
        vmin=-limit,
        vmax=limit,
        interpolation="nearest",
        extent=(lags[0] - 0.5, lags[-1] + 0.5, len(values), 0),
    )
    axes.grid(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    edge, ticks = 0, []
    for picture in pictures:
        ticks.append((edge + len(picture.values) / 2, picture.name))
        edge += len(picture.values)
        if edge < len(values):
            axes.axhline(edge, color="#374151", linewidth=0.8)
    axes.set_yticks([at for at, _ in ticks], [name if len(ticks) > 1 else "heads" for _, name in ticks], fontsize=8)
    axes.set_xlabel("lag = key position - query position (tokens)")
    bar = figure.colorbar(
        image, ax=axes, fraction=0.05, pad=0.02, extend="both" if largest > limit * 1.001 else "neither"
    )
    bar.set_label("logit change (nats)", fontsize=8)
    return figure


def lag_lines(title: str, lags: np.ndarray, mean: np.ndarray, spread: np.ndarray, note: str) -> Figure:
    """One line a head against the lag, with a band of the spread over contents."""
    figure, axes = _figure(7.2, 4.6)
    for head, (line, width) in enumerate(zip(mean, spread, strict=True)):
        style = look(head)
        axes.plot(
            lags, line, color=style["color"], linestyle=style["linestyle"], linewidth=1.5, label=f"head {head + 1}"
        )
        if np.nanmax(np.abs(width), initial=0.0) > 0:
            axes.fill_between(lags, line - width, line + width, color=style["color"], alpha=0.1, linewidth=0)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(f"lag = key position - query position (tokens)\n{note}")
    axes.set_ylabel("change of the attention logit (nats)")
    _legend(figure, axes)
    return figure


def png(figure: Figure, dots: int = 160) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots)
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure as SVG with the letters drawn, so it needs no font; no date in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def data_uri(data: bytes, kind: str) -> str:
    """`data` as a URI that a self-contained page can hold; kind is a MIME type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    import matplotlib as mpl

    mpl.rcParams.update(STYLE)
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _label(metric: Metric, before: str = "") -> str:
    return f"{before}{metric.title}" + (f" ({metric.unit})" if metric.unit else "")


def _baseline(axes: Axes, results: Results, metric: Metric, length: int, upright: bool = False) -> None:
    """The strongest trivial predictor as a dashed line."""
    best = results.best_baseline(metric, length)
    if best is not None:
        line = axes.axvline if upright else axes.axhline
        at, label = metric.scale * best[1], f"baseline: {best[0]}"
        line(at, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label=label)


def _plain_log_ticks(axes: Axes) -> None:
    """Numbers as 1.2 and 3, not as powers of ten."""
    formatter = ScalarFormatter()
    formatter.set_scientific(False)
    axes.yaxis.set_major_formatter(formatter)
    low, high = axes.get_ylim()
    if high / low < 10:
        axes.yaxis.set_major_locator(FixedLocator(_nice_ticks(low, high)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(low, high)


def _nice_ticks(low: float, high: float) -> list[float]:
    """About six round numbers between low and high."""
    step = next((s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if (high - low) / s <= 7), 10.0)
    return [round(step * k, 4) for k in range(int(np.ceil(low / step)), int(high / step) + 1)]


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the axes, in the order of the encodings, baselines last."""
    handles, labels = axes.get_legend_handles_labels()
    pairs = sorted(zip(handles, labels, strict=True), key=lambda pair: pair[1].startswith("baseline"))
    if pairs:
        inches = max(1.4, 0.75 + 0.075 * max(len(label) for label in labels))  # of a label and its line, about
        columns = max(1, int(figure.get_figwidth() / inches))
        figure.legend(*zip(*pairs, strict=True), loc="outside lower center", ncols=columns, fontsize=9)
