"""LRPE of PosMLP: a learned weight for every lag of a window, in one dimension or two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import Bias, check_heads
from relpos.encodings.reference import need
from relpos.encodings.tables import LagTables, resized, rows_of
from relpos.encodings.window import Sides, check_lags, kind_of, said, sides_of
from relpos.positions import Grid, Index


class LRPE(LagTables, Bias):
    """weight(i, j, g) = table[index(i, j), g] for tokens i (query), j (key) of one window and a group g of channels.

        index = (y_i - y_j + h - 1) * (2 w - 1) + (x_i - x_j + w - 1)        query minus key, as in the released code

    table   ((2 h - 1) * (2 w - 1), groups), truncated normal 0.02; one axis: (2 w - 1, groups)
    window  (h, w) in cells, an integer for a square, or (w,) for a line of tokens (positions are then an Index)
    as_released   the table starts at zero. The released code means to draw it, but looks for a parameter by a name that
            none has; a unit then starts as its token biases times the gate, and no gradient reaches its input

    In a gate (`rp.PoSGU`) these are the weights themselves, neither normalised nor positive: a depthwise convolution
    over the whole window. In attention they are added to the score, a group a head. `at` takes this library's lag
    (key - query) and turns it round here. ValueError for a lag outside the window: `resize` makes a larger one.
    Source: Wang et al. 2022, "Parameterization of Cross-Token Relations with Relative Positional Encoding for Vision
    MLP" (PosMLP); order and sign of its released code.
    """

    takes = (Grid, Index)
    reference = """@inproceedings{wang2022posmlp,
  title={Parameterization of Cross-Token Relations with Relative Positional Encoding for Vision {MLP}},
  author={Wang, Zhicai and Hao, Yanbin and Gao, Xingyu and Zhang, Hao and Wang, Shuo and Mu, Tingting and He, Xiangnan},
  booktitle={ACM Multimedia}, year={2022}}"""

    def __init__(self, groups: int, window: Sides, as_released: bool = False) -> None:
        super().__init__()
        self.heads = self.groups = check_heads(groups)
        self.window = sides_of("window", window)
        self.takes = kind_of(self.window)  # type: ignore[misc, assignment]
        self.table = nn.Parameter(torch.zeros(rows_of(self.window), groups))
        if not as_released:
            nn.init.trunc_normal_(self.table, std=0.02)

    @classmethod
    def from_reference(cls, arrays: Mapping[str, Any], window: Sides | None = None) -> LRPE:
        """From released weights: window_relative_position_bias_table (or table), in this table's order and sign.

        window: default the square that has so many lags; (w,) for the one-dimensional version."""
        table = need(arrays, "window_relative_position_bias_table", "table")
        if window is None:
            side = round(table.shape[0] ** 0.5)
            if side * side != table.shape[0] or side % 2 == 0:
                raise ValueError(f"a table of {table.shape[0]} lags belongs to no square window; give window")
            window = (side + 1) // 2
        own = cls(table.shape[1], window).to(table.dtype)
        own.load_state_dict({"table": table})
        return own

    def at(self, lag: Tensor) -> Tensor:
        places = check_lags(lag, self.window, "LRPE")
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
        return image.flip(*range(1, image.dim()))

    def resize(self, window: Sides) -> LRPE:
        """A new LRPE whose table is this one interpolated (bicubic; cubic on a line) to another window."""
        other = LRPE(self.groups, sides_of("window", window, axes=len(self.window))).to(self.table)
        with torch.no_grad():
            other.table.copy_(resized(self.table, self.window, other.window))
        return other

    def extra_repr(self) -> str:
        return f"groups={self.groups}, window={said(self.window)}"
