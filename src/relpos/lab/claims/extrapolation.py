"""The claim that stochastic positional encoding keeps a linear model's loss beyond the length it was trained at.

Small language models with kernelised attention (features of `features`, no softmax anywhere) read bytes of prose. They
differ in the encoding alone: sinusoids or learned vectors added to the input, none, stochastic encoding by sines
(SPE) with its three kinds of noise, by convolution, and ALiBi as a relative encoding without noise. Training sees one
length; the test reads the same bytes in parts of one, two, four and eight times that length, so a loss changes with
the context alone. Codes are drawn afresh at every call, in the test too. The exact form has no noise and another width
(2 sines dim, and dim for the gate, in place of the realizations).

A model keeps its loss where it is, at the longest context, at most 0.02 nats above that at the training length. Where
even the latter is not below that of the byte frequencies by more than this, the model has learned nothing to keep, and
is left out of the judgement (a rule made after the published run, whose verdict is the same without it). The claim
holds if both stochastic encodings as published keep theirs and every absolute one that has learned loses it. Sinusoids
have amplitude 1 and stand beside token embeddings that begin at 0.02.

Noise over signal is measured: the mean square of (logit - its expectation) over that of the expectation, for white
queries and keys at all pairs of one training length, as initialised and as learned, in dB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from relpos.encodings.base import Encoding
from relpos.encodings.transform.spe import SPE
from relpos.lab.checkpoint import load_checkpoint, read_json, write_json
from relpos.lab.claims.frame import PICTURES, Finding, Order, markdown_table
from relpos.lab.claims.models import Model, Spread, settings, sizes, text_task, train
from relpos.lab.measure import encodings_of
from relpos.lab.settings import Settings
from relpos.lab.train import CHECKPOINT, build

name = "extrapolation"
title = "Stochastic encoding beyond the training length"
statement = (
    "Liutkus et al. 2021 (sections 3 and 4): stochastic positional encoding gives Transformers of linear cost relative "
    "positions, and they generalise to sequences longer than those of training, where absolute encodings do not. Asked "
    "beside it: what becomes of that when its noise is made orthogonal or taken away."
)
SINES = "encoding.sines={sines},encoding.realizations={realizations}"
CONTESTANTS = {
    "sinusoidal": "sinusoidal",
    "learned": "learned",
    "none": "nope",
    "SPE, Gaussian": f"sine_spe[encoding.noise=gaussian,{SINES}]",
    "SPE, orthogonal": f"sine_spe[encoding.noise=orthogonal,{SINES}]",
    "SPE, exact": f"sine_spe[encoding.noise=exact,{SINES}]",
    "SPE by convolution": "conv_spe[encoding.kernel_size={kernel},encoding.realizations={realizations}]",
    "ALiBi": "alibi",
}
"""Title -> contestant, with settings in braces."""
ABSOLUTE = ("sinusoidal", "learned")
METHOD = ("SPE, Gaussian", "SPE by convolution")
"""Whose loss is to be kept: the encodings as published. The other noises are reported."""

KEPT = 0.02
DRAWS = 16

_COMMON = {"dataset": "prose32", "path": None, "clip": 1.0, "features": "relu"}
presets: dict[str, dict[str, Any]] = {
    "quick": {
        **_COMMON, "steps": 6, "batch": 2, "rates": [3e-3], "seeds": [0], "dim": 16, "depth": 1, "heads": 2,
        "length": 16, "judged": 2, "sines": 1, "realizations": 8, "kernel": 4,
    },
    "demo": {
        **_COMMON, "steps": 300, "batch": 8, "rates": [6e-3], "seeds": [0], "dim": 64, "depth": 2, "heads": 2,
        "length": 128, "judged": 32, "sines": 2, "realizations": 64, "kernel": 32,
    },
    "results": {
        **_COMMON, "steps": 700, "batch": 8, "rates": [6e-3], "seeds": [0, 1], "dim": 64, "depth": 2, "heads": 2,
        "length": 128, "judged": 48, "sines": 2, "realizations": 64, "kernel": 32,
    },
}  # fmt: skip
"""rates: one; length: bytes of context in training; judged: windows of eight lengths; sines, realizations, kernel: of
the stochastic encodings; clip: largest norm of a gradient; the rest as its name says."""

NOISE = "noise.json"
Noise = dict[str, float | None]


def run(order: Order) -> Finding:
    """Trains what is not trained, measures the noise and says what came out."""
    s = order.settings
    labels, task = _labels(s), text_task(s)
    lab = settings(labels.values(), s, mixer="kernelized", features=s["features"])
    models = train(order, task, lab)
    cells, noise = {}, {}
    with order.reporter.step("measuring the noise") as step:
        for done, (key, label) in enumerate(labels.items()):
            step(done, len(labels))
            own = [model for model in models if model.label == label]
            cells[key] = [_cell(model, task.multiples, s["length"]) for model in own]
            noise[key] = _noises(task, lab, own[0], s["length"])
    lengths = {multiple: multiple * s["length"] for multiple in task.multiples}
    baselines = {key: value["loss"] for key, value in task.baselines("test", s["length"]).items()}
    return conclude(cells, noise, lengths, s, baselines)


def _labels(s: Mapping[str, Any]) -> dict[str, str]:
    return {key: label.format(**s) for key, label in CONTESTANTS.items()}


def _cell(model: Model, multiples: Sequence[int], length: int) -> dict[str, Any]:
    """Seed, loss by multiple of the training length (None: no number), loss by position at the longest."""
    longest = model.record["lengths"].get(str(max(multiples) * length), {})
    losses = {str(multiple): model.loss(multiple * length) for multiple in multiples}
    return {"seed": model.seed, "losses": losses, "by_position": longest.get("by_position")}


def _noises(task: Any, lab: Settings, model: Model, length: int) -> Noise | None:
    """The noise of a model's encodings as initialised and as learned, mean over layers; None without any. Kept."""
    file = model.folder / NOISE
    if not file.exists():
        torch.manual_seed(model.seed)
        network = build(task, lab, model.label)
        found = {"initial": _mean_noise(encodings_of(network), length)}
        load_checkpoint(model.folder / CHECKPOINT, network)
        write_json(file, found | {"learned": _mean_noise(encodings_of(network), length)})
    stored: Noise = read_json(file)
    return None if stored["initial"] is None else stored


def _mean_noise(encodings: Sequence[tuple[str, Encoding]], length: int) -> float | None:
    """Noise over signal of the logits, mean over the layers' encodings."""
    found = [logit_noise(encoding, length) for _, encoding in encodings if isinstance(encoding, SPE)]
    return float(np.mean(found)) if found else None


@torch.no_grad()
def logit_noise(encoding: SPE, length: int, draws: int = DRAWS, seed: int = 0) -> float:
    """E (q'.k' - L)^2 / E L^2 over white q and k at all pairs of `length` positions, L the expectation of q'.k'."""
    generator = torch.Generator().manual_seed(seed)
    lags = encoding.template(torch.arange(1 - length, length)).double()  # (heads, dim, lags)
    at = torch.arange(length)
    template = lags[..., at[None, :] - at[:, None] + length - 1]
    noise = signal = 0.0
    positions = encoding.running(length, 0)
    for _ in range(draws):
        q, k = torch.randn(2, 1, encoding.heads, length, encoding.dim, generator=generator, dtype=torch.float64)
        codes = encoding.sample(length, generator=generator)
        expected = torch.einsum("hid,hjd,hdij->hij", q[0], k[0], template)
        got = encoding.encode_q(q, positions, codes=codes) @ encoding.encode_k(k, positions, codes=codes).mT
        noise += float((got[0] - expected).square().mean())
        signal += float(expected.square().mean())
    return noise / signal


def decibels(noise: float) -> float | None:
    """Noise over signal as 10 log10; None where there is no more than rounding."""
    return 10 * math.log10(noise) if noise > 1e-12 else None


def conclude(
    cells: dict[str, list[dict[str, Any]]],
    noise: Mapping[str, Noise | None],
    lengths: Mapping[int, int],
    s: Mapping[str, Any],
    baselines: Mapping[str, float],
) -> Finding:
    """The finding from the numbers alone."""
    first, last = min(lengths), max(lengths)
    spreads = {key: {multiple: _spread(own, multiple) for multiple in lengths} for key, own in cells.items()}
    changes = {key: _change(own, first, last) for key, own in cells.items()}
    keeps = {key: change is not None and change.mean <= KEPT for key, change in changes.items()}
    idle = [key for key in cells if _idle(spreads[key][first], baselines["unigram"])]
    rivals = [key for key in ABSOLUTE if key not in idle]
    holds = None
    if rivals and not set(METHOD) & set(idle):
        holds = all(keeps[key] for key in METHOD) and not any(keeps[key] for key in rivals)
    change_texts = [f"{key} {_signed(changes[key])}" for key in cells]
    at_home = {key: spreads[key][first] for key in cells if key.startswith("SPE, ")}
    verdict = (
        f"From {lengths[first]} to {lengths[last]} bytes of context the loss changes by (nats a byte): "
        f"{', '.join(change_texts)}. At the training length the loss is, by kind of noise: "
        f"{', '.join(f'{key} {_text(found)}' for key, found in at_home.items())}, against "
        f"{_text(spreads['none'][first])} without any encoding and {_text(spreads['ALiBi'][first])} with ALiBi."
    )
    if idle:
        verdict += f" Learned no more than byte frequencies, and so left out of the judgement: {', '.join(idle)}."
    numbers = {
        "cells": cells, "noise": dict(noise), "baselines": dict(baselines), "keeps": keeps, "idle": idle,
        "changes": {key: None if change is None else change.mean for key, change in changes.items()},
    }  # fmt: skip
    body = _body(spreads, changes, noise, lengths, s, baselines)
    return Finding(holds, verdict, numbers, body, {name: _picture(cells, spreads, lengths, s, idle)})


def _idle(found: Spread | None, unigram: float) -> bool:
    """Whether a model at its training length is no better than byte frequencies."""
    return found is None or found.mean > unigram - KEPT


def _spread(own: Sequence[Mapping[str, Any]], multiple: int) -> Spread | None:
    losses = [cell["losses"][str(multiple)] for cell in own]
    return None if None in losses else Spread.of(losses)


def _change(own: Sequence[Mapping[str, Any]], first: int, last: int) -> Spread | None:
    """Of the loss from the first to the last length, seed by seed."""
    pairs = [(cell["losses"][str(first)], cell["losses"][str(last)]) for cell in own]
    return None if any(None in pair for pair in pairs) else Spread.of([there - here for here, there in pairs])


def _text(found: Spread | None) -> str:
    return "no number" if found is None else found.text()


def _signed(found: Spread | None) -> str:
    return "no number" if found is None else found.text("+.3f").replace("± +", "± ")


def _body(
    spreads: Mapping[str, Mapping[int, Spread | None]],
    changes: Mapping[str, Spread | None],
    noise: Mapping[str, Noise | None],
    lengths: Mapping[int, int],
    s: Mapping[str, Any],
    baselines: Mapping[str, float],
) -> str:
    heads = [f"{multiple}x ({length})" for multiple, length in lengths.items()] + ["change"]
    rows = {key: [_text(found) for found in own.values()] + [_signed(changes[key])] for key, own in spreads.items()}
    trivial = {f"*{key}*": [f"{loss:.3f}"] + [""] * len(lengths) for key, loss in baselines.items()}
    noises = {
        key: [_decibel_text(found["initial"]), _decibel_text(found["learned"])]
        for key, found in noise.items()
        if found is not None
    }
    method = (__doc__ or "").split("\n\n", 1)[1].strip()
    return "\n\n".join(
        [
            f"![Loss by context length and by position]({PICTURES}/{name}.png)",
            "Dotted: the training length. What has learned nothing is not drawn.",
            "## Nats a byte on the same test bytes\n\n" + markdown_table("encoding", heads, rows | trivial),
            "Mean ± standard deviation over seeds; change: from the shortest to the longest, seed by seed. In italics: "
            "predictors that need no training, at the training length.",
            "## Noise in a logit\n\n" + markdown_table("noise over signal", ["as initialised", "as learned"], noises),
            f"White queries and keys, first seed, mean over layers and {DRAWS} draws. Above 0 dB the noise is the "
            f"larger part. {s['realizations']} realizations, {s['sines']} sines and a gate, heads of width "
            f"{s['dim'] // s['heads']}: Gaussian noise has, for white queries and keys, dim S² / (realizations mean "
            "P²) noise over signal, with P the template and S its variance at lag 0.",
            f"## How it was done\n\n{method}\n\nHere: {sizes(s)}; features {s['features']}, peak rate "
            f"{s['rates'][0]:g}, convolutions of {s['kernel']} tokens.",
        ]
    )


def _decibel_text(noise: float | None) -> str:
    found = None if noise is None else decibels(noise)
    return "none" if found is None else f"{found:+.1f} dB"


def _picture(
    cells: Mapping[str, Sequence[Mapping[str, Any]]],
    spreads: Mapping[str, Mapping[int, Spread | None]],
    lengths: Mapping[int, int],
    s: Mapping[str, Any],
    idle: Sequence[str],
) -> bytes:
    """Loss by context length, and by position inside the longest context, both with the training length marked.

    Those that have learned nothing are left out, because their loss would press the others together."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    from relpos.lab.plots import GREY, STYLE, look, png, smooth

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 4.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        for index, (key, own) in enumerate(cells.items()):
            if key in idle and len(idle) < len(cells):
                continue
            style = look(index)
            known = [(lengths[multiple], found) for multiple, found in spreads[key].items() if found is not None]
            deviations = [found.deviation or 0.0 for _, found in known]
            means = [found.mean for _, found in known]
            left.errorbar([n for n, _ in known], means, deviations, label=key, capsize=3, **style)
            curves = [cell["by_position"] for cell in own if cell["by_position"] is not None]
            if curves:
                mean = smooth(np.array(curves, dtype=np.float64).mean(0), max(1, s["length"] // 2))
                right.plot(mean, color=style["color"], linestyle=style["linestyle"], linewidth=1.4)
        left.set_xscale("log", base=2)
        left.xaxis.set_major_locator(FixedLocator(list(lengths.values())))
        left.xaxis.set_minor_locator(NullLocator())
        left.xaxis.set_major_formatter(ScalarFormatter())
        left.set_xlabel("context length at the test (bytes)")
        right.set_xlabel("position in the longest context (bytes)")
        left.set_ylabel("test loss (nats a byte)")
        for axes in (left, right):
            axes.axvline(s["length"], color=GREY, linewidth=1, linestyle=(0, (1, 2)))
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        return png(figure)
