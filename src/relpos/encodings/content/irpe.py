"""iRPE (Wu et al. 2021): relative encoding of images, by buckets of lags that meet queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relpos.encodings.base import ContentBias, Slices, State, States, Tile, check_heads, positive
from relpos.encodings.cells import placed
from relpos.encodings.content._buckets import Buckets, Method
from relpos.encodings.reference import find, need
from relpos.encodings.states import Along
from relpos.positions import Grid, Positions

SIDES = {"q": "queries", "k": "keys", "v": "values"}


class IRPE(ContentBias):
    """Adds a learned vector of the bucket of the lag to the keys, the queries or the values, for tokens on a grid.

        keys:     score_ij += scale q_i . keys[id(i, j)]         id(i, j): bucket of cell i - cell j, see `Buckets`
        queries:  score_ij += scale k_j . queries[id(j, i)]      the released code looks its bucket up from the key
        values:   out_i    += sum_j p_ij values[id(i, j)]

    on       which of them: any of "k" (default, the paper's best for its cost), "q", "v" together
    method   "product" (default: 49 buckets), "cross", "euclidean", "quant"
    mode     "contextual": tables (rows, dim), or (heads, rows, dim) where heads is given. "bias": numbers (1, rows) or
             (heads, rows) in place of the products with q and k, not scaled, and none for the values. All zero at the
             start
    ratio    the width of the buckets, 1.9 in all released models: cell 1 alone, 2 and 3 together, 4 and all beyond
    skip     True: one bucket more, for pairs with a class token on either side (see `cells.with_class_tokens`)
    scale    default 1/sqrt(dim), whatever `scale` the attention is called with

    Buckets reach to any distance, so another image size changes nothing. O(n rows) memory: products with all rows once
    a call, looked up tile by tile. ValueError for cells that have not two axes, or class tokens without skip.
    Source: Wu et al. 2021, "Rethinking and Improving Relative Position Encoding for Vision Transformer", eq. 18-24.
    """

    takes = (Grid,)
    extrapolates = True
    reads_qk = False  # `prepare` does, once
    keys: Tensor | None
    queries: Tensor | None
    values: Tensor | None
    reference = """@inproceedings{wu2021rethinking,
  title={Rethinking and Improving Relative Position Encoding for Vision Transformer},
  author={Wu, Kan and Peng, Houwen and Chen, Minghao and Fu, Jianlong and Chao, Hongyang},
  booktitle={ICCV}, year={2021}}"""

    def __init__(
        self,
        dim: int,
        method: Method = "product",
        mode: Literal["contextual", "bias"] = "contextual",
        on: str = "k",
        heads: int | None = None,
        *,
        ratio: float = 1.9,
        skip: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if mode not in ("contextual", "bias"):
            raise ValueError(f'mode is "contextual" or "bias", got {mode!r}')
        if not isinstance(on, str) or not on or set(on) - set(SIDES) or len(set(on)) < len(on):
            raise ValueError(f'on is one or several of "q", "k" and "v" as one string, such as "qk"; got {on!r}')
        if mode == "bias" and "v" in on:
            raise ValueError('mode="bias" adds numbers to scores, so values have none; use on="k", "q" or "qk"')
        self.dim, self.method, self.mode, self.on = positive("dim", dim), method, mode, on
        self.heads = None if heads is None else check_heads(heads)
        self.ratio, self.skip, self.scale = float(ratio), bool(skip), dim**-0.5 if scale is None else float(scale)
        self.buckets = Buckets(method, self.ratio, self.skip)
        lead = () if heads is None else (heads,)
        shape = (heads or 1, self.buckets.rows) if mode == "bias" else (*lead, self.buckets.rows, dim)
        for side, name in SIDES.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)) if side in on else None)
        self.has_values = "v" in on

    @classmethod
    def from_reference(cls, arrays: Mapping[str, Any], method: Method = "product", ratio: float = 1.9) -> IRPE:
        """From released weights of one layer: rpe_q, rpe_k and rpe_v, as .lookup_table_weight (heads or 1, dim, rows)
        or (heads or 1, rows, dim) for rpe_v, or .lookup_table_bias; "cross" has .rp_rows and .rp_cols of each.

        The number of rows says whether there is a bucket for class tokens. A bias knows no dim: it gets 1.
        """
        parts = ("rp_rows.", "rp_cols.") if method == "cross" else ("",)
        found: dict[str, Tensor] = {}
        mode: Literal["contextual", "bias"] = "contextual"
        for side in SIDES:
            for kind in ("weight", "bias"):
                names = [f"rpe_{side}.{part}lookup_table_{kind}" for part in parts]
                if find(arrays, names[0]) is not None:
                    tables = [need(arrays, name) for name in names]
                    turned = [t.mT if side != "v" and kind == "weight" else t for t in tables]
                    found[side] = torch.cat(turned, 1)
                    mode = "bias" if kind == "bias" else "contextual"
        if not found:
            raise ValueError(f"no array is called rpe_k.{parts[0]}lookup_table_weight or alike; there are {[*arrays]}")
        table = next(iter(found.values()))
        heads = len(table) if len(table) > 1 else None
        skip = table.shape[1] != Buckets(method, ratio, False).rows
        dim = table.shape[2] if mode == "contextual" else 1
        own = cls(dim, method, mode, "".join(found), heads, ratio=ratio, skip=skip).to(table.dtype)
        squeeze = heads is None and mode == "contextual"
        own.load_state_dict({SIDES[side]: t[0] if squeeze else t for side, t in found.items()})
        return own

    def ids(self, q_pos: Grid, k_pos: Grid) -> list[Tensor]:
        """Rows of the table, int64 (n_q, n_k) or (batch, n_q, n_k): one, or two for "cross" that add up. O(n^2)."""
        self._check(q_pos, k_pos)
        found = self.buckets.of_pairs(q_pos.values, k_pos.values)
        return [part.squeeze(0) if len(part) == 1 else part for part in found]

    def _check(self, *positions: Positions) -> None:
        self.check_positions(*positions)
        for cells in positions:
            assert isinstance(cells, Grid)
            if cells.axes != 2:
                raise ValueError(f"IRPE takes cells of rows and columns, got Grid positions with {cells.axes} axes")
            if not self.skip and not bool(placed(cells.values).all()):
                raise ValueError("class tokens need a bucket of their own: build IRPE with skip=True")

    def prepare(
        self, q: Tensor, k: Tensor, q_pos: Positions, k_pos: Positions, content: Tensor | None = None
    ) -> States:
        """The products of every query and key with all rows, (batch, heads, n, rows), or the rows of numbers."""
        self._check(q_pos, k_pos)
        assert isinstance(q_pos, Grid) and isinstance(k_pos, Grid)
        states = {"q_cells": State(q_pos.values, "query", -2), "k_cells": State(k_pos.values, "key", -2)}
        if self.mode == "contextual" and q.shape[-1] != self.dim:
            raise ValueError(f"IRPE was built for heads of width dim={self.dim}, q has {q.shape[-1]}")
        sides: tuple[tuple[str, Tensor | None, Tensor, Along], ...] = (
            ("keys", self.keys, q, "query"),
            ("queries", self.queries, k, "key"),
        )
        for name, table, x, along in sides:
            if table is None:
                continue
            table = table.to(torch.promote_types(torch.promote_types(x.dtype, table.dtype), torch.float32))
            if self.mode == "bias":
                states[name] = State(table[None, :, None], "whole")  # (1, heads or 1, 1, rows)
            else:
                states[name] = State(x.to(table.dtype) @ table.mT * self.scale, along, -2)
        if self.values is not None:
            dtype = torch.promote_types(torch.promote_types(q.dtype, self.values.dtype), torch.float32)
            states["values"] = State(self.values.to(dtype), "whole")
        return states

    def value_width(self, dim: int) -> int | None:
        return self.dim if self.has_values else None

    def tile(self, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> Tensor:
        total = q.new_zeros(1, 1, 1, 1)
        if "keys" in states:
            total = total + _picked(states["keys"], self._ids(states), q.shape)
        if "queries" in states:
            total = total + _picked(states["queries"], self._ids(states, turned=True), k.shape).mT
        return total.expand(-1, q.shape[1], tile.t_q, tile.t_k).to(q.dtype)

    def tile_backward(self, grad: Tensor, q: Tensor, k: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        found = {}
        if "keys" in states:
            found["keys"] = _collected(grad, self._ids(states), self.buckets.rows)
        if "queries" in states:
            found["queries"] = _collected(grad.mT, self._ids(states, turned=True), self.buckets.rows)
        return {name: sums.sum_to_size(states[name].shape) for name, sums in found.items()}

    def value_term(self, p: Tensor, states: Slices, tile: Tile) -> Tensor | None:
        if "values" not in states:
            return None
        return _collected(p, self._ids(states), self.buckets.rows) @ states["values"].to(p.dtype)

    def values_backward(self, grad: Tensor, p: Tensor, states: Slices, tile: Tile) -> dict[str, Tensor] | None:
        if "values" not in states:
            return None
        table, ids = states["values"].to(grad.dtype), self._ids(states)
        by_row = _collected(p, ids, self.buckets.rows)
        return {
            "p": _picked(grad @ table.mT, ids, p.shape),
            "values": (by_row.mT @ grad).sum_to_size(table.shape),
        }

    def _ids(self, states: Slices, turned: bool = False) -> list[Tensor]:
        query, key = states["q_cells"], states["k_cells"]
        return self.buckets.of_pairs(key, query) if turned else self.buckets.of_pairs(query, key)

    def extra_repr(self) -> str:
        shared = "" if self.heads is None else f", heads={self.heads}"
        return f"dim={self.dim}, method={self.method!r}, mode={self.mode!r}, on={self.on!r}{shared}, skip={self.skip}"


def _picked(terms: Tensor, ids: list[Tensor], shape: torch.Size) -> Tensor:
    """Each pair's entries of terms (.., t, rows), added up: (*shape[:2], t, t'), where shape has batch and heads."""
    wide = terms.expand(*shape[:2], ids[0].shape[-2], -1)
    parts = [wide.gather(-1, part.unsqueeze(1).expand(*shape[:2], -1, -1)) for part in ids]
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _collected(pairs: Tensor, ids: list[Tensor], rows: int) -> Tensor:
    """The transpose of `_picked`: pairs (batch, heads, t, t') summed by row, (batch, heads, t, rows)."""
    sums = pairs.new_zeros(*pairs.shape[:-1], rows)
    for part in ids:
        sums.scatter_add_(-1, part.unsqueeze(1).expand(pairs.shape), pairs)
    return sums
