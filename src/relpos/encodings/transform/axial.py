"""Rotary embedding of the cells of a grid, one axis after the other."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor, nn

from relpos.encodings.cells import placed
from relpos.encodings.transform.rotation import Layout, Rotary, check_base, check_layout, check_width, per_token
from relpos.encodings.window import Sides, sides_of
from relpos.positions import Grid, Position, Positions


def with_prefix(grid: Grid, count: int = 1) -> Grid:
    """The grid's cells after `count` tokens without a place (class token, registers), which stay unrotated.

    They get cell 0 on every axis, where every angle is 0, as patch (0, 0) has in the released code. Class tokens that
    are nowhere, of `cells.with_class_tokens`, have the angle 0 too.
    """
    values = grid.values
    return Grid(torch.cat((values.new_zeros(values.shape[0], count, values.shape[-1]), values), 1))


def check_grid(method: str, positions: tuple[Positions, ...], axes: int) -> None:
    for position in positions:
        if isinstance(position, Grid) and position.axes != axes:
            raise ValueError(f"{method} was built for {axes} axes, got Grid positions with {position.axes}")


class Stretched(nn.Module):
    """The part of a rotary encoding that knows the size of its grid: positions are interpolated to the trained one.

    window      sides of the grid in cells, one integer for equal ones; None: a grid of any size is counted in cells
    pretrained  sides of the grid that the weights were trained with; None: those of `window`
    A cell counts as pretrained / window of a cell, side by side, so the angles of a larger grid stay in the range that
    was trained: position interpolation (Chen et al. 2023, arXiv 2306.15595, eq. 4), axis by axis.
    """

    window: tuple[int, ...] | None
    pretrained: tuple[int, ...] | None

    def _set_window(self, axes: int, window: Sides | None, pretrained: Sides | None) -> None:
        if window is None and pretrained is not None:
            raise ValueError(f"pretrained={pretrained!r} needs the window that the grid has now")
        self.window = None if window is None else sides_of("window", window, axes)
        self.pretrained = self.window if pretrained is None else sides_of("pretrained", pretrained, axes)

    def coordinates(self, grid: Grid) -> Tensor:
        """Float64 (batch or 1, n, axes) of the cells, stretched; 0 for class tokens."""
        cells = grid.values.masked_fill(~placed(grid.values).unsqueeze(-1), 0).to(torch.float64)
        if self.window is None or self.pretrained is None or self.window == self.pretrained:
            return cells
        return cells * cells.new_tensor([a / b for a, b in zip(self.pretrained, self.window, strict=True)])

    def resize(self, window: Sides) -> Self:
        """A new encoding for a grid of that window, which spans the angles that the old one spanned. One built without
        a window counts cells on grids of any size, so its copy is the same."""
        other = copy.deepcopy(self)
        if self.window is not None:
            other.window = sides_of("window", window, len(self.window))
        return other

    def _words(self) -> str:
        if self.window is None:
            return ""
        return f", window={self.window}" + ("" if self.window == self.pretrained else f", pretrained={self.pretrained}")


class AxialRoPE(Stretched, Rotary):
    """Turns the first half of the channels by x and the second by y, so that scores depend on both lags of the grid.

        angle of pair t:   x base^(-4t/dim), t < dim/4;   then   y base^(-4(t - dim/4)/dim)

    Positions are Grid, axes (y, x) or (z, y, x) with axes=3: the last axis takes the first share of the channels, and
    the exponent is -2 axes t/dim. A class token is not rotated: give it cell 0 (see `with_prefix`).

    window, pretrained  sides of the grid now and in training, for `resize`, see `Stretched`; without them cells are
                        counted as they come, and a larger grid reaches angles that were never trained, as in the source

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

    def __init__(
        self,
        dim: int,
        base: float = 100.0,
        layout: Layout = "interleaved",
        axes: int = 2,
        *,
        window: Sides | None = None,
        pretrained: Sides | None = None,
    ) -> None:
        super().__init__()
        check_layout(layout)
        if axes not in (1, 2, 3):
            raise ValueError(f"a grid has 1 to 3 axes, got axes={axes!r}")
        self.dim, self.layout, self.axes = check_width("AxialRoPE", dim, 2 * axes), layout, axes
        self.base = check_base(base)
        self._set_window(axes, window, pretrained)
        share = torch.arange(dim // (2 * axes), dtype=torch.float64, device="cpu") * (2 * axes) / dim
        self._keep_exact("inv_freq", self.base**-share)

    def check_positions(self, *positions: Positions) -> None:
        super().check_positions(*positions)
        check_grid("AxialRoPE", positions, self.axes)

    def angles(self, positions: Position, codes: Any) -> Tensor:
        assert isinstance(positions, Grid)
        cells = per_token(self.coordinates(positions), 1).flip(-1)  # (x, y), as the channels go
        return (cells.unsqueeze(-1) * self.inv_freq.to(cells.device)).flatten(-2)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, base={self.base:g}, axes={self.axes}{self._words()}"
