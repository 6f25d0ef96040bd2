"""A query times a learned vector for every lag, and its transpose, in O(n) memory, with work only where lags differ.

A table holds one vector a lag from `low` to `high`. Within a tile the product of the queries with the table's rows,
e (t_q, rows), is *spread* over the pairs (i, j), and a matrix over the pairs is *collected* into sums a lag: each the
transpose of the other, so the backward of one is the other.

Consecutive positions (`Band`): only the columns in which some pair lies inside the table take the skewed product (Huang
et al. 2018); left and right of them every pair of a row has the same vector, one scalar a row (or none). The rows of a
table of 2k+1 lags therefore cost O(t_q k dim) a tile, whatever its width. Any other integers (`Coded`) gather.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relpos.encodings.base import ContentBias, Slices, State, States, Tile, consecutive
from relpos.encodings.bias.learned import Beyond
from relpos.encodings.diagonals import skew, unskew
from relpos.positions import Index, Positions, is_exporting


@dataclass(frozen=True)
class Extent:
    """Row r of a table is lag low + r, up to high; a lag past an end has that end's vector (clip_..) or none."""

    low: int
    high: int
    clip_low: bool
    clip_high: bool

    @property
    def rows(self) -> int:
        return self.high - self.low + 1


class Band:
    """The pairs of one tile of consecutive positions: pair (a, b) has lag first + b - a."""

    def __init__(self, extent: Extent, tile: Tile, offset: int) -> None:
        t_q, t_k = tile.t_q, tile.t_k
        first = tile.j0 - tile.i0 - offset
        self.extent, self.t_q, self.t_k = extent, t_q, t_k
        self.start = min(max(extent.low - first, 0), t_k)  # columns before it: every lag is below low
        self.stop = min(max(extent.high - first + t_q, 0), t_k)  # columns from it on: every lag is above high
        if self.start < self.stop and t_q:
            lowest, highest = first + self.start - (t_q - 1), first + self.stop - 1
            self.below, self.above = max(extent.low - lowest, 0), max(highest - extent.high, 0)
            self.rows = slice(max(lowest - extent.low, 0), min(highest, extent.high) - extent.low + 1)
        elif self.stop == 0:
            self.start, self.rows = 0, slice(extent.rows - 1 if extent.clip_high else extent.rows, extent.rows)
        else:
            self.stop, self.rows = t_k, slice(0, 1 if extent.clip_low else 0)
            self.start = t_k

    @property
    def empty(self) -> bool:
        return self.start == self.stop or not self.t_q

    def spread(self, e: Tensor) -> Tensor:
        """(.., t_q, rows) to (.., t_q, t_k): each pair receives the entry of its lag."""
        if self.empty:
            e = e if e.shape[-1] else e.new_zeros(*e.shape[:-1], 1)
            return e.expand(*e.shape[:-1], self.t_k)
        low = e[..., :1] if self.extent.clip_low else e.new_zeros(()).expand_as(e[..., :1])
        high = e[..., -1:] if self.extent.clip_high else e.new_zeros(()).expand_as(e[..., :1])
        width = self.stop - self.start
        band = skew(_joined(low, self.below, e, high, self.above), width)
        return _joined(low, self.start, band, high, self.t_k - self.stop)

    def collect(self, pairs: Tensor) -> Tensor:
        """(.., t_q, t_k) to (.., t_q, rows): the sum over the pairs of each lag."""
        if self.empty:
            return pairs.sum(-1, keepdim=True)[..., : self.rows.stop - self.rows.start]
        lags = unskew(pairs[..., self.start : self.stop])
        rows = lags[..., self.below : lags.shape[-1] - self.above]
        if self.extent.clip_low and (self.below or self.start):
            rows[..., 0] += lags[..., : self.below].sum(-1) + pairs[..., : self.start].sum(-1)
        if self.extent.clip_high and (self.above or self.stop < self.t_k):
            rows[..., -1] += lags[..., lags.shape[-1] - self.above :].sum(-1) + pairs[..., self.stop :].sum(-1)
        return rows


def _joined(low: Tensor, below: int, middle: Tensor, high: Tensor, above: int) -> Tensor:
    if not below and not above:
        return middle
    shape = middle.shape[:-1]
    return torch.cat([low.expand(*shape, below), middle, high.expand(*shape, above)], -1)


class Coded:
    """The pairs of one tile of any integer positions, q (t_q,) or (batch, t_q) and k likewise."""

    def __init__(self, extent: Extent, q_code: Tensor, k_code: Tensor) -> None:
        self.extent, self.rows = extent, slice(0, extent.rows)
        low, high = extent.low - 1, extent.high + 1  # an entry before and one after the table for what lies past it
        index = Index.between(q_code, k_code).clamp(low, high) - low
        self.index = index if index.dim() == 2 else index.unsqueeze(1)

    def spread(self, e: Tensor) -> Tensor:
        ends = e.new_zeros(*e.shape[:-1], 1)
        low = e[..., :1] if self.extent.clip_low else ends
        high = e[..., -1:] if self.extent.clip_high else ends
        return torch.cat([low, e, high], -1).gather(-1, self.index.expand(*e.shape[:-1], -1))

    def collect(self, pairs: Tensor) -> Tensor:
        lags = pairs.new_zeros(*pairs.shape[:-1], self.extent.rows + 2)
        lags = lags.scatter_add(-1, self.index.expand_as(pairs), pairs)
        rows = lags[..., 1:-1]
        if self.extent.clip_low:
            rows[..., 0] += lags[..., 0]
        if self.extent.clip_high:
            rows[..., -1] += lags[..., -1]
        return rows


def pairs_of(extent: Extent, states: Slices, tile: Tile) -> Band | Coded:
    """How the lags of a tile lie, from the states of `lag_states`."""
    if "offset" in states:
        return Band(extent, tile, int(states["offset"]))
    return Coded(extent, states["q_code"], states["k_code"])


def lag_states(q_pos: Positions, k_pos: Positions) -> States:
    """What `pairs_of` reads: one offset for consecutive positions, else an integer a token."""
    offset = None if is_exporting() else consecutive(q_pos, k_pos)  # a program holds tensors, no number to be sliced by
    if offset is not None:
        return {"offset": State(torch.tensor(offset), "whole")}
    assert isinstance(q_pos, Index) and isinstance(k_pos, Index)
    return {"q_code": State(q_pos.values, "query"), "k_code": State(k_pos.values, "key")}


def lag_range(q_pos: Positions, k_pos: Positions) -> tuple[int, int]:
    """Smallest and largest lag (key - query) that occurs in any row."""
    assert isinstance(q_pos, Index) and isinstance(k_pos, Index)
    if not len(q_pos) or not len(k_pos):
        return 0, 0
    q, k = q_pos.values, k_pos.values
    return int((k.amin(-1) - q.amax(-1)).amin()), int((k.amax(-1) - q.amin(-1)).amax())


def times_rows(x: Tensor, table: Tensor, rows: slice) -> Tensor:
    """x (batch, heads, t, dim) times rows of a table (.., rows, dim), one in all or one a head: (.., t, rows)."""
    product: Tensor = x @ table[..., rows, :].mT
    return product


def rows_gradient(e: Tensor, x: Tensor, table: Tensor, rows: slice) -> Tensor:
    """The gradient of the table in `times_rows`: sums of e[.., r] x over batch, positions and, if shared, heads."""
    grad = torch.zeros_like(table)
    if table.dim() == 2:
        grad[rows] = e.flatten(0, 2).mT @ x.flatten(0, 2)
    else:
        grad[:, rows] = (e.mT @ x).sum(0)
    return grad


class LagVectors(ContentBias):
    """Shared by the encodings with a vector for every lag.

        term(i, j) = scale q_i . key vector[lag],   output_i += sum_j p_ij value vector[lag]

    A subclass sets the attributes below and gives `tables`.
    """

    takes = (Index,)
    reads_qk = True
    heads: int | None
    dim: int
    extent: Extent
    beyond: Beyond
    scale: float

    def tables(self) -> tuple[Tensor, Tensor | None]:
        """Vectors for the keys and for the values, (rows, dim) or (heads, rows, dim)."""
        raise NotImplementedError

    def prepare(
        self, q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions, content: Tensor | None = None
    ) -> States:
        self.check_positions(q_pos, k_pos)
        if q.shape[-1] != self.dim:
            raise ValueError(f"{type(self).__name__} was built for heads of width dim={self.dim}, q has {q.shape[-1]}")
        self._check_range(q_pos, k_pos)
        keys, values = self.tables()
        dtype = torch.promote_types(torch.promote_types(q.dtype, keys.dtype), torch.float32)
        states = lag_states(q_pos, k_pos) | {"keys": State(keys.to(dtype) * self.scale, "whole")}
        return states if values is None else states | {"values": State(values.to(dtype), "whole")}

    def value_width(self, dim: int) -> int | None:
        return self.dim if self.has_values else None

    def _check_range(self, q_pos: Positions, k_pos: Positions) -> None:
        if self.beyond != "error":
            return
        low, high = self.extent.low, self.extent.high
        lowest, highest = lag_range(q_pos, k_pos)
        if lowest < low or (highest > high and not self.causal_only):
            raise ValueError(
                f"lags of {lowest}..{highest} leave {type(self).__name__}'s table, which holds {low}..{high}; "
                'build it with a larger max_lag, or with beyond="clip" or "zero"'
            )

    def tile(self, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> Tensor:
        pairs, keys = pairs_of(self.extent, states, tile), states["keys"]
        return pairs.spread(times_rows(q.to(keys.dtype), keys, pairs.rows))

    def tile_backward(self, grad: Tensor, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        pairs, keys = pairs_of(self.extent, states, tile), states["keys"]
        e = pairs.collect(grad.to(keys.dtype))
        return {"q": e @ keys[..., pairs.rows, :], "keys": rows_gradient(e, q.to(keys.dtype), keys, pairs.rows)}

    def value_term(self, p: Tensor, states: Slices, tile: Tile) -> Tensor | None:
        if "values" not in states:
            return None
        pairs, table = pairs_of(self.extent, states, tile), states["values"]
        weighted: Tensor = pairs.collect(p.to(table.dtype)) @ table[..., pairs.rows, :]
        return weighted

    def values_backward(self, grad: Tensor, p: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        pairs, table = pairs_of(self.extent, states, tile), states["values"]
        grad, mass = grad.to(table.dtype), pairs.collect(p.to(table.dtype))
        return {
            "p": pairs.spread(times_rows(grad, table, pairs.rows)),
            "values": rows_gradient(mass, grad, table, pairs.rows),
        }


def new_table(heads: int | None, rows: int, dim: int) -> nn.Parameter:
    """(rows, dim), shared by the heads, or (heads, rows, dim); to be initialised."""
    return nn.Parameter(torch.empty((rows, dim) if heads is None else (heads, rows, dim)))
