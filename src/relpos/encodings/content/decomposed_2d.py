"""Decomposed relative positions of a grid (MViTv2, ViTDet, SAM): a vector for a lag in rows, and one for columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import ContentBias, Slices, State, States, Tile, positive
from relpos.encodings.cells import placed
from relpos.encodings.reference import need
from relpos.encodings.tables import LagTables, resized
from relpos.encodings.window import sides_of
from relpos.positions import Grid, Positions


class Decomposed2D(LagTables, ContentBias):
    """Adds q_i . (rows[y_i - y_j + h - 1] + columns[x_i - x_j + w - 1]) to the score of tokens i (query) and j (key).

    rows     (2 h - 1, dim), columns (2 w - 1, dim): indexed query minus key as in the released code, one table for all
             heads, zero at the start
    window   (h, w) in cells, the grid that the tables cover
    Added after the scale, to the query as it is: the released models scale q . k alone. Class tokens (see
    `cells.with_class_tokens`) get no term, neither as queries nor as keys. ValueError for a lag beyond the window.

    A score falls apart into one number for the key's row and one for its column, so the states are O(n (h + w)) a head
    and a tile only looks them up. Released code that pools keys counts a key's cell in cells of the query and starts
    its rows at the first of a pool, (k - 1) q / k rather than q - 1; here lag 0 is the middle row always. Give pooled
    keys the cells of the query grid.
    Source: Li et al. 2022, "MViTv2", eq. 4 (with the axis of time left out), and the code of Segment Anything.
    """

    takes = (Grid,)
    reads_qk = False  # `prepare` does, once
    sized = ("rows", "columns")
    reference = """@inproceedings{li2022mvitv2,
  title={MViTv2: Improved Multiscale Vision Transformers for Classification and Detection},
  author={Li, Yanghao and Wu, Chao-Yuan and Fan, Haoqi and Mangalam, Karttikeya and Xiong, Bo and Malik, Jitendra
    and Feichtenhofer, Christoph},
  booktitle={CVPR}, year={2022}}"""

    def __init__(self, dim: int, window: tuple[int, int] | int) -> None:
        super().__init__()
        self.dim, self.window = positive("dim", dim), sides_of("window", window, axes=2)
        self.rows, self.columns = (nn.Parameter(torch.zeros(2 * side - 1, dim)) for side in self.window)

    @classmethod
    def from_reference(cls, arrays: Mapping[str, Any]) -> Decomposed2D:
        """From released weights: rel_pos_h and rel_pos_w, whose lengths give the window."""
        rows, columns = need(arrays, "rel_pos_h"), need(arrays, "rel_pos_w")
        own = cls(rows.shape[1], ((len(rows) + 1) // 2, (len(columns) + 1) // 2)).to(rows.dtype)
        own.load_state_dict({"rows": rows, "columns": columns})
        return own

    def prepare(
        self, q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions, content: Tensor | None = None
    ) -> States:
        """Terms by query and row of keys, (batch, heads, n_q, rows + 1), likewise columns; the last is for no place."""
        self.check_positions(q_pos, k_pos)
        assert isinstance(q_pos, Grid) and isinstance(k_pos, Grid)
        if q_pos.axes != 2 or k_pos.axes != 2:
            raise ValueError(f"Decomposed2D takes cells of rows and columns, got {q_pos.axes} and {k_pos.axes} axes")
        if q.shape[-1] != self.dim:
            raise ValueError(f"Decomposed2D was built for heads of width dim={self.dim}, q has {q.shape[-1]}")
        dtype = torch.promote_types(torch.promote_types(q.dtype, self.rows.dtype), torch.float32)
        in_q, in_k = placed(q_pos.values), placed(k_pos.values)
        states: States = {}
        for axis, (name, table) in enumerate((("rows", self.rows), ("columns", self.columns))):
            of_query, of_key = self._lines(q_pos.values[..., axis], k_pos.values[..., axis], in_q, in_k, axis)
            lines = torch.unique(of_key[in_k.expand_as(of_key)])
            product = q.to(dtype) @ table.to(dtype).T  # (batch, heads, n_q, 2 side - 1)
            row = (of_query.unsqueeze(-1) - lines + self.window[axis] - 1).clamp(0, len(table) - 1).unsqueeze(1)
            terms = product.gather(-1, row.expand(*product.shape[:-1], -1)) * in_q[:, None, :, None]
            at = torch.searchsorted(lines, of_key).masked_fill(~in_k, len(lines))
            states |= {name: State(nn.functional.pad(terms, (0, 1)), "query", -2), f"{name}_at": State(at, "key")}
        return states

    def _lines(self, q: Tensor, k: Tensor, in_q: Tensor, in_k: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Rows or columns (batch or 1, n) counted from the first that holds a key, sequence by sequence, so that all
        sequences share few lines; ValueError where a lag between two of one sequence is not in the table."""
        if not q.numel() or not k.numel():
            return q, k.contiguous()
        far, side = 2**40, self.window[axis]
        first, last = k.masked_fill(~in_k, far).amin(-1, True), k.masked_fill(~in_k, -far).amax(-1, True)
        lowest = first - q.masked_fill(~in_q, -far).amax(-1, True)
        highest = last - q.masked_fill(~in_q, far).amin(-1, True)
        if bool((highest >= side).any() or (lowest <= -side).any()):
            worst = int(highest.amax() if bool((highest >= side).any()) else lowest.amin())
            raise ValueError(
                f"a lag of {worst} {'columns' if axis else 'rows'} lies outside the window {self.window[0]} x "
                f"{self.window[1]}; attend within windows, or use resize(window) for a larger one"
            )
        return q - first, (k - first).contiguous()

    def tile(self, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> Tensor:
        rows, columns = (states[name].gather(-1, _index(states, name)) for name in self.sized)
        return (rows + columns).to(q.dtype)

    def tile_backward(self, grad: Tensor, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        found = {}
        for name in self.sized:
            terms = torch.zeros_like(states[name])
            found[name] = terms.scatter_add_(-1, _index(states, name), grad.to(terms.dtype))
        return found

    def resize(self, window: tuple[int, int] | int) -> Decomposed2D:
        """A new Decomposed2D whose tables are these, interpolated linearly along their lags, as in released code."""
        other = Decomposed2D(self.dim, window).to(self.rows)
        with torch.no_grad():
            for name, old, new in zip(self.sized, self.window, other.window, strict=True):
                getattr(other, name).copy_(resized(getattr(self, name), (old,), (new,), "linear"))
        return other

    def extra_repr(self) -> str:
        return f"dim={self.dim}, window={self.window}"


def _index(states: Slices, name: str) -> Tensor:
    """Which entry of a query's terms belongs to each key, (batch, heads, t_q, t_k)."""
    of_key = states[f"{name}_at"]  # (batch or 1, t_k)
    return of_key[:, None, None].expand(*states[name].shape[:-1], -1)
