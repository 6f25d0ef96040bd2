"""Windows of one axis or two: their sides, the positions that they take, and the lags that they hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from relpos.encodings.base import positive
from relpos.positions import Grid, Index

Sides = Sequence[int] | int
"""(height, width), an integer for a square, or (length,) for a line of tokens."""


def sides_of(name: str, window: Sides, axes: int | None = None) -> tuple[int, ...]:
    """The sides, each at least 1; ValueError where they are not one or two, or not as many as `axes`."""
    sides = (window,) * (axes or 2) if isinstance(window, int) else tuple(window)
    if len(sides) not in (1, 2) or (axes is not None and len(sides) != axes):
        wanted = {1: "(length,)", 2: "(height, width) or an integer for a square"}
        allowed = wanted[axes] if axes else f"{wanted[2]}, or {wanted[1]}"
        raise ValueError(f"{name} is {allowed}, got {window!r}")
    return tuple(positive(f"a side of {name}", side) for side in sides)


def kind_of(sides: tuple[int, ...]) -> tuple[type, ...]:
    """The positions that a window of so many axes takes."""
    return (Index,) if len(sides) == 1 else (Grid,)


def said(sides: tuple[int, ...]) -> str:
    return " x ".join(map(str, sides))


def check_lags(lag: Tensor, window: tuple[int, ...], name: str) -> tuple[Tensor, ...]:
    """The lag along each axis; ValueError for another number of axes and for a lag that the window does not hold."""
    if len(window) == 1:
        parts: tuple[Tensor, ...] = (lag,)
    elif lag.dim() < 1 or lag.shape[-1] != len(window):
        raise ValueError(
            f"{name} of the window {said(window)} takes lags (.., {len(window)}) in rows and columns, got "
            f"{tuple(lag.shape)}; positions are Grid.of(height, width) or integers (n, 2)"
        )
    else:
        parts = lag.unbind(-1)
    outside = torch.stack([part.abs() >= side for part, side in zip(parts, window, strict=True)]).any(0)
    if bool(outside.any()):
        worst = [int(part[outside][0]) for part in parts]
        raise ValueError(
            f"the lag {worst if len(worst) > 1 else worst[0]} lies outside the window {said(window)} of {name}; stay "
            "within windows, or use resize(window) for a larger one"
        )
    return parts
