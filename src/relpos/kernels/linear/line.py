"""Cells of a grid laid out on one line, so that a block-Toeplitz matrix of any number of levels is a Toeplitz one.

A row of w cells is given 2 w - 1 places. Then the place of the key minus that of the query tells every pair of a row
lag and a column lag apart, and the generator of the line is that of the grid, read row by row. Gaps hold zeros. The
line is as long as the padding of an FFT in several dimensions would be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from relpos.encodings.base import State
from relpos.kernels.linear.call import LinearCall
from relpos.kernels.linear.split import CELL, NEAR
from relpos.kernels.mask import Mask


@dataclass(frozen=True)
class Line:
    """Places of queries (n_q,) and keys (n_k,), both from 0 on and rising; offset: place of the first query among the
    places of the keys."""

    queries: Tensor
    keys: Tensor
    offset: int

    @cached_property
    def near(self) -> int:
        """Lags of the line that reach the rows next to a token's own."""
        return near_of(self.keys)

    @classmethod
    def of_grid(cls, sides: tuple[int, ...], device: torch.device) -> Line:
        """All cells in row-major order, as queries and as keys."""
        place = torch.zeros(1, dtype=torch.int64, device=device)
        for side in sides:
            place = (place[:, None] * (2 * side - 1) + torch.arange(side, device=device)).flatten()
        return cls(place, place, 0)

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


def line_of(call: LinearCall) -> Line | str:
    """The line on which the tokens of a call stand whose bias is one table with an integer a token, or why there is
    none. Cells of a grid are one such case, integers with gaps another."""
    if set(call.states) != {"table", "q_code", "k_code"}:
        return "the tokens are not cells of one grid"
    q, k = call.states["q_code"].tensor, call.states["k_code"].tensor
    mask = call.mask
    if q.dim() > 1 or k.dim() > 1:
        return "positions differ from one sequence of the batch to the next"
    if not call.ordered or mask.left is not None:
        return "packed documents or orders of their own need a mask in every tile"
    if not (_rising(q) and _rising(k)):
        return "the cells are not in row-major order, each once"
    if not call.causal:
        return Line(q - q[0], k - k[0], 0)
    first = mask.offset
    own = k[first : first + len(q)] if first >= 0 else k[:0]
    if len(own) != len(q) or not torch.equal(own - own[0], q - q[0]):
        return "the queries of a causal sum do not stand in the cells of the last keys"
    return Line(q - q[0], k - k[0], int(own[0] - k[0]))


def laid_out(call: LinearCall, line: Line) -> LinearCall:
    """The same sums over all places of the line, of which the gaps hold zeros; the bias is then one of lags."""
    q, k = call.states["q_code"].tensor, call.states["k_code"].tensor
    first = int(k[0] - q[-1])  # entry of the table that the smallest lag reads
    lags = call.states["table"].tensor[:, first : first + line.n_q + line.n_k - 1]
    return replace(
        call,
        q=line.spread(call.q, line.queries, line.n_q),
        k=line.spread(call.k, line.keys, line.n_k),
        values=line.spread(call.values, line.keys, line.n_k),
        ones=line.spread(call.ones, line.keys, line.n_k),
        states={"lags": State(lags, "lag")},
        mask=Mask(line.n_q, line.n_k, line.offset, right=call.mask.right),
        offset=line.offset,
    )


def _rising(places: Tensor) -> bool:
    return bool((places[1:] > places[:-1]).all())
