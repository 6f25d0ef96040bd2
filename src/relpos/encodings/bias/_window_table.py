"""A learned number for every lag of a window and each head or group: what SwinBias and LRPE have in common."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from relpos.encodings.base import Bias, check_heads
from relpos.encodings.tables import LagTables, resized, rows_of
from relpos.encodings.window import Sides, inside, said, sides_of


class WindowTable(LagTables, Bias):
    """score(lag, h) = table[index, h], the index of the lag counted query minus key, row by row.

    table   (rows, heads), truncated normal 0.02: a row for each lag of the window, in one dimension or two
    window  its sides in cells
    """

    def __init__(self, heads: int, window: tuple[int, ...]) -> None:
        super().__init__()
        self.heads, self.window = check_heads(heads), window
        self.table = nn.Parameter(torch.empty(rows_of(window), heads))
        nn.init.trunc_normal_(self.table, std=0.02)

    def at(self, lag: Tensor) -> Tensor:
        places = inside(lag, self.window, type(self).__name__)
        index = torch.zeros_like(places[0])
        for place, side in zip(places, self.window, strict=True):
            index = index * (2 * side - 1) + (side - 1 - place)
        return self.table[index].movedim(-1, 0)

    def lags(self, n_q: int | tuple[int, ...], n_k: int | tuple[int, ...] | None = None, offset: int = 0) -> Tensor:
        """As of any Bias; of a whole window it is the table itself, turned round."""
        sides = (n_q,) if isinstance(n_q, int) and (n_k is None or n_k == n_q) and offset == 0 else n_q
        if sides != self.window:
            return super().lags(n_q, n_k, offset)
        image = self.table.T.reshape(-1, *(2 * side - 1 for side in self.window))
        return image.flip(tuple(range(1, image.dim())))

    def resize(self, window: Sides) -> Self:
        """A new encoding whose table is this one interpolated to another window: bicubic, as released models do; cubic
        on a line."""
        other = type(self)(self.heads, sides_of("window", window, axes=len(self.window))).to(self.table)
        with torch.no_grad():
            other.table.copy_(resized(self.table, self.window, other.window))
        return other

    def extra_repr(self) -> str:
        return f"heads={self.heads}, window={said(self.window)}"
