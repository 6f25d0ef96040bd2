"""Rotary embedding of the cells of a grid, one axis after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relpos.encodings.transform.rotation import Layout, Rotary, check_base, check_layout, check_width, per_token
from relpos.positions import Grid, Position, Positions


def with_prefix(grid: Grid, count: int = 1) -> Grid:
    """The grid's cells after `count` tokens without a place (class token, registers), which stay unrotated.

    They get cell 0 on every axis, where every angle is 0, as patch (0, 0) has in the released code.
    """
    values = grid.values
    return Grid(torch.cat((values.new_zeros(values.shape[0], count, values.shape[-1]), values), 1))


def check_grid(method: str, positions: tuple[Positions, ...], axes: int) -> None:
    for position in positions:
        if isinstance(position, Grid) and position.axes != axes:
            raise ValueError(f"{method} was built for {axes} axes, got Grid positions with {position.axes}")


class AxialRoPE(Rotary):
    """Turns the first half of the channels by x and the second by y, so that scores depend on both lags of the grid.

        angle of pair t:   x base^(-4t/dim), t < dim/4;   then   y base^(-4(t - dim/4)/dim)

    Positions are Grid, axes (y, x) or (z, y, x) with axes=3: the last axis takes the first share of the channels, and
    the exponent is -2 axes t/dim. A class token is not rotated: give it cell 0 (see `with_prefix`).

    No parameters. dim is a multiple of 2 axes. A score is a sum of terms of one axis each, so a diagonal lag has no
    frequency of its own: in MixedRoPE it has.
    Source: Heo et al. 2024, "Rotary Position Embedding for Vision Transformer", section 3.2; pairs (2t, 2t + 1) and
    base 100 as in the released code.
    """

    takes = (Grid,)
    extrapolates = True
    inv_freq: Tensor
    reference = """@inproceedings{heo2024rotary,
  title={Rotary Position Embedding for Vision Transformer},
  author={Heo, Byeongho and Park, Song and Han, Dongyoon and Yun, Sangdoo},
  booktitle={ECCV}, year={2024}}"""

    def __init__(self, dim: int, base: float = 100.0, layout: Layout = "interleaved", axes: int = 2) -> None:
        super().__init__()
        check_layout(layout)
        if axes not in (1, 2, 3):
            raise ValueError(f"a grid has 1 to 3 axes, got axes={axes!r}")
        self.dim, self.layout, self.axes = check_width("AxialRoPE", dim, 2 * axes), layout, axes
        self.base = check_base(base)
        share = torch.arange(dim // (2 * axes), dtype=torch.float64, device="cpu") * (2 * axes) / dim
        self._keep_exact("inv_freq", self.base**-share)

    def check_positions(self, *positions: Positions) -> None:
        super().check_positions(*positions)
        check_grid("AxialRoPE", positions, self.axes)

    def angles(self, positions: Position, codes: Any) -> Tensor:
        cells = per_token(positions.values, 1).flip(-1)  # (x, y), as the channels go
        return (cells.unsqueeze(-1) * self.inv_freq.to(cells.device)).flatten(-2)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, base={self.base:g}, axes={self.axes}"
