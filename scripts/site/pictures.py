"""What each encoding does, drawn: by lag on a line, by place on a grid, by pair where tokens carry labels or times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from relpos import attention
from relpos.encodings.base import Absolute, Encoding
from relpos.lab import plots
from relpos.lab.lags import lag_picture
from relpos.lab.show import build
from relpos.positions import Grid, Index, Times, as_positions

HEADS, DIM, REACH, SIDE = 4, 32, 48, 13
WINDOWS = ("swin", "lrpe", "gqpe", "log_cpb", "decomposed_2d")
LABELS = {"tempo": [0] * 24, "section": [0] * 8 + [1] * 8 + [0] * 8, "chord": [0, 0, 1, 1, 2, 2, 0, 0] * 3,
          "melody": [0, 1, 2, 3, 4, 3, 2, 1] * 3}  # fmt: skip


def picture(name: str) -> tuple[bytes, str]:
    """SVG of an encoding and the sentence that goes under it."""
    torch.manual_seed(0)
    with torch.no_grad():
        encoding = _made(name)
        if _takes(encoding, Index, Times):
            return _line(name, encoding)
        return _map(name, encoding) if _takes(encoding, Grid) else _pairs(name, encoding)


def _made(name: str) -> Encoding:
    options: dict[str, object] = {"window": (SIDE, SIDE)} if name in WINDOWS else {}
    return build(name, HEADS, DIM, False, REACH, options)


def _takes(encoding: Encoding, *kinds: type) -> bool:
    return any(isinstance(taken, type) and issubclass(kind, taken) for taken in encoding.takes for kind in kinds)


def _stirred(encoding: Encoding) -> str:
    """Draws parameters that all start at zero, so that there is something to see, and says so."""
    moved = [p for p in encoding.parameters() if not bool(p.any())]
    for parameter in moved:
        parameter.normal_(0, 0.5)
    return " Parameters that start at zero were drawn at random." if moved else ""


def _line(name: str, encoding: Encoding) -> tuple[bytes, str]:
    said = _stirred(encoding)
    found = lag_picture(encoding, HEADS, DIM, REACH, draws=24)
    note = "the bias itself" if found.exact else "mean and spread over random unit content, zero at lag 0"
    figure = plots.lag_lines(f"{name}, as initialised", found.lags, found.mean, found.spread, note)
    said = f"head by head, as `relpos show {name}` draws it: {note}.{said}"
    return plots.svg(figure), f"Change of the attention logit by lag, {said}"


def _map(name: str, encoding: Encoding) -> tuple[bytes, str]:
    said = _stirred(encoding)
    cells = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"), -1).flatten(0, 1)
    middle = SIDE * SIDE // 2
    logits = _logits(encoding, Grid(cells), slice(middle, middle + 1))[:, 0].unflatten(-1, (SIDE, SIDE))
    figure = _heat(name, logits - logits[:, SIDE // 2, SIDE // 2, None, None], "column of the key", "row of the key")
    return plots.svg(
        figure
    ), f"Change of the logit of the middle cell's query by the key's cell, head by head, in nats.{said}"


def _pairs(name: str, encoding: Encoding) -> tuple[bytes, str]:
    said = _stirred(encoding)
    count = len(LABELS["tempo"])
    named: dict[str, Tensor] = {key: torch.tensor(value) for key, value in LABELS.items()}
    named["index"], named["time"] = torch.arange(count), 600.0 * torch.arange(count).double() ** 1.3
    logits = _logits(encoding, encoding.select(named) if isinstance(encoding, Absolute) else named, slice(0, count))
    figure = _heat(name, logits - logits.mean(-1, keepdim=True), "key", "query")
    text = "Logits of 24 tokens of equal content, less the mean of the row, in nats. Sections run A B A, 8 tokens each"
    return plots.svg(figure), f"{text}, chords change every two, times lie ever further apart.{said}"


def _logits(encoding: Encoding, positions: Any, queries: slice) -> Tensor:
    """(heads, queries, keys): logarithm of the weights for equal unit content, averaged over draws of it."""
    quiet = encoding.eval().double()
    count = len(next(iter(positions.values()))) if isinstance(positions, Mapping) else len(positions)
    rows = []
    for seed in range(8):
        drawn = torch.randn(1, HEADS, 1, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        same = nn.functional.normalize(drawn, dim=-1).expand(1, HEADS, count, DIM)
        if isinstance(quiet, Absolute):
            rows.append(_added(quiet, same, positions))
        else:
            rows.append(_weights(quiet, same, positions, queries, count).clamp_min(1e-300).log()[0])
    return torch.stack(rows).mean(0)


def _added(encoding: Absolute, same: Tensor, positions: Mapping[str, Tensor]) -> Tensor:
    """(heads, keys, keys): the products of an input that carries the codes of its labels."""
    x = same.transpose(1, 2).flatten(2)
    where = {name: as_positions(each, len(each), 0, name, x.device) for name, each in positions.items()}
    heads = encoding.add(x, where).unflatten(-1, (HEADS, DIM)).transpose(1, 2)  # type: ignore[arg-type]
    return (heads @ heads.transpose(-1, -2)).log_softmax(-1)[0]


def _weights(encoding: Encoding, same: Tensor, positions: Any, queries: slice, count: int) -> Tensor:
    """The weights of attention, read through one-hot values as many at a time as a head is wide."""
    if isinstance(positions, Mapping):
        asked: Any = {key: value[queries] for key, value in positions.items()}
    else:
        asked = Grid(positions.values[..., queries, :])
    zero, parts = torch.zeros_like(same), []
    options = {"q_pos": asked, "k_pos": positions, "scale": 1.0}
    added = attention(same[:, :, queries], same, zero, encoding, **options)
    for start in range(0, count, DIM):
        values, stop = zero.clone(), min(start + DIM, count)
        values[:, :, torch.arange(start, stop), torch.arange(stop - start)] = 1.0
        out = attention(same[:, :, queries], same, values, encoding, **options)
        parts.append((out - added)[..., : stop - start])
    return torch.cat(parts, -1)


def _heat(name: str, values: Tensor, x: str, y: str) -> Figure:
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    top = max(float(values.abs().max()), 1e-6)
    for head, (axes, one) in enumerate(zip(figure.subplots(1, HEADS), values.numpy(), strict=True)):
        drawn = axes.imshow(np.asarray(one), cmap="RdBu_r", vmin=-top, vmax=top)
        axes.set_title(f"head {head + 1}", fontsize=9)
        axes.set_xlabel(x, fontsize=8)
        axes.tick_params(labelsize=7)
        if head == 0:
            axes.set_ylabel(y, fontsize=8)
    figure.colorbar(drawn, ax=figure.axes, shrink=0.8).ax.tick_params(labelsize=7)
    figure.suptitle(f"{name}, as initialised", fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure
