"""What the encodings of a network for pictures have learned: a map a layer and group, for the query in the middle.

In a gate (PoSGU, SGU) the weights are what mixes the cells, so they are drawn as they are. In attention a bias is drawn
as it is, in nats; any other form is measured from outside: the change of the logit of every cell against the query's
own, with one random unit vector as content of all cells, averaged over draws. Nothing here knows an encoding by name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relpos.encodings.base import Absolute, Bias, Encoding
from relpos.mixers.functional import attention
from relpos.mixers.gating import SGU, PoSGU
from relpos.positions import Grid, Index
from relpos.tasks.base import Artifact

MOST_GROUPS = 8  # drawn of a layer
MOST_LAYERS = 12
_DRAWS = 64


@dataclass(frozen=True)
class Map:
    """values (groups, height, width): what the query in the middle does with every cell; kind as in `caption`."""

    layer: str
    values: np.ndarray
    kind: str


@torch.no_grad()
def of(model: nn.Module) -> list[Map]:
    """The maps of every layer that has some; [] for a network whose encoding leaves every cell alone."""
    found = [*_gates(model), *_attention(model)]
    return [each for each in found if np.isfinite(each.values).any() and np.ptp(each.values) > 1e-9]


def _gates(model: nn.Module) -> Iterator[Map]:
    gates = [part for part in model.modules() if isinstance(part, PoSGU | SGU) and len(part.window) == 2]
    for index, gate in enumerate(gates, start=1):
        height, width = gate.window
        middle = height // 2 * width + width // 2
        if isinstance(gate, SGU):
            weights = gate.weight[middle : middle + 1]
        else:
            cells = Grid.of(height, width)
            query = Grid(cells.values[:, middle : middle + 1])
            weights = copy.deepcopy(gate.encoding).cpu().double().bias(query, cells)[:, 0]
            weights = weights.softmax(-1) if gate.encoding.normalized else weights
        yield Map(f"layer {index}", weights.reshape(-1, height, width).float().cpu().numpy(), "weight")


def _attention(model: nn.Module) -> Iterator[Map]:
    listed, grid = getattr(model, "encodings", None), getattr(model, "grid", None)
    if not callable(listed) or not isinstance(grid, tuple):
        return
    counts = [getattr(part, "heads", None) for part in model.modules()]
    heads = next((count for count in counts if isinstance(count, int)), 1)
    dim = getattr(model, "dim", heads)
    width = dim // heads if isinstance(dim, int) else 1
    for name, encoding in listed():
        if isinstance(encoding, Encoding) and not isinstance(encoding, Absolute):
            quiet = copy.deepcopy(encoding).eval().cpu().double()
            values, kind = _middle(quiet, grid, heads, width)
            yield Map(name, values.float().numpy(), kind)


def _middle(encoding: Encoding, grid: tuple[int, int], heads: int, dim: int) -> tuple[Tensor, str]:
    height, width = grid
    cells: Grid | Index = Grid.of(height, width)
    middle = height // 2 * width + width // 2
    if not any(isinstance(kind, type) and issubclass(Grid, kind) for kind in encoding.takes):
        cells = Index.arange(height * width)
    query = type(cells)(cells.values[:, middle : middle + 1])
    if isinstance(encoding, Bias):
        return encoding.bias(query, cells)[:, 0].reshape(-1, height, width), "bias"
    change = _measured(encoding, query, cells, heads, dim)
    return (change - change[..., middle : middle + 1]).mean(0).reshape(-1, height, width), "change"


def _measured(encoding: Encoding, query: Grid | Index, cells: Grid | Index, heads: int, dim: int) -> Tensor:
    """(draws, heads, cells): log probabilities, which are logits up to a constant; values are one-hot."""
    generator = torch.Generator().manual_seed(0)
    count = len(cells)
    unit = torch.randn(_DRAWS, heads, 1, dim, generator=generator, dtype=torch.float64)
    unit = nn.functional.normalize(unit, dim=-1)
    content = unit.transpose(1, 2).flatten(2).expand(-1, count, -1)
    options: dict[str, Any] = {"content": content} if getattr(encoding, "needs_content", False) else {}
    keys = unit.expand(-1, -1, count, -1)
    parts = []
    zero = torch.zeros_like(keys)
    added = attention(unit, keys, zero, encoding, q_pos=query, k_pos=cells, scale=1.0, **options)
    for first in range(0, count, dim):
        values, places = zero.clone(), torch.arange(first, min(first + dim, count))
        values[:, :, places, places - first] = 1.0
        seen = attention(unit, keys, values, encoding, q_pos=query, k_pos=cells, scale=1.0, **options) - added
        parts.append(seen[:, :, 0, : len(places)])
    return torch.cat(parts, -1).clamp_min(1e-300).log()


def caption(maps: Sequence[Map]) -> str:
    """What the picture shows."""
    what = {
        "weight": "weight of every cell in the gate",
        "bias": "bias of every cell in nats",
        "change": "change of every cell's logit in nats, mean over random content",
    }[maps[0].kind]
    return f"{what} for the query in the middle; a row a layer, a column a group or head; red is up, blue is down"


def draw(maps: Sequence[Map], path: Path) -> Path:
    """A PNG: a row a layer, a column a group, each layer in its own colours from minus to plus its largest value."""
    from matplotlib.figure import Figure

    shown = (
        maps if len(maps) <= MOST_LAYERS else [maps[i] for i in np.linspace(0, len(maps) - 1, MOST_LAYERS).astype(int)]
    )
    columns = max(min(len(each.values), MOST_GROUPS) for each in shown)
    figure = Figure(figsize=(1.3 + 0.95 * columns, 0.3 + 1.0 * len(shown)), dpi=110, layout="constrained")
    panels = np.asarray(figure.subplots(len(shown), columns, squeeze=False))
    for row, each in zip(panels, shown):
        limit = float(np.nanmax(np.abs(each.values))) or 1.0
        for axes, values in zip(row, each.values):
            axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
            axes.plot(values.shape[1] // 2, values.shape[0] // 2, marker="+", color="black", markersize=4)
        for axes in row:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_frame_on(False)
        row[0].set_ylabel(f"{each.layer}\n±{limit:.2g}", fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def artifacts(model: nn.Module, directory: Path) -> list[Artifact]:
    """The picture of all maps as a file of a report; [] where there is nothing to draw."""
    found = of(model)
    return [Artifact(draw(found, directory / "maps.png"), "image", caption(found))] if found else []
