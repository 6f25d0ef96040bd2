"""What the transforms of kernelised attention share: tables of a head, and their place beside q and k."""

from __future__ import annotations

import torch
from torch import Tensor

from relpos.encodings.transform.rotation import per_token
from relpos.positions import Position


def as_heads(x: Tensor, heads: int, who: str) -> Tensor:
    """x (batch, own, n, dim) repeated to `heads` heads, where its own number divides them (grouped queries)."""
    own = x.shape[1]
    if own == heads:
        return x
    if own < 1 or heads % own:
        raise ValueError(f"{who} was built for {heads} heads, which {own} heads do not divide")
    return x.repeat_interleave(heads // own, 1)


def wide(x: Tensor) -> Tensor:
    """x in float32 or wider."""
    return x if x.dtype.itemsize >= 4 else x.float()


def coordinates(position: Position) -> Tensor:
    """float64 (n, axes), or (batch, n, axes) where rows differ; one axis for positions that are single numbers."""
    if position.axis == -2:
        return per_token(position.values, 1)
    return per_token(position.values).unsqueeze(-1)


def axes_of(position: Position) -> int:
    return position.values.shape[-1] if position.axis == -2 else 1


def beside(table: Tensor, x: Tensor) -> Tensor:
    """A table ([batch], [heads], n, width) as (batch or 1, heads, n, width) for x (batch, heads, n, dim)."""
    while table.dim() < 4:
        table = table.unsqueeze(0)
    return table.expand(x.shape[0], x.shape[1], *table.shape[2:])


def lag_axes(lags: Tensor, axes: int) -> Tensor:
    """Lags as float64 (.., axes): given so, or as (..) where there is one axis."""
    if axes > 1 and lags.shape[-1:] != (axes,):
        raise ValueError(f"lags have a last dimension of {axes} axes, got shape {tuple(lags.shape)}")
    lags = lags.to(torch.float64)
    return lags if axes > 1 else lags.unsqueeze(-1)
