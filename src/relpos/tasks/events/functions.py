"""What the channels of a trained network have learned: functions of elapsed time, of distance, of the place in line.

A scalar bias is drawn as it is, in nats, a line a head. A table of vectors has no one number for a feature: without
data its length is drawn; with data, which is ``run``, what the keys' vectors add to the score, averaged over the
queries that the network then asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relpos.encodings.content.relative_channels import RelativeChannels
from relpos.encodings.pairs.channel import Channel
from relpos.encodings.pairs.encoders import Decay, Edges, Linear, LogBuckets, Sparse
from relpos.tasks.base import Artifact

UNITS = {"index": "events back", "time": "seconds", "place": "km", "profile": "1 - cosine", "key": "place in line"}
NAMES = {"index": "position", "time": "elapsed time", "place": "distance", "profile": "profile", "key": "place"}
_POINTS = 600
_MOST_HEADS = 8


@dataclass(frozen=True)
class Curve:
    """values (heads or 1, points) against x (points,), the size of the feature; both finite.

    layer    of the network, counted from 1
    feature  as in `RelativeChannels`
    what     "bias", "gate", "score" (of key vectors, mean over queries), "key" or "value" (lengths of vectors)
    """

    layer: int
    feature: str
    what: str
    x: np.ndarray
    values: np.ndarray


@torch.no_grad()
def curves(
    model: nn.Module, reach: Mapping[str, float] | None = None, run: Callable[[], object] | None = None
) -> list[Curve]:
    """The functions of every `RelativeChannels` among the parts of a model; [] where it has none.

    reach: by feature, how far to look; as far as the tables go where it says nothing.
    run: calls the model on some data.
    """
    found = []
    encodings = [part for part in model.modules() if isinstance(part, RelativeChannels)]
    queries = _queries(encodings, run) if run is not None else [None] * len(encodings)
    for layer, (encoding, query) in enumerate(zip(encodings, queries, strict=True), start=1):
        for channel in encoding.channels:
            assert isinstance(channel, Channel)
            if not channel.rotates:
                x = _points(channel, (reach or {}).get(channel.kind))
                for what, values in _values(channel, x, query, encoding.scale):
                    found.append(Curve(layer, channel.kind, what, x.numpy(), values.double().cpu().numpy()))
    return found


def _points(channel: Channel, reach: float | None) -> Tensor:
    """Sizes of the feature, float64 (points,)."""
    encoder = channel.encoder
    if channel.kind == "mark":
        return torch.tensor([0.0, 1.0], dtype=torch.float64)
    end = _end(encoder) if reach is None else float(reach)
    if channel.kind in ("index", "key"):
        return torch.arange(max(min(math.ceil(end), 10 * _POINTS), 1) + (reach is not None), dtype=torch.float64)
    if channel.kind == "profile":
        end = min(end, 2.0)
    if isinstance(encoder, LogBuckets) and reach is None:
        return torch.logspace(math.log10(encoder.unit), math.log10(end), _POINTS, dtype=torch.float64)
    return torch.linspace(0, end, _POINTS, dtype=torch.float64)


def _end(encoder: Any) -> float:
    """The size from which on nothing changes any more, or hardly."""
    if isinstance(encoder, Edges):
        return 1.1 * encoder.edges[-1]
    if isinstance(encoder, LogBuckets):
        return float(encoder.unit * math.exp(min(encoder.width * (encoder.reach + 1), 60.0)))
    if isinstance(encoder, Sparse):
        return float(getattr(encoder, "unit", 1.0)) * (encoder.reach + 1)
    scales = encoder.current(encoder.log_scales, torch.zeros(1))
    if isinstance(encoder, Linear):
        return float(encoder.start + scales[0] * (encoder.clip + 1))
    return float(scales.max()) * (3 if isinstance(encoder, Decay) else 1)  # of sinusoids one period


def _values(channel: Channel, x: Tensor, query: Tensor | None, scale: float | None) -> Iterator[tuple[str, Tensor]]:
    """(what, (heads or 1, points)) of each place that the channel enters at."""
    for what in ("bias", "gate"):
        numbers = getattr(channel, what)
        if numbers is not None:
            yield what, _at(channel, numbers, x)
    for what, table in (("key", channel.keys), ("value", channel.values)):
        if table is None:
            continue
        vectors = _at(channel, table.T, x)  # (dim, points)
        if what == "key" and query is not None:
            heads, width = query.shape
            own = vectors.view(-1, width, len(x)).expand(heads, -1, -1)
            yield "score", torch.einsum("hd,hdx->hx", query, own) * (width**-0.5 if scale is None else scale)
        else:
            yield what, vectors.norm(dim=0, keepdim=True)


def _at(channel: Channel, table: Tensor, x: Tensor) -> Tensor:
    """The function of each row of table (.., rows) at the sizes x, before the query where the sign counts."""
    encoder, table = channel.encoder, table.detach().double().cpu()
    signed = -x if encoder.signed else x
    if isinstance(encoder, Sparse):
        one = torch.ones(1, dtype=torch.float64) if encoder.personal else None
        return table[:, encoder.code(signed.round().long() if channel.kind in ("index", "key") else signed, one)]
    spread: Tensor = encoder.spread(table[None, :, None], signed[None, None], getattr(encoder, "log_scales", None))  # type: ignore[operator]
    return spread[0, :, 0]


def _queries(encodings: list[RelativeChannels], run: Callable[[], object]) -> list[Tensor | None]:
    """The mean query (heads, width) of each encoding while ``run`` runs; None of one that was not asked."""
    with ExitStack() as stack:
        heard: list[list[Tensor]] = [stack.enter_context(_heard(each)) for each in encodings]
        run()
    return [torch.stack(each).mean(0) if each else None for each in heard]


@contextmanager
def _heard(encoding: RelativeChannels) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []
    prepare = encoding.prepare

    def listening(q: Tensor, *arguments: Any, **options: Any) -> Any:
        found.append(q.detach().double().mean((0, 2)).cpu())
        return prepare(q, *arguments, **options)

    encoding.__dict__["prepare"] = listening
    try:
        yield found
    finally:
        del encoding.__dict__["prepare"]


LABELS = {
    "bias": "bias (nats)",
    "gate": "gate (factor)",
    "score": "mean score (nats)",
    "key": "length of key vector",
    "value": "length of value vector",
}


def draw(
    found: list[Curve], path: Path, units: Mapping[str, str] | None = None, lines: Mapping[str, float] | None = None
) -> Path:
    """A PNG: a row a layer, a column a function, a line a head; ``lines`` marks one size of a feature, dashed."""
    from matplotlib.figure import Figure

    named = {**UNITS, **(units or {})}
    columns = list(dict.fromkeys((each.feature, each.what) for each in found))
    layers = sorted({each.layer for each in found})
    size = (0.6 + 2.9 * len(columns), 0.4 + 2.2 * len(layers))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = figure.subplots(len(layers), len(columns), squeeze=False)
    for axes in panels.flat:
        axes.set_visible(False)
    for each in found:
        axes = panels[layers.index(each.layer)][columns.index((each.feature, each.what))]
        axes.set_visible(True)
        _panel(axes, each, named.get(each.feature, ""), (lines or {}).get(each.feature))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _panel(axes: Any, curve: Curve, unit: str, line: float | None) -> None:
    for head, values in enumerate(curve.values[:_MOST_HEADS], start=1):
        marker = "o" if len(curve.x) < 3 else None
        axes.plot(curve.x, values, linewidth=1.2, marker=marker, label=f"head {head}")
    if line is not None:
        axes.axvline(line, color="black", linestyle="--", linewidth=0.8)
        place = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
        axes.annotate(f"{line:g} {unit}", (line, 0), (3, 4), fontsize=7, **place)
    if len(curve.x) > 2 and curve.x[0] > 0:
        axes.set_xscale("log")
    axes.set_title(f"layer {curve.layer}", fontsize=8)
    axes.set_xlabel(NAMES.get(curve.feature, curve.feature) + (f" ({unit})" if unit else ""), fontsize=8)
    axes.set_ylabel(LABELS[curve.what], fontsize=8)
    axes.tick_params(labelsize=7)
    if len(curve.values) > 1:
        axes.legend(fontsize=6, frameon=False)


def functions(
    model: nn.Module,
    directory: Path,
    units: Mapping[str, str] | None = None,
    *,
    lines: Mapping[str, float] | None = None,
    reach: Mapping[str, float] | None = None,
    run: Callable[[], object] | None = None,
) -> list[Artifact]:
    """The picture of what a trained model's channels have learned, as a file of a report; [] where it has none.

    units  by feature, such as {"time": "hours"}: what its axis counts
    lines  by feature, a size to mark, such as {"time": 5.0}
    reach  by feature, how far to draw; else as far as the tables go
    run    calls the model on some data: tables of key vectors are then drawn as what they add to the score
    """
    found = curves(model, reach, run)
    if not found:
        return []
    what = ", ".join(dict.fromkeys(LABELS[each.what].split(" (")[0] for each in found))
    title = f"what the channels have learned: {what}, a row a layer"
    return [Artifact(draw(found, Path(directory) / "functions.png", units, lines), "image", title)]
