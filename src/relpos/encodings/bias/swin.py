"""The learned table of a window in Swin Transformer: a scalar for every lag on a grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import Bias, check_heads, positive
from relpos.encodings.reference import need
from relpos.encodings.tables import LagTables, resized, rows_of
from relpos.positions import Grid


def check_window(name: str, window: tuple[int, int] | int) -> tuple[int, int]:
    """(height, width) of a window, both at least 1; one integer is a square."""
    sides = (window, window) if isinstance(window, int) else tuple(window)
    if len(sides) != 2:
        raise ValueError(f"{name} is (height, width), got {window!r}")
    return positive(f"the height of {name}", sides[0]), positive(f"the width of {name}", sides[1])


def check_lag(lag: Tensor, name: str) -> None:
    if lag.dim() < 1 or lag.shape[-1] != 2:
        raise ValueError(
            f"{name} takes lags (.., 2) in rows and columns, got {tuple(lag.shape)}; "
            "positions are Grid.of(height, width) or integers (n, 2)"
        )


class SwinBias(LagTables, Bias):
    """Adds table[index(i, j), h] to the score of head h, for tokens i (query) and j (key) in one window of a grid.

        index = (y_i - y_j + h - 1) * (2 w - 1) + (x_i - x_j + w - 1)         query minus key, as in the released code

    table  ((2 h - 1) * (2 w - 1), heads), truncated normal 0.02
    window (h, w) in cells
    Added after the scale. `at` takes this library's lag (key - query) and turns it round here. Positions are `Grid`s
    of two axes, of any part of the window; shifted windows are `segments` of `rp.attention`. ValueError for a lag that
    the table does not hold: `resize` makes a table for a larger window. Weights of another window do not load, and the
    error says so.
    Source: Liu et al. 2021, "Swin Transformer", eq. 4.
    """

    takes = (Grid,)
    reference = """@inproceedings{liu2021swin,
  title={Swin Transformer: Hierarchical Vision Transformer using Shifted Windows},
  author={Liu, Ze and Lin, Yutong and Cao, Yue and Hu, Han and Wei, Yixuan and Zhang, Zheng
    and Lin, Stephen and Guo, Baining},
  booktitle={ICCV}, year={2021}}"""

    def __init__(self, heads: int, window: tuple[int, int] | int) -> None:
        super().__init__()
        self.heads, self.window = check_heads(heads), check_window("window", window)
        self.table = nn.Parameter(torch.empty(rows_of(self.window), heads))
        nn.init.trunc_normal_(self.table, std=0.02)

    @classmethod
    def from_reference(cls, arrays: Mapping[str, Any], window: tuple[int, int] | int) -> SwinBias:
        """From released weights: relative_position_bias_table, which has this table's order and sign."""
        table = need(arrays, "relative_position_bias_table")
        own = cls(table.shape[1], window).to(table.dtype)
        own.load_state_dict({"table": table})
        return own

    def at(self, lag: Tensor) -> Tensor:
        check_lag(lag, "SwinBias")
        height, width = self.window
        y, x = (-lag).unbind(-1)
        outside = (y.abs() >= height) | (x.abs() >= width)
        if bool(outside.any()):
            worst = lag[outside][0].tolist()
            raise ValueError(
                f"a lag of {worst[0]} rows and {worst[1]} columns lies outside the window {height} x {width}; "
                "attend within windows, or use resize(window) for a larger one"
            )
        return self.table[(y + height - 1) * (2 * width - 1) + x + width - 1].movedim(-1, 0)

    def resize(self, window: tuple[int, int] | int) -> SwinBias:
        """A new SwinBias whose table is this one interpolated (bicubic) to another window, as released models do."""
        other = SwinBias(self.heads, window).to(self.table)
        with torch.no_grad():
            other.table.copy_(resized(self.table, self.window, other.window))
        return other

    def extra_repr(self) -> str:
        return f"heads={self.heads}, window={self.window}"
