"""Gates for images: made by name, and resized for another grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

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


def resized(gate: nn.Module, window: Sides) -> nn.Module:
    """A new gate for windows of another size, by its own method resize(window); TypeError where it has none."""
    resize = getattr(gate, "resize", None)
    if resize is None:
        raise TypeError(
            f"a gate of class {type(gate).__name__} has no method resize(window), so neither has this network"
        )
    other: nn.Module = resize(window)
    return other.train(gate.training)
