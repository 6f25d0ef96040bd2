"""Gates for images: made by name, and resized for another grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from relpos.encodings.tables import LagTables, resized_cells
from relpos.mixers.gating import SGU, PoSGU
from relpos.models.images import Sides

GateMaker = Callable[[int, Sides], nn.Module]


def gate_of(
    gate: str | GateMaker, hidden: int, window: Sides, groups: int, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """hidden channels in, half of them out, for the tokens of one window: "sgu" is the free matrix of gMLP; "lrpe",
    "gqpe" or the name of another Bias a `PoSGU` with so many groups and these options of the encoding; a function
    (hidden, window) -> module makes a gate of one's own."""
    if not isinstance(gate, str):
        return gate(hidden, window)
    if gate.strip().lower() == "sgu":
        if options:
            raise ValueError(f"the free matrix of an SGU takes no encoding_options, got {dict(options)}")
        return SGU(hidden, window)
    return PoSGU(hidden, window, gate, groups=groups, encoding_options=options)


def resized(gate: nn.Module, old: Sides, new: Sides) -> nn.Module:
    """A new gate for windows of another size, that cover the same part of a picture; TypeError where it has no way.

    PoSGU   its own `resize`. A learned table (LRPE) is divided by the growth of the window besides: its weights are no
            average, and as many more tokens would add up
    SGU     the matrix interpolated (bicubic) as a table over both cells of a pair, and divided likewise; the biases
            over the cells. It is a picture of the old matrix, no more: nothing in it holds for another size
    others  their method resize(window)
    """
    growth = new[0] * new[1] / (old[0] * old[1])
    if isinstance(gate, SGU):
        return _resized_sgu(gate, old, new, growth)
    resize = getattr(gate, "resize", None)
    if resize is None:
        raise TypeError(
            f"a gate of class {type(gate).__name__} has no method resize(window), so neither has this network"
        )
    other: nn.Module = resize(new)
    if isinstance(other, PoSGU) and isinstance(other.encoding, LagTables) and not other.encoding.normalized:
        with torch.no_grad():
            for name in other.encoding.sized:
                getattr(other.encoding, name).div_(growth)
    return other.train(gate.training)


def _resized_sgu(gate: SGU, old: Sides, new: Sides, growth: float) -> SGU:
    other = SGU(gate.dim, new, norm=gate.norm is not None).to(gate.weight)
    if gate.norm is not None and other.norm is not None:
        other.norm.load_state_dict(gate.norm.state_dict())
    with torch.no_grad():
        sources = resized_cells(gate.weight.T, old, new)  # (new, old): columns are the tokens that are written
        other.weight.copy_(resized_cells(sources.T, old, new) / growth)
        other.bias.copy_(resized_cells(gate.bias[:, None], old, new)[:, 0])
    return other.train(gate.training)
