"""Rotary embedding of the cells of a grid with learned directions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from relpos.encodings.base import check_heads
from relpos.encodings.transform.axial import Stretched, check_grid
from relpos.encodings.transform.rotation import Rotary, check_base, check_width
from relpos.encodings.window import Sides
from relpos.positions import Grid, Position, Positions


class MixedRoPE(Stretched, Rotary):
    """Turns pair t of head h by x f_x[h, t] + y f_y[h, t] with learned frequencies, so that diagonal lags count too.

    frequencies  (2, heads, dim/2), index 0 for x and 1 for y. At the start pairs 0..dim/4-1 have magnitude
                 base^(-4t/dim) along one random direction a head, the others the same magnitudes at a right angle to
                 it. Keep them out of weight decay, as the source does
    window, pretrained  sides of the grid now and in training, for `resize`, as in AxialRoPE
    Positions are Grid with axes (y, x). A class token is not rotated: give it cell 0 (see axial.with_prefix).
    Frequencies differ by head, so under grouped queries the keys are expanded to all heads. dim is a multiple of 4.
    Source: Heo et al. 2024, "Rotary Position Embedding for Vision Transformer", section 3.3; pairs (2t, 2t + 1) and
    base 10 as in the released code, which holds the parameters of all layers in one tensor.
    """

    takes = (Grid,)
    extrapolates = True
    learned = True
    reference = """@inproceedings{heo2024rotary,
  title={Rotary Position Embedding for Vision Transformer},
  author={Heo, Byeongho and Park, Song and Han, Dongyoon and Yun, Sangdoo},
  booktitle={ECCV}, year={2024}}"""

    def __init__(
        self,
        heads: int,
        dim: int,
        base: float = 10.0,
        *,
        window: Sides | None = None,
        pretrained: Sides | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.dim, self.layout = check_heads(heads), check_width("MixedRoPE", dim, 4), "interleaved"
        self.base = check_base(base)
        self._set_window(2, window, pretrained)
        magnitude = self.base ** (-4 * torch.arange(dim // 4) / dim)
        direction = 2 * math.pi * torch.rand(heads, 1)
        directions = torch.cat([(direction + turn).expand(-1, dim // 4) for turn in (0, math.pi / 2)], -1)
        both = torch.stack((directions.cos(), directions.sin()))
        self.frequencies = nn.Parameter(both * magnitude.repeat(2))

    def check_positions(self, *positions: Positions) -> None:
        super().check_positions(*positions)
        check_grid("MixedRoPE", positions, 2)

    def angles(self, positions: Position, codes: Any) -> Tensor:
        assert isinstance(positions, Grid)
        y, x = self.coordinates(positions).unsqueeze(1).unsqueeze(-2).unbind(-1)  # (batch or 1, 1, n, 1)
        f_x, f_y = self.frequencies.to(torch.float64).unsqueeze(-2).unbind(0)  # (heads, 1, pairs)
        angle: Tensor = x * f_x + y * f_y
        return angle

    def encode_q(self, q: Tensor, q_pos: Positions, scale: float = 1.0, codes: Any = None) -> Tensor:
        return super().encode_q(self._all_heads(q), q_pos, scale, codes)

    def encode_k(self, k: Tensor, k_pos: Positions, scale: float = 1.0, codes: Any = None) -> Tensor:
        return super().encode_k(self._all_heads(k), k_pos, scale, codes)

    def _all_heads(self, x: Tensor) -> Tensor:
        if self.heads % x.shape[1]:
            raise ValueError(f"MixedRoPE was built for {self.heads} heads, got {x.shape[1]}")
        return x if x.shape[1] == self.heads else x.repeat_interleave(self.heads // x.shape[1], 1)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, dim={self.dim}, base={self.base:g}{self._words()}"
