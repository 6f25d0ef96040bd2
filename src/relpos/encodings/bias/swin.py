"""The learned table of a window in Swin Transformer: a scalar for every lag on a grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relpos.encodings.bias._window_table import WindowTable
from relpos.encodings.reference import need
from relpos.encodings.window import sides_of
from relpos.positions import Grid


class SwinBias(WindowTable):
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
        super().__init__(heads, sides_of("window", window, axes=2))

    @classmethod
    def from_reference(cls, arrays: Mapping[str, Any], window: tuple[int, int] | int) -> SwinBias:
        """From released weights: relative_position_bias_table, which has this table's order and sign."""
        table = need(arrays, "relative_position_bias_table")
        own = cls(table.shape[1], window).to(table.dtype)
        own.load_state_dict({"table": table})
        return own
