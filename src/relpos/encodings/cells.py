"""Tokens that stand beside a grid: class tokens and registers, which have no place in the image."""

from __future__ import annotations

import torch
from torch import Tensor

from relpos.positions import Grid

NOWHERE = -(2**31)  # on every axis: the cell of a token that has none; lags of it are far beyond any image


def with_class_tokens(grid: Grid, count: int = 1) -> Grid:
    """The grid's cells after `count` tokens that are nowhere. IRPE, Decomposed2D and the rotary encodings know them."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ValueError(f"count is an integer of at least 0, got {count!r}")
    values = grid.values
    class_tokens = values.new_full((values.shape[0], count, values.shape[-1]), NOWHERE)
    return Grid(torch.cat((class_tokens, values), 1))


def placed(values: Tensor) -> Tensor:
    """True for the cells (.., axes) that are in the grid, False for those of class tokens."""
    return (values != NOWHERE).any(-1)
