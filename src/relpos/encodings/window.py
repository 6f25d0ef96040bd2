"""Windows of one axis or two: their sides, the positions that they take, and the lags that they hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from relpos.encodings.base import positive
from relpos.positions import Grid, Index

Sides = Sequence[int] | int
"""(height, width), an integer for a square, or (length,) for a line of tokens."""
_WANTED = {1: "(length,)", 2: "(height, width) or an integer for a square"}


def sides_of(name: str, window: Sides, axes: int | None = None) -> tuple[int, ...]:
    """The sides, each at least 1; ValueError where they are not as many as `axes`, or without it one or two."""
    try:
        sides = (window,) * (axes or 2) if isinstance(window, int) else tuple(window)
    except TypeError:  # no integer, and no sequence either
        sides = ()
    if len(sides) not in ((1, 2) if axes is None else (axes,)):
        several = f"{axes} sides or an integer for equal ones"
        allowed = f"{_WANTED[2]}, or {_WANTED[1]}" if axes is None else _WANTED.get(axes, several)
        raise ValueError(f"{name} is {allowed}, got {window!r}")
    return tuple(positive(f"a side of {name}", side) for side in sides)


def kind_of(sides: tuple[int, ...]) -> tuple[type, ...]:
    """The positions that a window of so many axes takes."""
    return (Index,) if len(sides) == 1 else (Grid,)


def said(sides: tuple[int, ...]) -> str:
    return " x ".join(map(str, sides))


def vectors(lag: Tensor, axes: int, name: str) -> Tensor:
    """Lags as (.., axes); ValueError where they have another number of axes. Those of a line come without an axis."""
    if axes == 1:
        return lag.unsqueeze(-1)
    if lag.dim() < 1 or lag.shape[-1] != axes:
        raise ValueError(
            f"{name} takes lags (.., {axes}) in rows and columns, got {tuple(lag.shape)}; "
            "positions are Grid.of(height, width) or integers (n, 2)"
        )
    return lag


def inside(lag: Tensor, window: tuple[int, ...], name: str) -> tuple[Tensor, ...]:
    """The lag along each axis; ValueError for another number of axes and for a lag that the window does not hold."""
    parts = vectors(lag, len(window), name).unbind(-1)
    outside = torch.stack([part.abs() >= side for part, side in zip(parts, window, strict=True)]).any(0)
    if bool(outside.any()):
        worst = [int(part[outside][0]) for part in parts]
        raise ValueError(
            f"the lag {worst if len(worst) > 1 else worst[0]} lies outside the window {said(window)} of {name}; stay "
            "within windows, or use resize(window) for a larger one"
        )
    return parts
