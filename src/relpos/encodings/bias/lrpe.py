"""LRPE of PosMLP: a learned weight for every lag of a window, in one dimension or two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from relpos.encodings.bias._window_table import WindowTable
from relpos.encodings.reference import need
from relpos.encodings.window import Sides, kind_of, sides_of
from relpos.positions import Grid, Index


class LRPE(WindowTable):
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
        super().__init__(groups, sides_of("window", window))
        self.groups = groups
        self.takes = kind_of(self.window)  # type: ignore[misc, assignment]
        if as_released:
            nn.init.zeros_(self.table)

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
