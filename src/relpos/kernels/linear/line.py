"""Cells of a grid laid out on one line, so that a block-Toeplitz matrix of any number of levels is a Toeplitz one.

A row of w cells is given 2 w - 1 places. Then the place of the key minus that of the query tells every pair of a row
lag and a column lag apart, and the generator of the line is that of the grid, read row by row. Gaps hold zeros. The
line is as long as the padding of an FFT in several dimensions would be.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relpos.kernels.linear.split import CELL, NEAR


@dataclass(frozen=True)
class Line:
    """Places of queries (n_q,) and keys (n_k,), both from 0 on and rising; offset: place of the first query among the
    places of the keys; near: lags of the line that reach the rows next to a token's own."""

    queries: Tensor
    keys: Tensor
    offset: int
    near: int

    @classmethod
    def of(cls, queries: Tensor, keys: Tensor, offset: int) -> Line:
        return cls(queries, keys, offset, near_of(keys))

    @classmethod
    def of_grid(cls, sides: tuple[int, ...], device: torch.device) -> Line:
        """All cells in row-major order, as queries and as keys."""
        place = torch.zeros(1, dtype=torch.int64, device=device)
        for side in sides:
            place = (place[:, None] * (2 * side - 1) + torch.arange(side, device=device)).flatten()
        return cls.of(place, place, 0)

    @property
    def n_q(self) -> int:
        return int(self.queries[-1]) + 1

    @property
    def n_k(self) -> int:
        return int(self.keys[-1]) + 1

    @staticmethod
    def spread(rows: Tensor, places: Tensor, length: int) -> Tensor:
        """(.., n, width) to (.., length, width), zeros between."""
        return rows.new_zeros(*rows.shape[:-2], length, rows.shape[-1]).index_copy(-2, places, rows)


def near_of(places: Tensor) -> int:
    """Lags up to those of the next row, where places have gaps between rows of moderate length."""
    gaps = (places[1:] - places[:-1] > 1).nonzero()
    if len(gaps) == 0:
        return NEAR
    width = int(gaps[0]) + 1
    reach = int(places[width] - places[0]) + width - 1
    return max(reach, NEAR) if reach <= CELL else NEAR
