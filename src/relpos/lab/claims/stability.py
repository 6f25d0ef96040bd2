"""The claim that normalised kernelised attention trains where the unnormalised does not, and that RPE closes the gap.

Small language models read bytes of prose. Attention is exact (softmax) or by positive random features, drawn once a
layer; q and k of the features are brought to unit length (NPRF) or not; positions are learned biases of the lag (RPE)
or absent, which leaves a causal model the order that it can infer. All take the same data in the same order and start
from the same seeds, at every one of the learning rates. The rate at which contestants are compared is each one's own,
by its loss on the validation split; what is reported is the loss on the test split.

A run counts as lost where its loss stops being a finite number, or ends above that of the byte frequencies. The step
at which it was lost is the one of the last finite loss, or the last at which the training loss, averaged over 25
steps, was below the byte frequencies.

The published rates were chosen after a first look at lower ones, 0.001 and 0.003 with one seed: no run is lost there,
and PRF and NPRF differ by 0.007 nats or less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from relpos.lab.claims.frame import PICTURES, Finding, Order, markdown_table
from relpos.lab.claims.models import CHUNK, Model, Spread, apart, settings, sizes, text_task, train

name = "stability"
title = "Normalised features train, and relative positions close the gap"
statement = (
    "Luo et al. 2021 (sections 3.2 and 4): attention by positive random features is unstable when trained from "
    "scratch, because large queries and keys blow up its variance; with q and k of unit length (NPRF) it trains, and a "
    "relative bias gives back what normalisation took away: NPRF with RPE comes up to softmax attention."
)
BARE, RPE = "nope", "learned_bias"
CONTESTANTS = {
    "softmax": BARE,
    "softmax + RPE": RPE,
    "PRF": f"{BARE}[mixer=kernelized,normalize=false]",
    "PRF + RPE": f"{RPE}[mixer=kernelized,normalize=false]",
    "NPRF": f"{BARE}[mixer=kernelized,normalize=true]",
    "NPRF + RPE": f"{RPE}[mixer=kernelized,normalize=true]",
    "ELU + 1": f"{BARE}[mixer=kernelized,features=elu1]",
}
"""Title -> contestant. Random features are `count` of the settings."""

CLOSED = 0.8
"""The share of the gap to softmax with RPE that has to be closed."""

_COMMON = {"dataset": "prose32", "path": None, "clip": 1.0}
presets: dict[str, dict[str, Any]] = {
    "quick": {
        **_COMMON, "steps": 6, "batch": 2, "rates": [3e-3], "seeds": [0], "dim": 16, "depth": 1, "heads": 2,
        "count": 8, "length": 16, "judged": 2,
    },
    "demo": {
        **_COMMON, "steps": 400, "batch": 8, "rates": [1e-2, 1e-1], "seeds": [0], "dim": 64, "depth": 2, "heads": 2,
        "count": 32, "length": 128, "judged": 32,
    },
    "results": {
        **_COMMON, "steps": 1000, "batch": 8, "rates": [1e-2, 3e-2, 1e-1], "seeds": [0, 1], "dim": 64, "depth": 2,
        "heads": 2, "count": 32, "length": 128, "judged": 48,
    },
}  # fmt: skip
"""length: bytes of context; count: random features of a head; judged: windows of eight lengths in validation and test;
clip: largest norm of a gradient; the rest as its name says."""

Cell = dict[str, Any]


def run(order: Order) -> Finding:
    """Trains what is not trained and says what came out."""
    s = order.settings
    task = text_task(s)
    models = train(order, task, settings(_labels(s).values(), s))
    baselines = {key: value["loss"] for key, value in task.baselines("test", s["length"]).items()}
    return conclude(_cells(models, s, baselines["unigram"]), s, baselines)


def _labels(s: Mapping[str, Any]) -> dict[str, str]:
    """The contestants with their number of features, where they draw any."""
    return {
        key: f"{label[:-1]},feature_count={s['count']}]" if "normalize" in label else label
        for key, label in CONTESTANTS.items()
    }


def _cells(models: Sequence[Model], s: Mapping[str, Any], unigram: float) -> dict[str, list[Cell]]:
    """Title -> one cell a run: rate, seed, test and validation loss (None: no number), step lost, rise, curve."""
    found: dict[str, list[Cell]] = {}
    for key, label in _labels(s).items():
        found[key] = []
        for model in (each for each in models if each.label == label):
            curve = averaged(model.log)
            loss = model.loss(s["length"])
            found[key].append(
                {
                    "rate": model.rate, "seed": model.seed, "loss": loss,
                    "validation": model.validation if math.isfinite(model.validation) else None,
                    "lost": lost(model.record["diverged"], loss, curve, unigram), "rise": rise(curve), "curve": curve,
                }
            )  # fmt: skip
    return found


def averaged(log: Sequence[Mapping[str, Any]]) -> list[float]:
    """Mean training losses of every `CHUNK` steps, up to the first that is not a number; a rest is a mean too."""
    losses = [line["loss"] for line in log]
    whole = losses[: losses.index(None)] if None in losses else losses
    return [float(np.mean(whole[i : i + CHUNK])) for i in range(0, len(whole), CHUNK)]


def lost(diverged: int | None, loss: float | None, curve: Sequence[float], unigram: float) -> int | None:
    """The step at which a run was lost, or None: see the module."""
    if diverged is not None:
        return diverged - 1
    if loss is not None and loss <= unigram:
        return None
    below = [index for index, value in enumerate(curve) if value < unigram]
    return (below[-1] + 1) * CHUNK if below else 0


def rise(curve: Sequence[float]) -> float:
    """How far a curve climbs above its lowest value before."""
    if not curve:
        return 0.0
    return float(np.max(np.asarray(curve) - np.minimum.accumulate(curve)))


def at_rate(cells: Sequence[Cell], rate: float) -> Spread | None:
    """Test loss over the seeds; None where a run at this rate is lost."""
    own = [cell for cell in cells if cell["rate"] == rate]
    return None if any(cell["lost"] is not None for cell in own) else Spread.of([cell["loss"] for cell in own])


def chosen(cells: Sequence[Cell]) -> float | None:
    """The rate with the lowest mean validation loss among those at which no run is lost."""
    means = {
        rate: float(np.mean([cell["validation"] for cell in cells if cell["rate"] == rate]))
        for rate in {cell["rate"] for cell in cells}
        if at_rate(cells, rate) is not None
    }
    return min(means, key=lambda rate: means[rate]) if means else None


def gap_closed(bare: float, with_rpe: float, goal: float) -> float | None:
    """(bare - with_rpe) / (bare - goal); None where the goal is not below the bare model: there is no gap."""
    return (bare - with_rpe) / (bare - goal) if bare > goal else None


def conclude(cells: dict[str, list[Cell]], s: Mapping[str, Any], baselines: Mapping[str, float]) -> Finding:
    """The finding from the numbers alone."""
    rates = {key: chosen(own) for key, own in cells.items()}
    best = {key: None if rate is None else at_rate(cells[key], rate) for key, rate in rates.items()}
    losses = {key: [cell["lost"] for cell in own if cell["lost"] is not None] for key, own in cells.items()}
    stable = not losses["NPRF"] and not losses["NPRF + RPE"]
    behind = {key: _behind(cells, best, losses, key) for key in ("PRF", "PRF + RPE")}
    goal, bare, full = best["softmax + RPE"], best["NPRF"], best["NPRF + RPE"]
    gap = None if not (goal and bare and full) else gap_closed(bare.mean, full.mean, goal.mean)
    closed = gap is not None and gap >= CLOSED
    runs = len(s["rates"]) * len(s["seeds"])
    parts = [
        f"Of {runs} runs each, NPRF lost {len(losses['NPRF'])} without and {len(losses['NPRF + RPE'])} with RPE, "
        f"unnormalised features {len(losses['PRF'])} and {len(losses['PRF + RPE'])}",
        *(f"{key} {text}" for key, text in behind.items()),
        "there was no gap to close or no run to measure it by"
        if gap is None
        else f"RPE closes {100 * gap:.0f}% of the gap of NPRF to softmax + RPE (asked for: {100 * CLOSED:.0f}%)",
    ]
    unstable = any("diverges" in text or "lags" in text for text in behind.values())
    numbers = {"cells": cells, "rates": rates, "gap_closed": gap, "behind": behind, "baselines": dict(baselines)}
    body = _body(cells, rates, best, s, baselines)
    return Finding(stable and unstable and closed, "; ".join(parts) + ".", numbers, body, {name: _picture(cells, s)})


def _behind(
    cells: dict[str, list[Cell]], best: Mapping[str, Spread | None], losses: Mapping[str, Any], key: str
) -> str:
    """How unnormalised features do beside the normalised with the same positions, in words."""
    own, other = best[key], best[f"N{key}"]
    at = sorted({cell["rate"] for cell in cells[key] if cell["lost"] is not None})
    words = [f"diverges at rate {', '.join(f'{rate:g}' for rate in at)}"] if losses[key] else []
    if own and other:
        much = f"N{key} by {abs(own.mean - other.mean):.3f} nats at the best rate of each"
        if apart(own, other):
            words.append(f"lags behind {much}")
        else:
            words.append(f"is ahead of {much}" if apart(other, own) else f"is level with N{key}")
    return " and ".join(words) or "was lost"


def _body(
    cells: dict[str, list[Cell]],
    rates: Mapping[str, float | None],
    best: Mapping[str, Spread | None],
    s: Mapping[str, Any],
    baselines: Mapping[str, float],
) -> str:
    def text(key: str, rate: float) -> str:
        found = at_rate(cells[key], rate)
        if found is not None:
            return f"**{found.text()}**" if rates[key] == rate else found.text()
        own = [cell for cell in cells[key] if cell["rate"] == rate]
        steps = ", ".join(str(cell["lost"]) for cell in own if cell["lost"] is not None)
        kept = ", ".join(f"{cell['loss']:.3f}" for cell in own if cell["lost"] is None)
        return f"lost at step {steps}" + (f" (other seeds: {kept})" if kept else "")

    heads = [f"rate {rate:g}" for rate in s["rates"]]
    rows = {key: [text(key, rate) for rate in s["rates"]] for key in cells}
    trivial = {f"*{key}*": [f"{loss:.3f}"] + [""] * (len(heads) - 1) for key, loss in baselines.items()}
    method = (__doc__ or "").split("\n\n", 1)[1].strip()
    return "\n\n".join(
        [
            f"![Training curves and test losses]({PICTURES}/{name}.png)",
            "## Nats a byte on the test text\n\n" + markdown_table("model", heads, rows | trivial),
            "Mean ± standard deviation over seeds. Bold: the rate chosen on the validation split. In italics: "
            "predictors that need no training, on the same bytes.",
            _steadiness(cells),
            f"## How it was done\n\n{method}\n\nHere: {sizes(s)}; {s['count']} random features a head.",
        ]
    )


def _steadiness(cells: Mapping[str, Sequence[Cell]]) -> str:
    """The largest rise among the runs that were not lost, in a sentence."""
    kept = [(cell["rise"], key, cell["rate"]) for key, own in cells.items() for cell in own if cell["lost"] is None]
    if not kept:
        return "Every run was lost."
    much, key, rate = max(kept)
    return (
        f"Of the runs that were not lost, the one whose training loss (mean over {CHUNK} steps) rose most above its "
        f"lowest value before is of {key} at rate {rate:g}: by {much:.2f} nats."
    )


def _picture(cells: dict[str, list[Cell]], s: Mapping[str, Any]) -> bytes:
    """Training loss at the highest rate, a line a seed; test loss against the rate, crosses where runs were lost."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    from relpos.lab.plots import STYLE, look, png

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 4.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        fastest = max(s["rates"])
        for index, (key, own) in enumerate(cells.items()):
            style = look(index)
            line = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 1.4}
            for cell in (each for each in own if each["rate"] == fastest):
                left.plot([CHUNK * (i + 1) for i in range(len(cell["curve"]))], cell["curve"], **line)
            points = [(rate, at_rate(own, rate)) for rate in s["rates"]]
            good = [(rate, found) for rate, found in points if found is not None]
            deviations = [found.deviation or 0.0 for _, found in good]
            means = [found.mean for _, found in good]
            right.errorbar([rate for rate, _ in good], means, deviations, label=key, capsize=3, **style)
            for rate in (rate for rate, found in points if found is None):
                shift = 1 + 0.03 * (index - len(cells) / 2)
                right.plot([rate * shift], [0.98], "x", color=style["color"], transform=right.get_xaxis_transform())
        left.set_xlabel("step")
        left.set_ylabel("training loss (nats a byte)")
        left.set_title(f"rate {fastest:g}, every seed", fontsize=10)
        right.set_xscale("log")
        right.xaxis.set_major_locator(FixedLocator(list(s["rates"])))
        right.xaxis.set_minor_locator(NullLocator())
        right.xaxis.set_major_formatter(ScalarFormatter())
        right.set_xlabel("peak learning rate; a cross at the top: lost")
        right.set_ylabel("test loss (nats a byte)")
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        return png(figure)
